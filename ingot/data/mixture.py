"""Several sources in one stream of blocks, by weights that hold within every thousand."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import lcm
from typing import Any

import numpy as np

from ingot.data.assembly import Blocks, Tokens
from ingot.data.windows import MIXTURE, generator

ROUND = 1000  # blocks within which the weights hold


class Assignment:
    """Which source a block of the mixture is from, and which of that source's blocks it is.

    In rounds of 1,000 blocks: after every round each source has had its share of all blocks so far to within one, and
    in a round its blocks are spread evenly, from an offset drawn from (seed, round).
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        """`weights` need not add up to one; none may be below 1 / ROUND of their sum."""
        exact = [Fraction(str(weight)) for weight in weights]
        whole = lcm(*(f.denominator for f in exact))
        self._sums = list(accumulate(int(f * whole) for f in exact))
        self.shares = [float(f / sum(exact)) for f in exact]
        self.seed = seed
        assert min(self.shares) >= 1 / ROUND
        self._round = lru_cache(maxsize=2)(self._make_round)

    def _before(self, number: int) -> list[int]:
        """Blocks of every source before a round: differences of rounded sums, so that they add up."""
        total, blocks = self._sums[-1], number * ROUND
        ends = [(2 * blocks * part + total) // (2 * total) for part in self._sums]
        return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _make_round(self, number: int) -> tuple[list[int], list[int]]:
        before, after = self._before(number), self._before(number + 1)
        offsets = generator(self.seed, number, what=MIXTURE).random(len(before))
        sizes = [end - begin for begin, end in zip(before, after, strict=True)]
        places = np.concatenate([(np.arange(n) + u) / max(n, 1) for n, u in zip(sizes, offsets, strict=True)])
        order = np.argsort(places, kind="stable")
        sources = np.repeat(np.arange(len(sizes)), sizes)[order]
        blocks = np.concatenate([np.arange(b, e) for b, e in zip(before, after, strict=True)])[order]
        return sources.tolist(), blocks.tolist()

    def locate(self, index: int) -> tuple[int, int]:
        """The source of block `index` of the mixture, and the number of the block in that source."""
        number, place = divmod(index, ROUND)
        sources, blocks = self._round(number)
        return sources[place], blocks[place]

    def counts(self, num_blocks: int) -> list[int]:
        """Blocks of every source among the first `num_blocks`."""
        number, place = divmod(num_blocks, ROUND)
        sources, _ = self._round(number)
        return [b + sources[:place].count(i) for i, b in enumerate(self._before(number))]


class MixtureBlocks(Blocks):
    """A map-style dataset of `num_blocks` blocks from several sources, each with a stream of its own.

    A source's stream has no end: it comes again and again, every document of it once in each of its own epochs.
    """

    def __init__(self, sources: Sequence[Blocks], weights: Sequence[float], seed: int, num_blocks: int) -> None:
        assert len({source.seq_length for source in sources}) == 1
        self.sources, self.assignment = list(sources), Assignment(weights, seed)
        self.seq_length, self.num_blocks = sources[0].seq_length, num_blocks
        self._arguments = (self.sources, tuple(weights), seed, num_blocks)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files itself."""
        return MixtureBlocks, self._arguments

    def write(self, tokens: Tokens, index: int, count: int) -> None:
        for number in range(index, index + count):
            source, block = self.assignment.locate(number)
            self.sources[source].write(tokens, block, 1)
