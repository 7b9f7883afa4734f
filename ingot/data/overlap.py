"""How much of the held-out text training has seen: spans of tokens that occur in both."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingot.data.shards import TokenShards

SPAN = 16  # tokens, a power of two; about a line of text
TABLE_BITS = 24
STEP = 1 << 20  # training tokens hashed at once
FACTOR = np.uint64(6364136223846793005)  # an odd multiplier that mixes well (Knuth's MMIX)


def seen_in_training(folder: Path, split: str) -> list[float]:
    """For every document of a held-out split, the share of its spans of SPAN tokens that training documents hold."""
    held_out = TokenShards(folder, split)
    spans = [_hashes(held_out.document(i)) for i in range(held_out.num_documents)]
    wanted = np.unique(np.concatenate(spans))
    maybe = np.zeros(1 << TABLE_BITS, bool)  # a small table sorts out nearly all of the training spans
    maybe[wanted >> np.uint64(64 - TABLE_BITS)] = True
    seen = np.zeros(len(wanted), bool)
    for file in TokenShards(folder, "train").files:
        for begin in range(0, len(file), STEP):
            found = _hashes(file[begin : begin + STEP + SPAN - 1])
            seen |= np.isin(wanted, found[maybe[found >> np.uint64(64 - TABLE_BITS)]])
    return [float(seen[np.searchsorted(wanted, s)].mean()) if len(s) else 0.0 for s in spans]


def _hashes(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of every SPAN consecutive ids: a polynomial in FACTOR, modulo 2**64, built by doubling."""
    if len(ids) < SPAN:
        return np.empty(0, np.uint64)
    hashes = (ids.astype(np.uint64) + np.uint64(1)) * FACTOR
    hashes ^= hashes >> np.uint64(29)
    factor, size = FACTOR, 1
    while size < SPAN:  # from spans of `size` to spans of twice that
        hashes = hashes[:-size] * factor + hashes[size:]
        factor, size = np.uint64(pow(int(factor), 2, 1 << 64)), size * 2
    return hashes
