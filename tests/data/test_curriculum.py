"""Shorter sequences first: the same tokens at the same step, in rows that are sequences of their own."""

from pathlib import Path

import pytest
import torch

from ingot.data.assembly import collate
from ingot.data.curriculum import CurriculumBlocks, LengthSchedule
from ingot.data.packing import TokenBlocks

from .shard_toys import make_shards, some_lengths

BLOCKS_PER_STEP, STEPS = 4, 20
SCHEDULE = LengthSchedule([(8, 0.1), (16, 0.25)], 32, STEPS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TokenBlocks:
    """The blocks without a curriculum."""
    folder = make_shards(tmp_path_factory.mktemp("shards") / "run", [some_lengths(90, 4)])
    return TokenBlocks(folder, "train", 32, seed=1, num_blocks=STEPS * BLOCKS_PER_STEP)


def test_lengths_follow_the_shares_of_the_steps() -> None:
    assert [SCHEDULE.length_at(step) for step in range(STEPS)] == [8] * 2 + [16] * 5 + [32] * 13
    assert list(SCHEDULE.phases()) == [(8, 0, 2), (16, 2, 7), (32, 7, 20)]
    short = LengthSchedule([(8, 0.1), (16, 0.25)], 32, 3)  # too few steps for the first phase
    assert [short.length_at(step) for step in range(3)] == [16, 32, 32]
    assert list(short.phases()) == [(16, 0, 1), (32, 1, 3)]
    assert LengthSchedule([], 32, 5).length_at(0) == 32


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_every_step_has_the_tokens_that_it_had(plain: TokenBlocks, micro: int) -> None:
    blocks = CurriculumBlocks(plain, SCHEDULE, BLOCKS_PER_STEP)
    assert len(blocks) == len(plain)
    for begin in range(0, len(blocks), micro):
        indices, length = range(begin, begin + micro), SCHEDULE.length_at(begin // BLOCKS_PER_STEP)
        batch = collate(blocks.__getitems__(indices))
        assert batch["input_ids"].shape == (micro * 32 // length, length)
        one_by_one = collate([blocks[i] for i in indices])
        whole = collate([plain[i] for i in indices])
        for key in ("input_ids", "labels", "position_ids", "cu_seq_lens_q"):
            assert torch.equal(batch[key], one_by_one[key])
        for key in ("input_ids", "labels"):
            assert torch.equal(batch[key].view(-1, 32), whole[key])


def test_rows_begin_at_position_0_and_documents_too(plain: TokenBlocks) -> None:
    batch = collate(CurriculumBlocks(plain, SCHEDULE, BLOCKS_PER_STEP).__getitems__(range(4)))
    for row, positions in enumerate(batch["position_ids"].tolist()):
        expected = 0
        for column, position in enumerate(positions):
            starts = column == 0 or batch["input_ids"][row, column - 1] == 0  # END before it
            expected = 0 if starts else expected + 1
            assert position == expected


def test_a_row_of_full_length_is_the_block(plain: TokenBlocks, tmp_path: Path) -> None:
    blocks = CurriculumBlocks(plain, SCHEDULE, BLOCKS_PER_STEP)
    last = len(blocks) - 1
    for key, values in plain[last].items():
        assert blocks[last][key].tolist() == [values.tolist()]
