"""Mixtures: weights within every thousand blocks, every source a stream of its own, the same from anywhere."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ingot.data.best_fit import BestFitBlocks
from ingot.data.mixture import Assignment, MixtureBlocks
from ingot.data.packing import TokenBlocks

from .shard_toys import make_shards, some_lengths

MIXES = [[0.7, 0.3], [1.0], [3, 1, 1], [0.5, 0.333333, 0.166667], [0.001, 0.999], [1, 0.0123, 0.4, 0.07, 0.03]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[TokenBlocks | BestFitBlocks]:
    """Two sources whose stream is read from any place."""
    root = tmp_path_factory.mktemp("shards")
    folders = [make_shards(root / name, [some_lengths(n, n)], seed=n) for name, n in (("a", 60), ("b", 25))]
    return [TokenBlocks(folders[0], "train", 32, 1, 999), BestFitBlocks(folders[1], "train", 32, 1, 999)]


@pytest.mark.parametrize("weights", MIXES)
def test_weights_hold_within_every_thousand_blocks(weights: list[float]) -> None:
    assignment = Assignment(weights, seed=3)
    found = np.array([assignment.locate(i)[0] for i in range(7500)])
    shares = np.array(weights) / sum(weights)
    for source, share in enumerate(shares):
        so_far = np.cumsum(np.concatenate([[0], found == source]))
        rounds = so_far[::1000] - share * np.arange(0, 7501, 1000)
        assert np.abs(rounds).max() <= 1
        assert np.abs(np.diff(rounds)).max() <= 2
        anywhere = so_far[1000:] - so_far[:-1000] - share * 1000
        assert np.abs(anywhere).max() <= 3


@pytest.mark.parametrize("weights", MIXES)
def test_every_source_is_read_from_its_first_block_on(weights: list[float]) -> None:
    assignment = Assignment(weights, seed=0)
    found = [assignment.locate(i) for i in range(3210)]
    for source in range(len(weights)):
        blocks = [block for s, block in found if s == source]
        assert blocks == list(range(len(blocks)))
    for size in (0, 1, 999, 1000, 1001, 3210):
        sources = [s for s, _ in found[:size]]
        assert assignment.counts(size) == [sources.count(s) for s in range(len(weights))]


def test_the_order_depends_only_on_weights_seed_and_index() -> None:
    found = [Assignment([0.6, 0.4], 5).locate(i) for i in range(2000)]
    again = Assignment([3, 2], 5)
    assert [again.locate(i) for i in reversed(range(2000))] == found[::-1]
    assert [Assignment([0.6, 0.4], 6).locate(i) for i in range(2000)] != found


def test_blocks_are_those_of_the_sources(sources: list[TokenBlocks | BestFitBlocks]) -> None:
    blocks = MixtureBlocks(sources, [0.75, 0.25], seed=2, num_blocks=400)
    copy = pickle.loads(pickle.dumps(blocks))
    (batch,) = blocks.__getitems__(range(400))
    for i in range(400):
        source, number = blocks.assignment.locate(i)
        expected, found = sources[source][number], copy[i]
        for key, values in expected.items():
            assert (batch[key][i] == values).all() and (found[key] == values).all()
    with pytest.raises(IndexError, match="block 400 of 400"):
        blocks[400]


def test_a_source_is_read_again_when_it_ends(sources: list[TokenBlocks | BestFitBlocks], tmp_path: Path) -> None:
    small = sources[1]
    size = small.blocks_per_epoch
    blocks = MixtureBlocks(sources, [1, 1], seed=2, num_blocks=6 * size)
    rows = [blocks[i]["input_ids"].tolist() for i in range(6 * size) if blocks.assignment.locate(i)[0] == 1]
    epochs = [rows[e * size : (e + 1) * size] for e in range(3)]
    assert len(rows) == 3 * size and sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1]
