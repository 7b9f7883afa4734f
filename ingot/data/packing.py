"""Blocks of equal length for training and evaluation, cut from the documents of a prepare_data folder.

Documents are joined and cut. Position ids restart at every document, which is what tells the model to keep documents
apart (it needs no attention mask), and the label of a document's first token is -100, so that no document predicts
another. Labels are not shifted; the model shifts them.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.shards import TokenShards
from ingot.recipe import InputError

IGNORED = -100  # the label that a loss leaves out
Block = dict[str, NDArray[np.int64]]
Piece = tuple[NDArray[Any], bool]  # consecutive tokens of one document; whether the document begins with them


class _Order:
    """The documents of one epoch in their order, joined into one stream."""

    def __init__(self, shards: TokenShards, permutation: NDArray[np.int64]) -> None:
        self.files = shards.files
        self.shard = shards.shard[permutation]
        self.start = shards.start[permutation]
        self.ends = np.cumsum(shards.length[permutation])  # in the stream

    def pieces(self, begin: int, end: int) -> Iterator[Piece]:
        """The tokens of the stream from `begin` to before `end`, document by document."""
        index = int(self.ends.searchsorted(begin, side="right"))
        document_begin = int(self.ends[index - 1]) if index else 0
        while begin < end:
            document_end = int(self.ends[index])
            upto, offset = min(end, document_end), int(self.start[index]) - document_begin
            yield self.files[self.shard[index]][begin + offset : upto + offset], begin == document_begin
            begin, document_begin, index = upto, document_end, index + 1


class TokenBlocks:
    """A map-style dataset of `num_blocks` training blocks over as many epochs as that takes.

    Block i is tokens [i * seq_length, (i + 1) * seq_length) of an endless stream: epoch after epoch, each with all
    documents in an order drawn from (seed, epoch). So block i depends only on (seed, i), every token comes once per
    epoch, and a run continues anywhere. Read it in order (a sequential sampler): the shuffling is done here.

    Shapes: `input_ids`, `labels` and `position_ids` of a block are int64 [seq_length].
    Raises: InputError when the folder has no such split.
    """

    def __init__(self, folder: Path, split: str, seq_length: int, seed: int, num_blocks: int | None = None) -> None:
        self.shards = TokenShards(folder, split)
        self.seq_length, self.seed = seq_length, seed
        self.num_blocks = self.blocks_per_epoch if num_blocks is None else num_blocks
        if self.num_blocks < 1:
            tokens = self.shards.num_tokens
            raise InputError(f"{folder}: split '{split}' has {tokens} tokens, less than one block of {seq_length}")
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._arguments = (folder, split, seq_length, seed, self.num_blocks)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files itself."""
        return TokenBlocks, self._arguments

    @property
    def blocks_per_epoch(self) -> int:
        """Whole blocks in one pass over the documents; what is left over begins the next epoch."""
        return self.shards.num_tokens // self.seq_length

    def _make_order(self, epoch: int) -> _Order:
        generator = np.random.default_rng([self.seed, epoch])
        return _Order(self.shards, generator.permutation(self.shards.num_documents))

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        return assemble(self._pieces(index * self.seq_length), self.seq_length, self.shards.end_of_document)

    def _pieces(self, begin: int) -> Iterator[Piece]:
        """The pieces of the block that begins there; it may reach into the next epoch."""
        epoch, begin = divmod(begin, self.shards.num_tokens)
        missing = self.seq_length
        while missing:
            size = min(missing, self.shards.num_tokens - begin)
            yield from self._order(epoch).pieces(begin, begin + size)
            epoch, begin, missing = epoch + 1, 0, missing - size


class EvaluationBlocks:
    """A map-style dataset in which every token of a split is predicted exactly once, but the first of each document.

    Documents come in the order of the files. A block repeats the last token of the one before it, because a block's
    first token is never predicted; the last block is filled up with tokens whose labels are ignored.

    Shapes: as TokenBlocks. Raises: InputError when the folder has no such split.
    """

    def __init__(self, folder: Path, split: str, seq_length: int) -> None:
        if seq_length < 2:
            raise InputError(f"a block of {seq_length} token predicts nothing; set seq_length to 2 or more")
        self.shards = TokenShards(folder, split)
        self.seq_length = seq_length
        self.order = _Order(self.shards, np.arange(self.shards.num_documents))

    @property
    def num_targets(self) -> int:
        """Labels that count, over all blocks."""
        return self.shards.num_tokens - self.shards.num_documents

    @property
    def bytes_per_target(self) -> float:
        """Bytes of text for every label that counts: bits per byte = nats per target / ln 2 / bytes_per_target."""
        return self.shards.bytes_per_token

    def __len__(self) -> int:
        return max(1, -(-(self.shards.num_tokens - 1) // (self.seq_length - 1)))

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        begin = index * (self.seq_length - 1)
        end = min(begin + self.seq_length, self.shards.num_tokens)
        block = assemble(self.order.pieces(begin, end), self.seq_length, self.shards.end_of_document)
        block["labels"][0] = IGNORED  # predicted by the block before
        return block


def assemble(pieces: Iterator[Piece], seq_length: int, filler: int) -> Block:
    """Joins pieces of documents to one block; a rest that they leave is filled up with ignored tokens."""
    input_ids = np.full(seq_length, filler, np.int64)
    position_ids = np.arange(seq_length)
    starts, at = [], 0
    for tokens, is_start in pieces:
        size = len(tokens)
        input_ids[at : at + size] = tokens
        if at:
            position_ids[at : at + size] = np.arange(size)
        if is_start:
            starts.append(at)
        at += size
    labels = input_ids.copy()
    labels[starts] = IGNORED
    if at < seq_length:
        labels[at:] = IGNORED
        position_ids[at:] = np.arange(seq_length - at)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
