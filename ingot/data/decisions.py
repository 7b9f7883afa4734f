"""Decisions that need all documents at once: duplicates, near-duplicates and splits, with flat memory.

They are made from the records of the first pass, 26 bytes for every document, which stay in files. A decision is one
byte: the index of a split, or DROPPED and the number of the reason.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.cleaning.minhash import near_duplicates
from ingot.data.parts import Parts
from ingot.data.pipeline import DROPPED, RECORD, decision_file
from ingot.data.sources import Corpus
from ingot.data.splits import held_out_groups, splits_of
from ingot.files import naming_full_disk

AT_ONCE = 1 << 23  # documents whose hashes are compared at once, about 400 MB
_Bounds = tuple[
    np.uint64, np.uint64, bool
]  # first numbers of a range of hashes and of the next; whether it is the last
DUPLICATE, NEAR = "duplicate", "near_duplicate"


@dataclass
class Decisions:
    """What was decided; `hashes` identify each task's decisions, `dropped` counts reasons by task and unit."""

    reasons: list[str]
    hashes: list[str]
    dropped: list[list[Counter[str]]]


def decide(corpus: Corpus, parts: Parts, num_tasks: int) -> Decisions:
    """Decides on every document and writes each task's decisions to a file.

    Raises: InputError when the split holds out more than there is.
    """
    found = [parts.read(rank) for rank in range(num_tasks)]
    records = [_records(parts.path(rank, "records")) for rank in range(num_tasks)]
    reasons = list(dict.fromkeys(reason for part in found for reason in part["reasons"][1:]))
    reasons += [reason for reason in (DUPLICATE, NEAR) if reason not in reasons]
    decisions = [_first_decisions(r, part["reasons"], reasons) for r, part in zip(records, found, strict=True)]
    if corpus.dedup == "exact":
        _drop_duplicates(records, decisions, DROPPED + reasons.index(DUPLICATE))
    if corpus.minhash is not None:
        folder = parts.path(0, "near_keys").parent
        for numbers, decided in zip(near_duplicates(folder, num_tasks), decisions, strict=True):
            near = numbers[decided[numbers] < DROPPED]
            decided[near] = DROPPED + reasons.index(NEAR)
    _split(corpus, records, decisions, [part["strata"] for part in found])
    for rank, decided in enumerate(decisions):
        _save(decision_file(parts.root, rank), decided)
    dropped = [_count(d, part["read"], reasons) for d, part in zip(decisions, found, strict=True)]
    return Decisions(reasons, [_hash(d, reasons, corpus) for d in decisions], dropped)


def _records(path: Path) -> NDArray[np.void]:
    return np.memmap(path, RECORD, "r") if path.stat().st_size else np.empty(0, RECORD)


def _first_decisions(records: NDArray[np.void], own: Sequence[str], reasons: Sequence[str]) -> NDArray[np.uint8]:
    """Split 0 for what was not dropped yet; reasons of the task become reasons of the run."""
    table = np.array([0, *(DROPPED + reasons.index(reason) for reason in own[1:])], np.uint8)
    return table[records["reason"]]


def _drop_duplicates(records: list[NDArray[np.void]], decisions: list[NDArray[np.uint8]], dropped: int) -> None:
    """Keeps the first of equal documents; hashes are compared range by range, so that memory stays flat."""
    total = sum(len(part) for part in records)
    ranges = -(-total // AT_ONCE)
    for number in range(ranges):
        low, high = (np.uint64(min(i * 2**64 // ranges, 2**64 - 1)) for i in (number, number + 1))
        _drop_in_range(records, decisions, dropped, (low, high, number == ranges - 1))


def _drop_in_range(
    records: list[NDArray[np.void]], decisions: list[NDArray[np.uint8]], dropped: int, bounds: _Bounds
) -> None:
    """A function of its own, so that what one range took is free before the next one begins."""
    inside = [_inside(r, d, *bounds) for r, d in zip(records, decisions, strict=True)]
    digests = np.concatenate([r["digest"][i] for r, i in zip(records, inside, strict=True)])
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones stay in reading order
    ordered = digests[order]
    again = np.zeros(len(order), bool)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    starts = np.cumsum([len(i) for i in inside])[:-1]
    for decided, places, repeated in zip(decisions, inside, np.split(again, starts), strict=True):
        decided[places[repeated]] = dropped


def _inside(
    records: NDArray[np.void], decided: NDArray[np.uint8], low: np.uint64, high: np.uint64, last: bool
) -> NDArray[np.intp]:
    """The kept documents whose hash begins with a number in [low, high), the last range up to the end."""
    first = records["digest"][:, 0]
    return np.flatnonzero((decided < DROPPED) & (first >= low) & (last | (first < high)))


def _split(
    corpus: Corpus, records: list[NDArray[np.void]], decisions: list[NDArray[np.uint8]], strata: list[dict[str, Any]]
) -> None:
    """Sends what is kept to its split: the one its source says, else by its draw."""
    values = {int(draw): value for part in strata for draw, value in part.items()}
    held_out = held_out_groups(_drawn(records, decisions), values, corpus.split)
    for part, decided in zip(records, decisions, strict=True):
        kept, given = decided < DROPPED, part["given"]
        decided[kept] = np.where(
            given[kept] > 0, given[kept] - 1, splits_of(part["draw"][kept], held_out, corpus.split)
        ).astype(np.uint8)


def _drawn(records: list[NDArray[np.void]], decisions: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint64]]:
    for part, decided in zip(records, decisions, strict=True):
        yield part["draw"][(decided < DROPPED) & (part["given"] == 0)]


def _save(path: Path, decided: NDArray[np.uint8]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming_full_disk(path):
        with open(partial, "wb") as file:
            np.save(file, decided)
        os.replace(partial, path)


def _count(decided: NDArray[np.uint8], read: Sequence[int], reasons: Sequence[str]) -> list[Counter[str]]:
    """Reasons to drop, for every unit of a task."""
    counted = []
    for unit in np.split(decided, np.cumsum(read)[:-1]):
        counts = np.bincount(unit, minlength=DROPPED + len(reasons))[DROPPED:]
        counted.append(Counter({reason: int(n) for reason, n in zip(reasons, counts, strict=True) if n}))
    return counted


def _hash(decided: NDArray[np.uint8], reasons: Sequence[str], corpus: Corpus) -> str:
    """Identifies decisions: which documents go where and, when dropped ones are written, why."""
    shown = np.minimum(decided, DROPPED) if corpus.keep_dropped is None else decided
    names = "" if corpus.keep_dropped is None else repr(reasons)
    return hashlib.sha256(names.encode() + shown.tobytes()).hexdigest()
