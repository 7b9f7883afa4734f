"""Proves for most documents, at once in numpy, that Gopher's rules on repeated words cannot drop them.

datatrove's filter loops over the words in Python for every length, which makes it the slowest rule by far. What is
computed here is never below what the filter measures, so a document that passes here passes there.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ingot.data.cleaning.section import GopherRepetition
from ingot.data.cleaning.shingles import Hashes

LONGEST = 1 << 20  # characters; longer documents go to the filter
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


class WordRuns:
    """Hashes of runs of words, by the characters that they hold when they are put together."""

    def __init__(self, words: Sequence[str]) -> None:
        codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4")
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self.places = np.concatenate([[0], np.cumsum(lengths)])
        sums = np.zeros(len(codes) + 1, np.uint64)
        np.cumsum((codes + np.uint64(1)) * _powers()[0][: len(codes)], out=sums[1:])
        self.sums = sums[self.places]

    def hashes(self, length: int) -> Hashes:
        """One for every run; equal characters give equal hashes, wherever they are."""
        found: Hashes = self.sums[length:] - self.sums[:-length]
        return found * _powers()[1][self.places[: len(found)]]

    def top_share(self, length: int) -> int:
        """The most characters, with a space between words, that one run and its copies hold."""
        hashes = self.hashes(length)
        if not len(hashes):
            return 0
        order = np.argsort(hashes)
        begins = np.flatnonzero(np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]]))
        counts = np.diff(np.append(begins, len(hashes)))
        sizes = self.places[length:] - self.places[:-length] + length - 1
        return int((np.maximum.reduceat(sizes[order], begins) * counts).max())

    def repeated(self, length: int) -> int:
        """Characters of all runs that occurred before, those in several runs counted once."""
        hashes = self.hashes(length)
        order = np.argsort(hashes, kind="stable")
        again = order[1:][hashes[order][1:] == hashes[order][:-1]]
        change = np.zeros(len(self.places), np.int64)
        np.add.at(change, again, 1)
        np.add.at(change, again + length, -1)
        covered = np.cumsum(change)[:-1] > 0
        return int(np.diff(self.places)[covered].sum())


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """Powers of the factor and of its inverse, modulo 2**64."""
    steps = np.full((2, LONGEST + 1), FACTOR, np.uint64)
    steps[1] = pow(FACTOR, -1, 1 << 64)
    steps[:, 0] = 1
    powers: NDArray[np.uint64] = np.cumprod(steps, axis=1, dtype=np.uint64)
    return powers[0], powers[1]


def surely_varied(words: Sequence[str], num_characters: int, section: GopherRepetition) -> bool:
    """Whether no rule on frequent or repeated words can drop a document of this many characters."""
    if num_characters > LONGEST:
        return False
    runs = WordRuns(words)
    if section.dup_n_grams:  # what repeats in longer runs repeats in the shortest ones
        shortest = int(min(length for length, _ in section.dup_n_grams))
        if runs.repeated(shortest) > min(limit for _, limit in section.dup_n_grams) * num_characters:
            return False
    return all(runs.top_share(int(n)) <= limit * num_characters for n, limit in section.top_n_grams)
