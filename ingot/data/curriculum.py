"""Curriculum on sequence length: the same tokens in the same order, first in shorter rows.

A block is cut into rows, each a sequence of its own: early steps have more and shorter sequences and spend less on
attention; every step has as many tokens.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from ingot.data.assembly import Block, Blocks, in_rows


class LengthSchedule:
    """The sequence length of every step: shorter ones for their share of the steps, in order, then the full one."""

    def __init__(self, shorter: Sequence[tuple[int, float]], seq_length: int, num_steps: int) -> None:
        """`shorter`: (sequence length, share of the steps)."""
        self.lengths = [*(length for length, _ in shorter), seq_length]
        self.ends = [round(end * num_steps) for end in accumulate(share for _, share in shorter)]
        self.num_steps = num_steps

    def length_at(self, step: int) -> int:
        """Tokens of a sequence in a step; the first step is 0."""
        return self.lengths[bisect_right(self.ends, step)]

    def phases(self) -> Iterator[tuple[int, int, int]]:
        """(sequence length, first step, end): the steps from `first` to before `end`."""
        for length, begin, end in zip(self.lengths, [0, *self.ends], [*self.ends, self.num_steps], strict=True):
            if begin < end:
                yield length, begin, end


class CurriculumBlocks:
    """A map-style dataset: the blocks of another, in rows of the length of the step that reads them.

    Shapes: `input_ids`, `labels` and `position_ids` are int64 [seq_length / length, length].
    """

    def __init__(self, blocks: Blocks, schedule: LengthSchedule, blocks_per_step: int) -> None:
        self.blocks, self.schedule, self.blocks_per_step = blocks, schedule, blocks_per_step

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return in_rows(self.blocks[index], self._length_of(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Block]:
        """A batch for `collate`, which lies within one step."""
        length = self._length_of(indices[0])
        assert length == self._length_of(indices[-1])
        return [in_rows(batch, length) for batch in self.blocks.__getitems__(indices)]

    def _length_of(self, index: int) -> int:
        return self.schedule.length_at(index // self.blocks_per_step)
