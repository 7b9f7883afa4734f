"""Large corpora in parts: windows of documents that are shuffled or packed one at a time, with flat memory.

Window w of m holds the documents w, w + m, w + 2m, ... in the order of the files, so that every window is a sample of
the whole corpus. A corpus of up to WINDOW documents is one window.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ingot.data.shards import TokenShards

WINDOW = 1 << 20  # documents; a window's tables take about 20 bytes for each
DOCUMENTS, WINDOWS, PACKING, MIXTURE = range(4)  # what is drawn from a seed


def generator(seed: int, epoch: int, window: int = 0, what: int = DOCUMENTS) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (numpy takes missing numbers for zeros)."""
    return np.random.default_rng([seed, epoch, window, what])


def permutation(size: int, seed: int, epoch: int, window: int = 0, what: int = DOCUMENTS) -> NDArray[np.int64]:
    """An order drawn from the other arguments."""
    return generator(seed, epoch, window, what).permutation(size)


class Windows:
    """The windows of a split, and their order in every epoch.

    `sizes[w]` is what a window holds, in units of the caller's: tokens, or blocks.
    """

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.seed, self.total = sizes, seed, sum(sizes)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> tuple[list[int], list[int]]:
        order = permutation(len(self.sizes), self.seed, epoch, what=WINDOWS).tolist()
        return order, list(accumulate(self.sizes[window] for window in order))

    def locate(self, index: int) -> tuple[int, int, int]:
        """Epoch, window and place in it of unit `index` of an endless stream, epoch after epoch."""
        epoch, index = divmod(index, self.total)
        order, ends = self._order(epoch)
        at = bisect_right(ends, index)
        return epoch, order[at], index - (ends[at - 1] if at else 0)


def num_windows(shards: TokenShards, window: int = WINDOW, pieces: int | None = None) -> int:
    """How many windows the documents make, each of about `window` documents, or `pieces` where they are cut before."""
    return min(shards.num_documents, -(-(pieces or shards.num_documents) // window))


def members(shards: TokenShards, window: int, num_windows: int) -> NDArray[np.int64]:
    """The numbers of a window's documents, sorted."""
    return np.arange(window, shards.num_documents, num_windows)
