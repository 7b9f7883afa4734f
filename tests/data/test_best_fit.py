"""Best fit: as the textbook says, every token once per epoch, whole documents where they fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ingot.data.assembly import IGNORED
from ingot.data.best_fit import BestFitBlocks, best_fit, cut
from ingot.data.packing import TokenBlocks
from ingot.data.shards import TokenShards

from .shard_toys import END, make_shards, some_lengths

SEQ_LENGTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents in three shards; some are longer than a block, one is much longer."""
    lengths = [some_lengths(70, 1, 50), [7 * SEQ_LENGTH + 5], [*some_lengths(47, 2, 50), 2 * SEQ_LENGTH, SEQ_LENGTH]]
    return make_shards(tmp_path_factory.mktemp("shards") / "run", lengths)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The room left in every block when pieces are placed one after the other."""
    room: list[int] = []
    for length in lengths:
        fitting = [(r, i) for i, r in enumerate(room) if r >= length]
        if not fitting:
            room.append(capacity)
        room[min(fitting)[1] if fitting else -1] -= length
    return sorted(room)


def test_groups_of_pieces_go_where_single_pieces_would() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        capacity = int(generator.integers(5, 60))
        lengths = -np.sort(-generator.integers(1, capacity + 1, generator.integers(1, 120)))
        blocks, number = best_fit(lengths, capacity)
        room = capacity - np.bincount(blocks, weights=lengths, minlength=number).astype(int)
        assert sorted(room.tolist()) == one_by_one(lengths.tolist(), capacity)


def test_documents_are_cut_only_when_they_are_longer_than_a_block() -> None:
    document, offset, size = cut(np.array([3, 8, 9, 24, 17]), 8)
    assert document.tolist() == [0, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert offset.tolist() == [0, 0, 0, 8, 0, 8, 16, 0, 8, 16]
    assert size.tolist() == [3, 8, 8, 1, 8, 8, 8, 8, 8, 1]


def pieces_of(block: dict[str, np.ndarray]) -> list[list[int]]:
    """The documents of a block, without its padding."""
    ids, positions = block["input_ids"], block["position_ids"]
    parts = np.split(ids, np.flatnonzero(positions == 0)[1:])
    return [part.tolist() for part in parts if not (part == END).all()]


@pytest.mark.parametrize("window", [10, 60, 1 << 20])
def test_every_token_comes_once_per_epoch_and_short_documents_whole(folder: Path, window: int) -> None:
    shards = TokenShards(folder, "train")
    documents = [shards.document(i).tolist() for i in range(shards.num_documents)]
    expected = sorted(d[i : i + SEQ_LENGTH] for d in documents for i in range(0, len(d), SEQ_LENGTH))
    blocks = BestFitBlocks(folder, "train", SEQ_LENGTH, seed=3, window=window)
    size = blocks.blocks_per_epoch
    blocks = BestFitBlocks(folder, "train", SEQ_LENGTH, seed=3, num_blocks=3 * size, window=window)
    orders = []
    for epoch in range(3):
        found = [blocks[epoch * size + i] for i in range(size)]
        assert sorted(p for block in found for p in pieces_of(block)) == expected
        orders.append([block["input_ids"].tolist() for block in found])
    assert orders[0] != orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_labels_and_padding(folder: Path) -> None:
    blocks = BestFitBlocks(folder, "train", SEQ_LENGTH, seed=0)
    ignored = 0
    for i in range(len(blocks)):
        block = blocks[i]
        starts = block["position_ids"] == 0
        padding = SEQ_LENGTH - sum(map(len, pieces_of(block)))
        kept = np.where(starts, IGNORED, block["input_ids"])
        kept[SEQ_LENGTH - padding :] = IGNORED
        assert block["labels"].tolist() == kept.tolist()
        assert (block["input_ids"][SEQ_LENGTH - padding :] == END).all()
        ignored += padding
    shares = blocks.packing_shares()
    assert shares["padding"] == pytest.approx(ignored / (len(blocks) * SEQ_LENGTH)) and ignored > 0
    lengths = blocks.shards.spans(np.arange(blocks.shards.num_documents))[2]
    assert shares["cut_documents"] == (lengths > SEQ_LENGTH).mean() > 0
    assert shares["cut_documents"] < TokenBlocks(folder, "train", SEQ_LENGTH, 0).packing_shares()["cut_documents"]


def test_documents_cut_by_joining_are_counted(folder: Path) -> None:
    blocks = TokenBlocks(folder, "train", SEQ_LENGTH, seed=0)
    number = blocks.shards.num_documents
    begun = [int((blocks[i]["position_ids"] == 0).sum()) for i in range(len(blocks))]
    # a block that begins inside a document has a position 0 that is no beginning
    inside = sum(block["labels"][0] != IGNORED for block in (blocks[i] for i in range(len(blocks))))
    whole = sum(begun) - inside
    assert whole in (number, number - 1, number - 2)  # the rest is in the next epoch's first block
    shares = blocks.packing_shares()
    assert shares["padding"] == 0 and 0 < shares["cut_documents"] <= (inside + 1) / number


def test_a_block_depends_only_on_seed_and_index(folder: Path) -> None:
    blocks = BestFitBlocks(folder, "train", SEQ_LENGTH, seed=5, num_blocks=150, window=50)
    expected = [blocks[i]["input_ids"].tolist() for i in range(150)]
    copy = pickle.loads(pickle.dumps(blocks))
    assert len(pickle.dumps(blocks)) < 2000 and copy.blocks_per_epoch == blocks.blocks_per_epoch
    for i in np.random.default_rng(0).permutation(150)[:40].tolist():
        assert copy[i]["input_ids"].tolist() == expected[i]
    (batch,) = blocks.__getitems__([3, 4, 5, 60])
    assert batch["input_ids"].tolist() == [expected[i] for i in (3, 4, 5, 60)]
    other = BestFitBlocks(folder, "train", SEQ_LENGTH, seed=6, num_blocks=150, window=50)
    assert [other[i]["input_ids"].tolist() for i in range(150)] != expected
