"""Corpora of several windows: every document once per epoch, mixed over the whole, the same from anywhere."""

from pathlib import Path

import numpy as np
import pytest

from ingot.data.packing import TokenBlocks
from ingot.data.shards import TokenShards
from ingot.data.windows import Windows, members, num_windows

from .shard_toys import END, make_shards, some_lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 documents in three shards, one of them of a single document."""
    return make_shards(tmp_path_factory.mktemp("shards") / "run", [some_lengths(n, n) for n in (60, 1, 39)])


def documents_of(folder: Path) -> list[list[int]]:
    shards = TokenShards(folder, "train")
    return [shards.document(i).tolist() for i in range(shards.num_documents)]


def test_every_document_is_in_one_window(folder: Path) -> None:
    shards = TokenShards(folder, "train")
    for window in (1, 7, 33, 100, 1000):
        number = num_windows(shards, window)
        parts = [members(shards, w, number) for w in range(number)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(100))
        assert max(map(len, parts)) <= window and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_spans_are_the_documents(folder: Path) -> None:
    shards = TokenShards(folder, "train")
    for documents in (np.arange(100), np.arange(2, 100, 7), np.array([60]), np.array([59, 60, 61]), np.array([99])):
        shard, start, length = shards.spans(documents)
        for i, document in enumerate(documents):
            found = shards.files[shard[i]][start[i] : start[i] + length[i]]
            assert found.tolist() == shards.document(document).tolist()
            assert found[-1] == END and (found[:-1] != END).all()


@pytest.mark.parametrize("window", [1, 9, 50, 100])
def test_every_document_comes_once_per_epoch(folder: Path, window: int) -> None:
    documents = documents_of(folder)
    total = sum(map(len, documents))
    blocks = TokenBlocks(folder, "train", 16, seed=4, num_blocks=3 * total // 16 + 1, window=window)
    stream = np.concatenate([blocks[i]["input_ids"] for i in range(len(blocks))]).tolist()
    orders = []
    for epoch in range(3):
        part = np.array(stream[epoch * total : (epoch + 1) * total])
        seen = [piece.tolist() for piece in np.split(part, np.flatnonzero(part == END) + 1)[:-1]]
        assert sorted(seen) == sorted(documents)
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    again = TokenBlocks(folder, "train", 16, seed=4, num_blocks=len(blocks), window=window)
    for i in np.random.default_rng(1).integers(0, len(blocks), 20).tolist():
        assert again[i]["input_ids"].tolist() == stream[i * 16 : i * 16 + 16]


def test_a_small_corpus_is_shuffled_as_a_whole(folder: Path) -> None:
    documents = documents_of(folder)
    order = [t for i in np.random.default_rng([7, 0]).permutation(100) for t in documents[i]]
    blocks = TokenBlocks(folder, "train", 16, seed=7)
    assert [t for i in range(len(blocks)) for t in blocks[i]["input_ids"].tolist()] == order[: len(blocks) * 16]


def test_places_in_windows() -> None:
    windows = Windows([3, 5, 2], seed=0)
    for epoch in range(4):
        places = [windows.locate(epoch * 10 + i) for i in range(10)]
        assert {e for e, _, _ in places} == {epoch}
        assert sorted((w, p) for _, w, p in places) == [
            (w, p) for w, size in enumerate((3, 5, 2)) for p in range(size)
        ]
        assert all(b[2] == a[2] + 1 or b[2] == 0 for a, b in zip(places, places[1:], strict=False))
    assert len({tuple(windows._order(epoch)[0]) for epoch in range(6)}) > 1
