"""The steps of the data pipeline as datatrove blocks, which run the same in local processes, on Slurm and on Ray.

Two passes read the same files. The first judges every document and notes its hash and its draw; then decisions are
made that need all documents at once but none of their texts; the second pass tokenises what was kept. Where no
decision needs other documents, one pass does both.
"""

import struct
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_logger

from ingot.data.cleaning.cleaner import Cleaner
from ingot.data.cleaning.minhash import SignatureWriter
from ingot.data.documents import ERROR, GIVEN_SPLIT, REASON, read_documents
from ingot.data.parts import WORK, Parts
from ingot.data.shard_writer import PartialFile
from ingot.data.sources import Corpus, Split
from ingot.data.splits import SPLITS, digest_of, draw_of, split_of_share
from ingot.data.tasks import Task
from ingot.files import describe_file, naming_full_disk
from ingot.recipe import InputError

datatrove_logger.disable("datatrove")  # its banners and tracebacks; ours go through ingot.runs

DROPPED = len(SPLITS)  # in a file of decisions: this, and the number of the reason; below it the index of a split
# metadata keys: index into SPLITS; which of its task's units a document is from; what was cleaned in it, counted
SPLIT, UNIT, CLEANED = "_split", "_unit", "_cleaned"
MARKS = {REASON, ERROR, GIVEN_SPLIT, SPLIT, UNIT, CLEANED}  # what we note on a document beside its columns
RECORD = np.dtype([("digest", "<u8", 2), ("draw", "<u8"), ("reason", "u1"), ("given", "u1")])
PACKED = struct.Struct("<16sQBB")
FLUSH = 1 << 20  # bytes of records that wait to be written
JUDGED = {
    "records": f"{WORK}/records-{{rank}}.bin",
    "near_documents": f"{WORK}/near-{{rank}}-documents.npy", "near_keys": f"{WORK}/near-{{rank}}-keys.npy",
}  # fmt: skip
Documents = Any  # an iterator of datatrove's Document; its own name for that type admits no generator


class ReadDocuments(PipelineStep):
    """Reads the documents of this task's units; `metadata` names the columns that they keep (None: all)."""

    name, type = "documents", "READER"

    def __init__(self, tasks: Sequence[Task], metadata: Collection[str] | None = None) -> None:
        super().__init__()
        self.tasks, self.metadata = list(tasks), metadata

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        for number, unit in enumerate(self.tasks[rank].units):
            for document in read_documents(unit, self.metadata):
                document.metadata[UNIT] = number
                yield document


class JudgeDocuments(PipelineStep):
    """Notes on every document why it is dropped, if it is; of the others it cleans the text."""

    name, type = "filters", "FILTER"

    def __init__(self, cleaner: Cleaner) -> None:
        super().__init__()
        self.cleaner = cleaner

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            if REASON not in document.metadata:
                reason = self.cleaner.judge(document.text)
                if reason is not None:
                    document.metadata[REASON] = reason
            yield document


class CleanDocuments(PipelineStep):
    """Cleans the text of the documents that are kept, and counts what it changed."""

    name, type = "cleaning", "FORMAT"

    def __init__(self, cleaner: Cleaner) -> None:
        super().__init__()
        self.cleaner = cleaner

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            if REASON not in document.metadata:
                document.text, document.metadata[CLEANED] = self.cleaner.clean(document.text)
            yield document


class Tally:
    """Documents by unit, and drops by unit and reason, in the order in which the reasons were met."""

    def __init__(self, num_units: int) -> None:
        self.read = [0] * num_units
        self.dropped: list[Counter[str]] = [Counter() for _ in range(num_units)]

    def count(self, document: Document) -> str | None:
        """Counts a document. Returns why it is dropped."""
        unit, reason = document.metadata[UNIT], document.metadata.get(REASON)
        self.read[unit] += 1
        if reason is not None:
            self.dropped[unit][reason] += 1
        return reason

    def described(self) -> dict[str, Any]:
        """For a part's record."""
        return {"read": self.read, "dropped": [dict(counts) for counts in self.dropped]}


class RecordDocuments(PipelineStep):
    """Writes one record per document, in reading order: hash of its text, draw of its group, reason to drop it."""

    name, type = "records", "WRITER"

    def __init__(self, parts: Parts, keys: Sequence[str], tasks: Sequence[Task], corpus: Corpus) -> None:
        super().__init__()
        self.parts, self.keys, self.corpus = parts, list(keys), corpus
        self.num_units = [len(task.units) for task in tasks]

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        tally, reasons = Tally(self.num_units[rank]), [""]
        strata: dict[str, Any] = {}
        file, near = PartialFile(self.parts.path(rank, "records")), self._signatures(rank)
        buffer = bytearray()
        for number, document in enumerate(data):
            reason = tally.count(document) or ""
            if reason not in reasons:
                reasons.append(reason)
            buffer += _record(document, reasons.index(reason), self.corpus, strata)
            if near is not None and not reason:
                near.add(number, document.text)
            if len(buffer) >= FLUSH:
                file.write(bytes(buffer))
                buffer.clear()
        file.write(bytes(buffer))
        files = {"records": file.close()}
        if near is not None:
            with naming_full_disk(self.parts.path(rank, "near_keys")):
                near.close()
            files |= {role: describe_file(self.parts.path(rank, role)) for role in ("near_documents", "near_keys")}
        self.parts.finish(rank, self.keys[rank], files, {**tally.described(), "reasons": reasons, "strata": strata})
        yield from ()

    def _signatures(self, rank: int) -> SignatureWriter | None:
        section = self.corpus.minhash
        return None if section is None else SignatureWriter(self.parts.path(rank, "records").parent, rank, section)


def _record(document: Document, reason: int, corpus: Corpus, strata: dict[str, Any]) -> bytes:
    if reason:
        return PACKED.pack(b"", 0, reason, 0)
    digest = digest_of(document.text) if corpus.dedup == "exact" else b""
    given = document.metadata.get(GIVEN_SPLIT)
    if given is not None:
        return PACKED.pack(digest, 0, 0, 1 + SPLITS.index(given))
    draw = _draw(document, corpus.split)
    if corpus.split.stratify is not None:
        strata.setdefault(str(draw), _column(document, corpus.split.stratify, "stratify"))
    return PACKED.pack(digest, draw, 0, 0)


def _draw(document: Document, split: Split) -> int:
    group = [_column(document, name, "group") for name in split.group]
    return draw_of(split.seed, group or [document.id])


def columns_of(document: Document) -> dict[str, Any]:
    """A document's columns, without our marks."""
    return {name: value for name, value in document.metadata.items() if name not in MARKS}


def _column(document: Document, name: str, key: str) -> Any:
    if name not in document.metadata:
        there = ", ".join(columns_of(document)) or "none"
        raise InputError(f"data.split.{key}: document {document.id} has no column '{name}'; the columns are {there}")
    return document.metadata[name]


class KeepChosen(PipelineStep):
    """Marks every document with its split, or with the reason to drop it, as the decisions say."""

    name, type = "chosen", "FILTER"

    def __init__(self, folder: Path, reasons: Sequence[str]) -> None:
        super().__init__()
        self.folder, self.reasons = folder, list(reasons)

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        decisions = np.load(decision_file(self.folder, rank))
        number = -1
        for number, document in enumerate(data):
            if number >= len(decisions):
                break
            decision = int(decisions[number])
            if decision >= DROPPED:
                document.metadata[REASON] = self.reasons[decision - DROPPED]
            else:
                document.metadata[SPLIT] = decision
            yield document
        if number + 1 != len(decisions):
            raise InputError("the sources changed while they were read; run the stage again")


def decision_file(folder: Path, rank: int) -> Path:
    """Where the decisions on a task's documents are."""
    return folder / WORK / f"decisions-{rank:05d}.npy"


class DrawSplits(PipelineStep):
    """Marks every document that is not dropped with its split, where that depends on the document alone."""

    name, type = "splits", "FILTER"

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            if REASON not in document.metadata:
                document.metadata[SPLIT] = self._split_of(document)
            yield document

    def _split_of(self, document: Document) -> int:
        given = document.metadata.get(GIVEN_SPLIT)
        if given is not None:
            return SPLITS.index(given)
        if not (self.split.validation or self.split.test):
            return 0
        return split_of_share(_draw(document, self.split), self.split)
