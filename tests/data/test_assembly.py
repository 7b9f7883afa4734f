"""Blocks one at a time and a batch at once are the same; rows are sequences of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler, default_collate

from ingot.data.assembly import IGNORED, Tokens, collate, in_rows, runs
from ingot.data.packing import TokenBlocks

from .shard_toys import make_shards, some_lengths


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> TokenBlocks:
    """Blocks of 32 over several epochs."""
    folder = make_shards(tmp_path_factory.mktemp("shards") / "run", [some_lengths(n, n) for n in (50, 30)])
    return TokenBlocks(folder, "train", 32, seed=1, num_blocks=120)


@pytest.mark.parametrize("indices", [[3], [0, 1, 2, 3], [5, 6, 9, 2, 3, 4], list(range(30, 75))])
def test_a_batch_is_its_blocks(blocks: TokenBlocks, indices: list[int]) -> None:
    expected = default_collate([blocks[i] for i in indices])
    for batch in (collate(blocks.__getitems__(indices)), collate([blocks[i] for i in indices])):
        assert expected.keys() == {"input_ids", "labels", "position_ids"}
        for key, tensor in expected.items():
            assert batch[key].dtype == torch.int64 and torch.equal(batch[key], tensor), key


def test_a_batch_says_where_its_documents_begin() -> None:
    rows = [np.array([0, 1, 2, 0, 1, 0]), np.array([0, 1, 2, 3, 4, 5])]
    batch = collate([{"input_ids": ids, "labels": ids, "position_ids": ids} for ids in rows])
    # three documents and one, and documents of no length up to the next power of two
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 6] + [12] * 5
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 6  # of a row, so that layers are compiled once
    whole = collate([{"input_ids": ids, "labels": ids, "position_ids": ids} for ids in rows[1:] * 2])
    assert whole["cu_seq_lens_q"].tolist() == [0, 6, 12]  # by its length the model sees that no mask is needed


def test_a_data_loader_gives_the_blocks_in_order(blocks: TokenBlocks) -> None:
    loader = DataLoader(blocks, batch_size=7, sampler=SequentialSampler(blocks), collate_fn=collate)  # type: ignore
    found = torch.cat([batch["input_ids"] for batch in loader])
    assert found.tolist() == [blocks[i]["input_ids"].tolist() for i in range(120)]


def test_indices_outside_are_refused(blocks: TokenBlocks) -> None:
    for indices in ([119, 120], [-1, 0]):
        with pytest.raises(IndexError, match="of 120"):
            blocks.__getitems__(indices)


def test_runs_are_consecutive_numbers() -> None:
    assert list(runs([4])) == [(4, 1)]
    assert list(runs(range(3, 9))) == [(3, 6)]
    assert list(runs([5, 6, 2, 3, 3, 9])) == [(5, 2), (2, 2), (3, 1), (9, 1)]


def test_position_ids_restart_with_every_row_and_every_document() -> None:
    tokens = Tokens(12)
    tokens.input_ids[:] = np.arange(100, 112)
    tokens.position_ids[:] = [7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 0, 1]  # documents begin at 3 and 10
    tokens.starts, tokens.padding = [3, 10], [(11, 12)]
    rows = in_rows(tokens.finish(), 4)
    assert rows["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 0, 1]]
    assert rows["input_ids"].ravel().tolist() == list(range(100, 112))
    assert rows["labels"].ravel().tolist() == [100, 101, 102, IGNORED, *range(104, 110), IGNORED, IGNORED]


def test_a_copy_in_a_worker_gives_the_same(blocks: TokenBlocks, tmp_path: Path) -> None:
    loader = DataLoader(
        blocks, batch_size=8, sampler=SequentialSampler(blocks), collate_fn=collate, num_workers=1,  # type: ignore
        multiprocessing_context="fork",
    )  # fmt: skip
    for number, batch in enumerate(loader):
        assert torch.equal(batch["labels"], collate([blocks[8 * number + i] for i in range(8)])["labels"])
