"""Blocks of token ids with position ids and labels, one at a time or a batch at once.

Position ids restart at every document, which is what tells the model to keep documents apart (it needs no attention
mask), and the label of a document's first token is -100, so that no document predicts another. Labels are not shifted;
the model shifts them.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100  # the label that a loss leaves out
Block = dict[str, NDArray[np.int64]]


class Tokens:
    """Room for `size` tokens, which is filled from the first on, piece by piece."""

    def __init__(self, size: int) -> None:
        self.input_ids, self.labels, self.position_ids = np.empty((3, size), np.int64)
        self.size, self.at = size, 0
        self.starts: list[int] = []  # tokens that none before them predicts
        self.padding: list[tuple[int, int]] = []

    def pad(self, upto: int, filler: int) -> None:
        """Fills the room before `upto` with tokens that are ignored."""
        if self.at < upto:
            self.input_ids[self.at : upto] = filler
            self.position_ids[self.at : upto] = counting(self.size)[: upto - self.at]
            self.padding.append((self.at, upto))
            self.at = upto

    def finish(self) -> Block:
        """The tokens with their labels; shapes [size]."""
        labels = self.labels
        labels[:] = self.input_ids
        for start in self.starts:
            labels[start] = IGNORED
        for begin, end in self.padding:
            labels[begin:end] = IGNORED
        return {"input_ids": self.input_ids, "labels": labels, "position_ids": self.position_ids}


@lru_cache(maxsize=16)
def counting(size: int) -> NDArray[np.int64]:
    """0, 1, 2, ..., made once; to be read only."""
    return np.arange(size)


class Blocks:
    """A map-style dataset of blocks of `seq_length` tokens; whoever inherits says how a run of blocks is written.

    Shapes: `input_ids`, `labels` and `position_ids` of a block are int64 [seq_length].
    """

    seq_length: int
    num_blocks: int

    @abstractmethod
    def write(self, tokens: Tokens, index: int, count: int) -> None:
        """Appends `count` blocks from `index` on."""

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        tokens = Tokens(self.seq_length)
        self.write(tokens, index, 1)
        return tokens.finish()

    def __getitems__(self, indices: Sequence[int]) -> list[Block]:
        """A batch for `collate`, in one piece: a list of one block in rows [len(indices), seq_length]."""
        if not 0 <= min(indices) <= max(indices) < self.num_blocks:
            raise IndexError(f"blocks {min(indices)} to {max(indices)} of {self.num_blocks}")
        tokens = Tokens(len(indices) * self.seq_length)
        for index, count in runs(indices):
            self.write(tokens, index, count)
        return [in_rows(tokens.finish(), self.seq_length)]


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers among the indices: (first, how many)."""
    edges = [i for i, (a, b) in enumerate(pairwise(indices), start=1) if b != a + 1]
    for begin, end in pairwise([0, *edges, len(indices)]):
        yield indices[begin], end - begin


def in_rows(block: Block, length: int) -> Block:
    """The tokens in rows [rows, length]; each row is a sequence of its own, so that its position ids begin with 0."""
    rows = {key: values.reshape(-1, length) for key, values in block.items()}
    # in a row's first document ids count on from the row before and are too large, in the others they are right
    np.minimum(rows["position_ids"], counting(length), out=rows["position_ids"])
    return rows


def collate(blocks: list[Block]) -> dict[str, Any]:
    """A batch of blocks [seq_length] or blocks in rows [rows, length], as int64 tensors [rows of all, length].

    There is no attention mask: one would take away the walls between documents. Where they begin is told twice, by
    the position ids and, for kernels without a mask, in upstream's names by `cu_seq_lens_q` and the rest.
    """
    if len(blocks) == 1:
        batch: dict[str, Any] = {key: torch.from_numpy(np.atleast_2d(values)) for key, values in blocks[0].items()}
    else:
        length = blocks[0]["input_ids"].shape[-1]
        keys = blocks[0].keys()
        batch = {k: torch.from_numpy(np.concatenate([b[k] for b in blocks])).view(-1, length) for k in keys}
    return batch | lengths_of_documents(batch["position_ids"].numpy())


def lengths_of_documents(position_ids: NDArray[np.int64]) -> dict[str, Any]:
    """Begins of the documents in the flattened rows, and the end of the last, as upstream's flash kernels take them.

    Where rows hold several documents, documents of no length fill up the next power of two: compiled layers are
    compiled anew for every other number. The maximum is the row's length, for the same reason.
    """
    begins = np.flatnonzero(position_ids == 0)
    size = len(begins) if len(begins) == len(position_ids) else 2 ** len(begins).bit_length()
    bounds = np.full(size + 1, position_ids.size, np.int32)
    bounds[: len(begins)] = begins
    tensor, longest = torch.from_numpy(bounds), position_ids.shape[-1]
    return {"cu_seq_lens_q": tensor, "cu_seq_lens_k": tensor, "max_length_q": longest, "max_length_k": longest}


class Documents:
    """Documents of a split in some order, joined to one stream of tokens."""

    def __init__(
        self,
        files: list[NDArray[Any]],
        shard: NDArray[np.int32],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
    ) -> None:
        """Document d is `files[shard[d]][start[d] : start[d] + length[d]]`."""
        self.files, self.shard = files, shard
        self.ends = np.cumsum(length)
        self.shift = start - self.ends + length  # from a place in the stream to the place in the document's file

    def write(self, tokens: Tokens, begin: int, upto: int) -> None:
        """Appends the stream from its token `begin` on, until the room before `upto` is full or the stream ends."""
        ends, files, starts, move = self.ends, self.files, tokens.starts, tokens.at - begin
        input_ids, position_ids, count = tokens.input_ids, tokens.position_ids, counting(tokens.size)
        end = min(upto - move, int(ends[-1]))
        first, last = int(ends.searchsorted(begin, "right")), int(ends.searchsorted(end)) + 1
        document_begin = int(ends[first - 1]) if first else 0
        table = (self.shard[first:last].tolist(), self.shift[first:last].tolist(), ends[first:last].tolist())
        for shard, shift, document_end in zip(*table, strict=True):
            if begin == document_begin:
                starts.append(begin + move)
            stop = min(document_end, end)
            input_ids[begin + move : stop + move] = files[shard][begin + shift : stop + shift]
            position_ids[begin + move : stop + move] = count[: stop - begin]
            begin = document_begin = document_end
        tokens.at = end + move
