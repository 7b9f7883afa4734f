"""Which documents of a corpus are kept and which held out: the same answer for the tokenizer and for the shards."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from ingot.data import pipeline
from ingot.data.cleaning.cleaner import Cleaner, prepare_cleaning
from ingot.data.decisions import Decisions, decide
from ingot.data.documents import REASON
from ingot.data.execution import DataRun
from ingot.data.executors import run_tasks
from ingot.data.parts import WORK, Parts
from ingot.data.shard_writer import remove_partial_files
from ingot.data.sources import Corpus, list_units
from ingot.data.splits import SPLITS
from ingot.data.tasks import Task, judged_key, make_tasks, text_key
from ingot.recipe import InputError
from ingot.runs import DOUBTED, get_logger, sha256_json

logger = get_logger(__name__)


@dataclass
class Selection:
    """The documents of a corpus, each with its split or the reason to drop it, and what they depend on.

    `texts` are keys of each task's documents. `decisions` is None when every document is decided on by itself.
    """

    corpus: Corpus
    folder: Path
    tasks: list[Task]
    texts: list[str]
    cleaner: Cleaner
    benchmarks: list[dict[str, Any]]
    decisions: Decisions | None

    def steps(self) -> list[PipelineStep]:
        """The steps that read the documents and mark them; texts are cleaned."""
        clean = pipeline.CleanDocuments(self.cleaner)
        read = pipeline.ReadDocuments(self.tasks, _metadata(self.corpus, held_out=True))
        if self.decisions is not None:
            return [read, pipeline.KeepChosen(self.folder, self.decisions.reasons), clean]
        return [read, pipeline.JudgeDocuments(self.cleaner), clean, pipeline.DrawSplits(self.corpus.split)]

    @property
    def keys(self) -> list[str]:
        """Identify which documents of each task are kept, and for what."""
        if self.decisions is not None:
            return self.decisions.hashes
        return [sha256_json(self.corpus.split.model_dump(mode="json"))] * len(self.tasks)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, one task's after another."""
        steps = self.steps()
        for rank in range(len(self.tasks)):
            data: Any = None
            for step in steps:
                data = step.run(data, rank, len(self.tasks))
            for document in data or ():
                if REASON not in document.metadata and document.metadata[pipeline.SPLIT] == SPLITS.index(split):
                    document.metadata = pipeline.columns_of(document)
                    yield document


def select_documents(
    corpus: Corpus, folder: Path, hashes: Mapping[str, str] | None = None, run: DataRun | None = None
) -> Selection:
    """Reads the corpus once, drops what the recipe drops and draws the held-out documents; `folder` keeps the result.

    hashes: the sha256 of the sources by their paths; what is known of unchanged ones is taken over.
    Raises: InputError for anything wrong in the sources, or when no document is left.
    """
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder / WORK)
    tasks = make_tasks(list_units(corpus.sources))
    benchmarks = prepare_cleaning(corpus, folder / WORK / "benchmarks")
    cleaner = Cleaner(corpus, folder / WORK / "benchmarks")
    texts = [text_key(task, hashes or {}, corpus, _of_benchmarks(corpus, hashes or {})) for task in tasks]
    chosen = Selection(corpus, folder, tasks, texts, cleaner, benchmarks, None)
    if not in_one_pass(corpus):
        chosen.decisions = _judge(chosen, run or DataRun(dir=folder))
    return chosen


def in_one_pass(corpus: Corpus) -> bool:
    """Whether every document is decided on by itself, so that reading once is enough."""
    held_out = corpus.split.validation or corpus.split.test
    return corpus.dedup == "off" and corpus.minhash is None and (corpus.split.by_share or not held_out)


def _of_benchmarks(corpus: Corpus, hashes: Mapping[str, str]) -> list[str]:
    """The content of the benchmarks that documents are compared with."""
    from ingot.data.cleaning.decontamination import decontamination_files

    if corpus.decontaminate is None:
        return []
    return [hashes.get(str(path), str(path)) for path in decontamination_files(corpus.decontaminate)]


def _metadata(corpus: Corpus, held_out: bool) -> Collection[str] | None:
    """The columns that documents keep: all (None) where a split or a held-out text needs some, else none."""
    split = corpus.split
    shown = held_out and (split.validation or split.test or any(source.split for source in corpus.sources))
    return None if shown or split.group or split.stratify else ()


def _judge(chosen: Selection, run: DataRun) -> Decisions:
    """The first pass, and the decisions that need all documents."""
    parts = Parts(chosen.folder, "judged", pipeline.JUDGED)
    if (chosen.folder / DOUBTED).is_file():
        parts.forget_damaged()
    keys = [judged_key(text, chosen.corpus) for text in chosen.texts]
    taken = parts.take_over(keys)
    missing = parts.missing(keys)
    say_what_is_kept("reading", len(keys), len(missing), taken)
    steps = [
        pipeline.ReadDocuments(chosen.tasks, _metadata(chosen.corpus, held_out=False)),
        pipeline.JudgeDocuments(chosen.cleaner),
        pipeline.CleanDocuments(chosen.cleaner),
        pipeline.RecordDocuments(parts, keys, chosen.tasks, chosen.corpus),
    ]
    run_tasks(steps, chosen.tasks, missing, chosen.folder / WORK / "reading", run, "prepare_data: reading")
    found = decide(chosen.corpus, parts, len(keys))
    refuse_nothing_left([parts.read(rank)["read"] for rank in range(len(keys))], found.dropped)
    return found


def say_what_is_kept(work: str, total: int, missing: int, taken: int) -> None:
    """A line for whoever starts a stage again."""
    if missing < total:
        before = f", {taken:,} of them from the folder set aside" if taken else ""
        logger.info("prepare_data: %s: %d of %d tasks are done already%s", work, total - missing, total, before)


def refuse_nothing_left(read: Sequence[Sequence[int]], dropped: Sequence[Sequence[Mapping[str, int]]]) -> None:
    """Raises: InputError when no document is kept."""
    counts: Counter[str] = Counter()
    for task in dropped:
        for unit in task:
            counts.update(unit)
    if sum(map(sum, read)) == counts.total():
        raise InputError(f"data: no document is left; dropped: {dict(counts) or 'none, the sources hold no rows'}")
