"""Blocks of whole documents: only what is longer than a block is cut, and a block is filled up with padding.

Best fit decreasing: pieces are placed from the longest to the shortest, each into the block that it leaves least room
in (Johnson 1974; for language models Ding et al. 2024, arXiv:2404.10830). Pieces of equal length are placed together,
so that the work grows with the number of different lengths and only the sorting with the number of documents.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.assembly import Blocks, Tokens, counting
from ingot.data.shards import TokenShards
from ingot.data.windows import PACKING, WINDOW, Windows, members, num_windows, permutation

Numbers = NDArray[np.int64]


class _Gaps:
    """Blocks that have room left, by how much."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # sorted
        self.blocks: dict[int, list[Numbers]] = {}

    def put(self, size: int, blocks: Numbers) -> None:
        """Notes blocks with `size` tokens of room."""
        if size and len(blocks):
            if size not in self.blocks:
                insort(self.sizes, size)
            self.blocks.setdefault(size, []).append(blocks)

    def take(self, least: int) -> tuple[int, Numbers] | None:
        """The blocks with the smallest room of at least `least`; they are no longer noted."""
        at = bisect_left(self.sizes, least)
        if at == len(self.sizes):
            return None
        size = self.sizes.pop(at)
        return size, np.concatenate(self.blocks.pop(size))


def best_fit(lengths: Numbers, capacity: int) -> tuple[Numbers, int]:
    """The block of every piece, and the number of blocks.

    `lengths` are those of the pieces, longest first, none over `capacity`.
    """
    assigned = np.empty(len(lengths), np.int64)
    edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
    gaps, num_blocks = _Gaps(), 0
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        length = int(lengths[begin])
        while begin < end:
            found = gaps.take(length)
            if found is None:
                size, new = capacity, -(-(end - begin) // (capacity // length))
                blocks = np.arange(num_blocks, num_blocks + new)
                num_blocks += new
            else:
                size, blocks = found
            # one block takes as many as fit before the next is begun: its room is then the smallest that suffices
            each = size // length
            placed = min(end - begin, each * len(blocks))
            assigned[begin : begin + placed] = np.repeat(blocks, each)[:placed]
            full, rest = divmod(placed, each)
            gaps.put(size - each * length, blocks[:full])
            gaps.put(size - rest * length, blocks[full : full + 1])
            gaps.put(size, blocks[full + 1 :])
            begin += placed
    return assigned, num_blocks


@dataclass
class _Packed:
    """The pieces of a window, block by block: those of block b are first[b] to before first[b + 1]."""

    shard: NDArray[np.int32]
    start: Numbers  # in the shard
    size: NDArray[np.int32]
    first: Numbers

    def write(self, tokens: Tokens, block: int, files: list[NDArray[Any]]) -> None:
        """Appends the pieces of a block."""
        span = slice(*self.first[block : block + 2].tolist())
        input_ids, position_ids, count, begin = tokens.input_ids, tokens.position_ids, counting(tokens.size), tokens.at
        table = (self.shard[span].tolist(), self.start[span].tolist(), self.size[span].tolist())
        for shard, start, size in zip(*table, strict=True):
            tokens.starts.append(begin)
            end = begin + size
            input_ids[begin:end] = files[shard][start : start + size]
            position_ids[begin:end] = count[:size]
            begin = end
        tokens.at = begin


def cut(length: Numbers, seq_length: int) -> tuple[Numbers, Numbers, Numbers]:
    """Pieces of at most `seq_length` tokens: the document of each, its offset in it and its size."""
    number = -(-length // seq_length)
    document = np.repeat(np.arange(len(length)), number)
    offset = (np.arange(len(document)) - np.repeat(np.cumsum(number) - number, number)) * seq_length
    return document, offset, np.minimum(length[document] - offset, seq_length)


class BestFitBlocks(Blocks):
    """A map-style dataset of `num_blocks` training blocks over as many epochs as that takes, as TokenBlocks is.

    What lies together in a block is the same in every epoch and drawn from the seed (among pieces of equal length);
    the order of the blocks is drawn from (seed, epoch). Padding is ignored in the loss.
    Raises: InputError when the folder has no such split.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        seq_length: int,
        seed: int,
        num_blocks: int | None = None,
        window: int = WINDOW,
        sizes: list[int] | None = None,
    ) -> None:
        """`sizes`: blocks of every window, where they are known."""
        self.shards = TokenShards(folder, split)
        self.seq_length, self.seed = seq_length, seed
        pieces = self.shards.num_documents + self.shards.num_tokens // seq_length
        self._num_windows = num_windows(self.shards, window, pieces)
        if sizes is None:
            sizes = [self._count(w) for w in range(self._num_windows)]
        self._packed = lru_cache(maxsize=2)(self._pack)
        self.windows = Windows(sizes, seed)
        self.num_blocks = self.blocks_per_epoch if num_blocks is None else num_blocks
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._arguments = (folder, split, seq_length, seed, self.num_blocks, window, sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files itself."""
        return BestFitBlocks, self._arguments

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks that hold every document once."""
        return self.windows.total

    @property
    def epochs(self) -> float:
        """Passes over the documents."""
        return self.num_blocks / self.blocks_per_epoch

    def _count(self, window: int) -> int:
        """Blocks of a window, for which the lengths are enough."""
        length = self.shards.spans(members(self.shards, window, self._num_windows))[2]
        rest = length % self.seq_length
        left_out = int(((length - rest) // self.seq_length).sum())  # full blocks
        return left_out + best_fit(-np.sort(-rest[rest > 0]), self.seq_length)[1]

    def _pack(self, window: int) -> _Packed:
        shard, start, length = self.shards.spans(members(self.shards, window, self._num_windows))
        document, offset, size = cut(length, self.seq_length)
        drawn = permutation(len(size), self.seed, 0, window, PACKING)
        order = drawn[np.argsort(-size[drawn], kind="stable")]
        block, number = best_fit(size[order], self.seq_length)
        order = order[np.argsort(block, kind="stable")]
        document = document[order]
        first = np.cumsum(np.bincount(block + 1, minlength=number + 1))
        return _Packed(shard[document], start[document] + offset[order], size[order].astype(np.int32), first)

    def _make_order(self, epoch: int, window: int) -> Numbers:
        return permutation(self.windows.sizes[window], self.seed, epoch, window)

    def write(self, tokens: Tokens, index: int, count: int) -> None:
        for number in range(index, index + count):
            epoch, window, place = self.windows.locate(number)
            packed = self._packed(window)
            packed.write(tokens, int(self._order(epoch, window)[place]), self.shards.files)
            tokens.pad(-(-tokens.at // self.seq_length) * self.seq_length, self.shards.end_of_document)

    def packing_shares(self) -> dict[str, float]:
        """Shares of the blocks that is padding and of the documents that are cut because they are longer than one."""
        documents = (members(self.shards, window, self._num_windows) for window in range(self._num_windows))
        longer = sum(int((self.shards.spans(d)[2] > self.seq_length).sum()) for d in documents)
        return {
            "padding": 1 - self.shards.num_tokens / (self.blocks_per_epoch * self.seq_length),
            "cut_documents": longer / self.shards.num_documents,
        }
