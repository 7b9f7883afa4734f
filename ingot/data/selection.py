"""Which documents of a corpus are kept and which held out: the same answer for the tokenizer and for the shards."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from ingot.data import pipeline
from ingot.data.pipeline import DROPPED, REASONS, SPLIT, KeepChosen, ReadDocuments
from ingot.data.sources import Corpus, Unit, list_units
from ingot.data.splits import SPLITS, choose_splits
from ingot.recipe import InputError
from ingot.runs import read_json

MAX_TASKS = 64  # fixed, so that the shards do not depend on the machine


@dataclass
class Selection:
    """What one pass over a corpus found; `folder` holds the decision for every document."""

    units: list[Unit]
    num_tasks: int
    folder: Path
    num_read: int
    dropped: dict[str, int]

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, one task's after another."""
        for rank in range(self.num_tasks):
            chosen = KeepChosen(self.folder).run(ReadDocuments(self.units).run(None, rank, self.num_tasks), rank)
            yield from (d for d in chosen if d.metadata.pop(SPLIT) == SPLITS.index(split))


def select_documents(corpus: Corpus, folder: Path) -> Selection:
    """Reads the corpus once, drops what the recipe drops and draws the held-out documents; `folder` keeps the result.

    Raises: InputError for anything wrong in the sources, or when no document is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    units = list_units(corpus.sources)
    num_tasks = min(len(units), MAX_TASKS)
    steps = [
        ReadDocuments(units),
        pipeline.JudgeDocuments(corpus.filters),
        pipeline.RecordDocuments(folder, corpus.split),
    ]
    pipeline.run_steps(steps, num_tasks, folder / "reading")
    parts = [np.load(folder / f"records-{rank:05d}.npy") for rank in range(num_tasks)]
    reasons = _reasons(np.concatenate(parts), corpus.dedup == "exact")
    dropped = _count(reasons)
    if not (reasons == 0).any():
        raise InputError(f"data: no document is left; dropped: {dropped or 'none, the sources hold no rows'}")
    _decide(corpus, folder, parts, reasons)
    return Selection(units, num_tasks, folder, len(reasons), dropped)


def _reasons(records: NDArray[np.void], dedup: bool) -> NDArray[np.uint8]:
    """The reason index of every document, duplicates included: the first of equal documents is kept."""
    reasons = records["reason"].copy()
    if dedup:
        kept = np.flatnonzero(reasons == 0)
        first = np.unique(records["digest"][kept], return_index=True)[1]
        reasons[np.delete(kept, first)] = REASONS.index("duplicate")
    return reasons


def _count(reasons: NDArray[np.uint8]) -> dict[str, int]:
    counts = Counter(reasons.tolist())
    return {name: counts[i] for i, name in enumerate(REASONS) if i and counts[i]}


def _decide(corpus: Corpus, folder: Path, parts: list[NDArray[np.void]], reasons: NDArray[np.uint8]) -> None:
    """Writes each task's decisions: the split of every document, or DROPPED."""
    noted = [read_json(folder / f"strata-{rank:05d}.json") for rank in range(len(parts))]
    strata = {int(draw): value for part in noted for draw, value in part.items()}
    given = np.concatenate([part["given"] for part in parts])
    drawn, named = (reasons == 0) & (given == 0), (reasons == 0) & (given > 0)
    draws = np.concatenate([part["draw"] for part in parts])[drawn]
    decisions = np.full(len(reasons), DROPPED, np.uint8)
    decisions[drawn] = choose_splits(draws, strata, corpus.split)
    decisions[named] = given[named] - 1
    starts = np.cumsum([len(part) for part in parts])[:-1]
    for rank, part in enumerate(np.split(decisions, starts)):
        np.save(folder / f"decisions-{rank:05d}.npy", part)
