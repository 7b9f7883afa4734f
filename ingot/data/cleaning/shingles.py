"""Runs of words as 64-bit numbers, for whole documents at once: what near-duplicates and benchmarks are found by.

Words are compared without case, accents and signs between them. A sign of a script that writes no spaces is a word.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

FOLDED = 0x20000  # characters up to here are folded; those beyond are rare ideographs
GAP, GONE = 0, 1  # in the table of folded characters: between words; as if it were not there (accents)
DIGIT = ord("0")
NO_SPACES = ((0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
PIECE = 1 << 20  # characters hashed at once, so that memory does not grow with a long document
PLACES = 64  # powers of a factor; longer words use them over and over
IN_WORD, IN_RUN = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd: the golden ratio, and Evensen's mixer
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the finaliser of SplitMix64


@dataclass(frozen=True)
class Words:
    """A hash for every word of a text, and where in the text it begins and ends."""

    hashes: Hashes
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    def runs(self, length: int) -> Hashes:
        """A hash for every run of `length` words; run i begins with word i. Empty when there are fewer words."""
        count = len(self.hashes) - length + 1
        if count <= 0:
            return np.empty(0, np.uint64)
        total = np.zeros(count, np.uint64)
        for i in range(length):
            total *= np.uint64(IN_RUN)
            total += self.hashes[i : i + count]
        return mixed(total)


def mixed(values: Hashes) -> Hashes:
    """Spreads the bits of every value, one to one (SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))


def different(values: Hashes) -> Hashes:
    """The different values, sorted (numpy's own `unique` uses a hash table, which is far slower on millions)."""
    ordered = np.sort(values)
    fresh = np.ones(len(ordered), bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return ordered[fresh]


def words_of(text: str, same_numbers: bool = False) -> Words:
    """The words of a text; with `same_numbers` all runs of digits are one and the same word."""
    if len(text) <= PIECE:
        return _words_of(text, same_numbers)
    parts = [(begin, _words_of(text[begin:end], same_numbers)) for begin, end in _pieces(text)]
    return Words(
        np.concatenate([words.hashes for _, words in parts]),
        np.concatenate([words.begins + begin for begin, words in parts]),
        np.concatenate([words.ends + begin for begin, words in parts]),
    )


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces that end after white space, if there is any."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            end = max(text.rfind(" ", begin, end), text.rfind("\n", begin, end)) + 1 or end
        yield begin, min(end, len(text))
        begin = end


def _words_of(text: str, same_numbers: bool) -> Words:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    folded = _fold(codes)
    gone = folded == GONE
    if same_numbers:
        digit = folded == DIGIT
        gone[1:] |= digit[1:] & digit[:-1]
    else:
        folded = np.where(folded == DIGIT, codes, folded)
    places = np.flatnonzero(~gone) if gone.any() else None
    if places is not None:
        folded = folded[places]
    begins, ends = _bounds(folded)
    hashes = _hash_words(folded, begins, ends)
    if places is not None:
        begins, ends = places[begins], places[ends - 1] + 1
    return Words(hashes, begins, ends)


def _fold(codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    table, _ = _tables()
    if len(codes) and int(codes.max()) >= FOLDED:
        return np.where(codes < FOLDED, table[np.minimum(codes, FOLDED - 1)], codes)
    return table[codes]


def _bounds(folded: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin and end of every word: a stretch without gaps, cut beside every sign of a script without spaces."""
    inside = np.zeros(len(folded) + 2, bool)
    inside[1:-1] = folded != GAP
    alone = np.zeros(len(folded) + 2, bool)
    if len(folded) and int(folded.max()) >= NO_SPACES[0][0]:
        alone[1:-1] = _tables()[1][np.minimum(folded, FOLDED - 1)]
    cut = (inside[1:] != inside[:-1]) | (inside[1:] & (alone[1:] | alone[:-1]))
    edges = np.flatnonzero(cut)
    begins = edges[inside[1:][edges]]
    ends = edges[inside[:-1][edges]]
    return begins, ends


def _hash_words(folded: NDArray[np.uint32], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
    """A polynomial in the characters of every word, modulo 2**64, mixed."""
    if not len(begins):
        return np.empty(0, np.uint64)
    letters = np.flatnonzero(folded != GAP)
    lengths = ends - begins
    firsts = np.cumsum(lengths) - lengths  # of every word, among the letters
    place = np.arange(len(letters)) - np.repeat(firsts, lengths)
    terms = folded[letters].astype(np.uint64) * _powers()[place % PLACES]
    return mixed(np.add.reduceat(terms, firsts))


@cache
def _powers() -> Hashes:
    return np.array([pow(IN_WORD, i + 1, 1 << 64) for i in range(PLACES)], np.uint64)


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """For every character what it is folded to, and whether it is a word by itself."""
    folded = np.array([_folded(chr(code)) for code in range(FOLDED)], np.uint32)
    alone = np.zeros(FOLDED, bool)
    for first, last in NO_SPACES:
        alone[first : last + 1] = folded[first : last + 1] > GONE
    return folded, alone


def _folded(character: str) -> int:
    category = unicodedata.category(character)
    if category == "Mn":
        return GONE
    if category == "Nd":
        return DIGIT
    if category[0] not in "LNM":
        return GAP
    base = unicodedata.normalize("NFD", character.lower())[0]
    return ord(base) if ord(base) > GONE else GAP
