"""Training blocks and evaluation blocks: every token once per epoch, documents kept apart, the same from anywhere."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ingot.data.assembly import IGNORED
from ingot.data.packing import EvaluationBlocks, TokenBlocks
from ingot.data.shards import TokenShards
from ingot.recipe import InputError

from .shard_toys import make_shards, some_lengths


@pytest.fixture(scope="module", params=[300, 70_000], ids=["uint16", "uint32"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of documents."""
    path = tmp_path_factory.mktemp("shards") / "run"
    return make_shards(path, [some_lengths(n, n, 30) for n in (40, 1, 25)], vocab_size=request.param)


def documents_of(folder: Path, split: str = "train") -> list[list[int]]:
    shards = TokenShards(folder, split)
    return [shards.document(i).tolist() for i in range(shards.num_documents)]


def stream_of(blocks: TokenBlocks) -> list[int]:
    return [int(t) for i in range(len(blocks)) for t in blocks[i]["input_ids"]]


def cut(stream: list[int]) -> list[list[int]]:
    """The documents of a stream of tokens, each with its end token (id 0)."""
    documents, begin = [], 0
    for i, token in enumerate(stream):
        if token == 0:
            documents.append(stream[begin : i + 1])
            begin = i + 1
    return documents


def test_every_document_comes_once_per_epoch(folder: Path) -> None:
    documents = documents_of(folder)
    total = sum(map(len, documents))
    blocks = TokenBlocks(folder, "train", 32, seed=0, num_blocks=3 * total // 32 + 1)
    assert blocks.blocks_per_epoch == total // 32
    stream = stream_of(blocks)
    orders = []
    for epoch in range(3):
        seen = cut(stream[epoch * total : (epoch + 1) * total])
        assert sorted(seen) == sorted(documents)
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2] != documents


def test_positions_and_labels_keep_documents_apart(folder: Path) -> None:
    blocks = TokenBlocks(folder, "train", 50, seed=3)
    previous = 0  # the stream begins with a document
    for i in range(len(blocks)):
        block = blocks[i]
        assert {k: (v.dtype, v.shape) for k, v in block.items()} == dict.fromkeys(
            ("input_ids", "labels", "position_ids"), (np.dtype(np.int64), (50,))
        )
        ids = block["input_ids"]
        starts = np.concatenate([[previous], ids[:-1]]) == 0
        previous = ids[-1]
        assert (block["labels"] == np.where(starts, IGNORED, ids)).all()
        expected, position = [], 0
        for j in range(50):
            position = 0 if j == 0 or starts[j] else position + 1
            expected.append(position)
        assert block["position_ids"].tolist() == expected


def test_a_block_depends_only_on_seed_and_index(folder: Path) -> None:
    long = TokenBlocks(folder, "train", 32, seed=5, num_blocks=90)
    expected = [long[i]["input_ids"].tolist() for i in range(90)]
    again = TokenBlocks(folder, "train", 32, seed=5, num_blocks=90)
    for i in np.random.default_rng(0).permutation(90).tolist():  # resume anywhere, in any order
        assert again[i]["input_ids"].tolist() == expected[i]
    copy = pickle.loads(pickle.dumps(long))
    assert copy[41]["input_ids"].tolist() == expected[41]
    assert len(pickle.dumps(long)) < 2000  # not the tokens
    other = TokenBlocks(folder, "train", 32, seed=6, num_blocks=90)
    assert [other[i]["input_ids"].tolist() for i in range(90)] != expected


def test_blocks_longer_than_an_epoch(folder: Path) -> None:
    total = TokenShards(folder, "train").num_tokens
    (block,) = (TokenBlocks(folder, "train", 2 * total + 7, seed=0, num_blocks=1)[0],)
    assert sorted(cut(block["input_ids"][:total].tolist())) == sorted(documents_of(folder))
    assert (block["position_ids"] == 0).sum() == (block["labels"] == IGNORED).sum()


def test_evaluation_predicts_every_token_once(folder: Path) -> None:
    documents = documents_of(folder, "validation")
    for seq_length in (2, 7, 64, 5000):
        blocks = EvaluationBlocks(folder, "validation", seq_length)
        targets = []
        for i in range(len(blocks)):
            block = blocks[i]
            assert block["labels"][0] == IGNORED
            assert all(len(v) == seq_length for v in block.values())
            targets += [int(label) for label in block["labels"] if label != IGNORED]
        assert targets == [t for document in documents for t in document[1:]]
        assert blocks.num_targets == len(targets)


def test_bytes_per_target_is_text_over_targets(folder: Path) -> None:
    blocks = EvaluationBlocks(folder, "validation", 64)
    assert blocks.num_targets == 63 - 5
    assert blocks.bytes_per_target == 3 * 63 / blocks.num_targets


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="tokens, less than one block of 100000"):
        TokenBlocks(folder, "train", 100_000, seed=0)
    with pytest.raises(IndexError):
        TokenBlocks(folder, "train", 32, seed=0, num_blocks=3)[3]
    with pytest.raises(InputError, match="a block of 1 token predicts nothing"):
        EvaluationBlocks(folder, "validation", 1)
