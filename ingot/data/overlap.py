"""How much of the held-out text training has seen: spans of tokens that occur in both."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingot.data.shards import TokenShards

SPAN = 16  # tokens; about a line of text
STEP = 1 << 22  # training tokens hashed at once
FACTOR = np.uint64(6364136223846793005)  # an odd multiplier that mixes well (Knuth's MMIX)


def seen_in_training(folder: Path, split: str) -> list[float]:
    """For every document of a held-out split, the share of its spans of SPAN tokens that training documents hold."""
    held_out = TokenShards(folder, split)
    spans = [_hashes(held_out.document(i)) for i in range(held_out.num_documents)]
    wanted = np.unique(np.concatenate(spans))
    seen = np.zeros(len(wanted), bool)
    for file in TokenShards(folder, "train").files:
        for begin in range(0, len(file), STEP):
            found = _hashes(file[begin : begin + STEP + SPAN - 1])
            seen |= np.isin(wanted, found)
    return [float(seen[np.searchsorted(wanted, s)].mean()) if len(s) else 0.0 for s in spans]


def _hashes(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of every SPAN consecutive ids: a polynomial in FACTOR, modulo 2**64."""
    size = len(ids) - SPAN + 1
    if size < 1:
        return np.empty(0, np.uint64)
    values = (ids.astype(np.uint64) + np.uint64(1)) * FACTOR
    values ^= values >> np.uint64(29)
    total = np.zeros(size, np.uint64)
    for i in range(SPAN):
        total = total * FACTOR + values[i : i + size]
    return total
