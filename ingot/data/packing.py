"""Documents joined and cut into blocks of equal length, for training and for evaluation."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ingot.data.assembly import IGNORED, Block, Blocks, Documents, Tokens
from ingot.data.shards import TokenShards
from ingot.data.windows import WINDOW, Windows, members, num_windows, permutation
from ingot.recipe import InputError


class TokenBlocks(Blocks):
    """A map-style dataset of `num_blocks` training blocks over as many epochs as that takes.

    Block i is tokens [i * seq_length, (i + 1) * seq_length) of an endless stream: epoch after epoch, each with all
    documents in an order drawn from (seed, epoch). So block i depends only on (seed, i), every token comes once per
    epoch, and a run continues anywhere. Read it in order (a sequential sampler): the shuffling is done here.

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
    ) -> None:
        self.shards = TokenShards(folder, split)
        self.seq_length, self.seed = seq_length, seed
        self.num_blocks = self.blocks_per_epoch if num_blocks is None else num_blocks
        if self.num_blocks < 1:
            tokens = self.shards.num_tokens
            raise InputError(f"{folder}: split '{split}' has {tokens} tokens, less than one block of {seq_length}")
        self.windows = Windows(self._window_sizes(window), seed)
        self._documents = lru_cache(maxsize=2)(self._make_documents)
        self._arguments = (folder, split, seq_length, seed, self.num_blocks, window)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the files itself."""
        return TokenBlocks, self._arguments

    @property
    def blocks_per_epoch(self) -> int:
        """Whole blocks in one pass over the documents; what is left over begins the next epoch."""
        return self.shards.num_tokens // self.seq_length

    @property
    def epochs(self) -> float:
        """Passes over the documents."""
        return self.num_blocks * self.seq_length / self.shards.num_tokens

    def _window_sizes(self, window: int) -> list[int]:
        """Tokens of every window."""
        number = num_windows(self.shards, window)
        if number == 1:
            return [self.shards.num_tokens]
        return [int(self.shards.spans(members(self.shards, w, number))[2].sum()) for w in range(number)]

    def _make_documents(self, epoch: int, window: int) -> Documents:
        documents = members(self.shards, window, len(self.windows.sizes))
        order = permutation(len(documents), self.seed, epoch, window)
        shard, start, length = self.shards.spans(documents)
        return Documents(self.shards.files, shard[order], start[order], length[order])

    def write(self, tokens: Tokens, index: int, count: int) -> None:
        begin = index * self.seq_length - tokens.at
        full = tokens.at + count * self.seq_length
        while tokens.at < full:
            epoch, window, place = self.windows.locate(begin + tokens.at)
            self._documents(epoch, window).write(tokens, place, full)

    def packing_shares(self) -> dict[str, float]:
        """Shares of the blocks that is padding (none) and of the documents that are cut; of the first window's."""
        _, window, _ = self.windows.locate(0)
        ends = self._documents(0, window).ends
        begins = np.concatenate([[0], ends[:-1]])
        cut = begins // self.seq_length < (ends - 1) // self.seq_length
        return {"padding": 0.0, "cut_documents": float(cut.mean())}


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
        everything = np.arange(self.shards.num_documents)
        self._documents = Documents(self.shards.files, *self.shards.spans(everything))

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
        tokens = Tokens(self.seq_length)
        self._documents.write(tokens, index * (self.seq_length - 1), self.seq_length)
        tokens.pad(self.seq_length, self.shards.end_of_document)
        block = tokens.finish()
        block["labels"][0] = IGNORED  # predicted by the block before
        return block
