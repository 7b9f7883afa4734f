"""The held-out split: a pure function of the documents' ids (or groups), the seed and the rule."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.sources import Split
from ingot.recipe import InputError

SPLITS = ("train", "validation", "test")  # a document's split is an index into this
Draws = NDArray[np.uint64]
BLANK = re.compile(r"\s")
AT_ONCE = 1 << 20  # characters


def draw_of(seed: int, parts: Sequence[Any]) -> int:
    """A number in [0, 2**64) for a document or group: the same for the same parts and seed, else as if random."""
    text = json.dumps([seed, *parts], ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def digest_of(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in case and white space."""
    digest, begin, between = hashlib.blake2b(digest_size=16), 0, ""
    while begin < len(text):
        end = BLANK.search(text, begin + AT_ONCE)  # the words of a long text are not in memory all at once
        piece = text[begin : end.end() if end else len(text)]
        if words := " ".join(piece.lower().split()):
            digest.update((between + words).encode())
            between = " "
        begin += len(piece)
    return digest.digest()


def choose_splits(draws: Draws, strata: dict[int, Any], split: Split) -> NDArray[np.uint8]:
    """The split of every document, from its group's draw; `strata` gives each draw's value of the `stratify` column.

    Raises: InputError when more is held out than there is.
    """
    return splits_of(draws, held_out_groups([draws], strata, split), split)


def split_of_share(draw: int, split: Split) -> int:
    """The split of one document, where the sizes are shares."""
    share = draw / 2.0**64
    return 1 if share < split.validation else 2 if share < split.validation + split.test else 0


def held_out_groups(draws: Iterable[Draws], strata: dict[int, Any], split: Split) -> tuple[Draws, Draws]:
    """The draws of the groups in validation and in test, where the sizes are numbers; with flat memory.

    draws: those of one task's documents after another's. Only `stratify` holds all groups in memory.
    Raises: InputError when more is held out than there is.
    """
    num_held_out = int(split.validation + split.test)
    if split.by_share or not num_held_out:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    groups = _smallest(draws, None if split.stratify is not None else num_held_out + 1)
    if num_held_out >= len(groups):
        kind = "groups" if split.group else "documents"
        raise InputError(f"data.split: holds out {num_held_out} of {len(groups)} {kind}; nothing is left to train on")
    picked = _pick(groups, strata, num_held_out, split)
    validation = _evenly_spaced(num_held_out, int(split.validation))
    return picked[validation], np.delete(picked, validation)


def _smallest(draws: Iterable[Draws], size: int | None) -> Draws:
    """The smallest different numbers, in order; all of them when `size` is None."""
    found = np.empty(0, np.uint64)
    for part in draws:
        found = np.unique(np.concatenate([found, part]))[:size]
    return found


def splits_of(draws: Draws, held_out: tuple[Draws, Draws], split: Split) -> NDArray[np.uint8]:
    """The split of every document, from its group's draw."""
    if split.by_share:
        share = draws / 2.0**64
        return np.where(share < split.validation, 1, np.where(share < split.validation + split.test, 2, 0)).astype(
            np.uint8
        )
    return (np.isin(draws, held_out[0]) + 2 * np.isin(draws, held_out[1])).astype(np.uint8)


def _pick(groups: Draws, strata: dict[int, Any], size: int, split: Split) -> Draws:
    """The held-out groups; with `stratify`, the smallest draw in each of `size` equal ranges of the sorted values."""
    if split.stratify is None or size == 0:
        return groups[:size]
    values = [strata[int(g)] for g in groups]
    numbers = all(isinstance(v, int | float) for v in values)
    ordered = sorted(zip(values, groups, strict=True), key=lambda v: (v[0] if numbers else str(v[0]), v[1]))
    ranges = np.array_split(np.array([group for _, group in ordered], np.uint64), size)
    return np.array([part.min() for part in ranges], np.uint64)


def _evenly_spaced(length: int, size: int) -> list[int]:
    """`size` of the indices below `length`, spread over the whole."""
    return [(2 * i + 1) * length // (2 * size) for i in range(size)]
