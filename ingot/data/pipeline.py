"""The steps of the data pipeline as datatrove blocks, which run the same in local processes, on Slurm and on Ray.

Two passes read the same files. The first judges every document and notes its hash and its draw; then the splits are
chosen, which needs all documents at once but none of their texts; the second pass tokenises what was kept.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger as datatrove_logger

from ingot.data.documents import GIVEN_SPLIT, READ_REASONS, REASON, drop_reason, read_documents
from ingot.data.shards import ShardWriter, token_dtype
from ingot.data.sources import Filters, Split, Unit
from ingot.data.splits import SPLITS, digest_of, draw_of
from ingot.recipe import InputError
from ingot.runs import progress, write_json

datatrove_logger.disable("datatrove")  # its banners and tracebacks; ours go through ingot.runs

REASONS = ("", *READ_REASONS, "empty", "too_short", "too_long", "few_letters", "repeated_lines", "duplicate")
DROPPED = 255  # in a file of decisions; else an index into SPLITS
SPLIT = "_split"  # metadata key: index into SPLITS
RECORD = np.dtype([("digest", "S16"), ("draw", "<u8"), ("reason", "u1"), ("given", "u1")])
BATCH_BYTES = 4 << 20  # text tokenised at once
Documents = Any  # an iterator of datatrove's Document; its own name for that type admits no generator


class ReadDocuments(PipelineStep):
    """Reads this task's share of the files; task r of n takes files r, r + n, ..."""

    name, type = "documents", "READER"

    def __init__(self, units: Sequence[Unit]) -> None:
        super().__init__()
        self.units = list(units)

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        for unit in self.units[rank::world_size]:
            yield from read_documents(unit)


class JudgeDocuments(PipelineStep):
    """Notes on every document why it is dropped, if it is."""

    name, type = "filters", "FILTER"

    def __init__(self, filters: Filters) -> None:
        super().__init__()
        self.filters = filters

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            reason = document.metadata.get(REASON) or drop_reason(document.text, self.filters)
            if reason is not None:
                document.metadata[REASON] = reason
                self.stat_update(f"dropped_{reason}")
            yield document


class RecordDocuments(PipelineStep):
    """Writes one record per document, in reading order: hash of its text, draw of its group, reason to drop it."""

    name, type = "records", "WRITER"

    def __init__(self, folder: Path, split: Split) -> None:
        super().__init__()
        self.folder, self.split = folder, split

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        records: list[tuple[bytes, int, int, int]] = []
        strata: dict[str, Any] = {}
        for document in _shown(data, rank, "reading documents"):
            reason = REASONS.index(document.metadata.get(REASON, ""))
            if reason:
                records.append((bytes(16), 0, reason, 0))
                continue
            given = document.metadata.get(GIVEN_SPLIT)
            if given is not None:
                records.append((digest_of(document.text), 0, reason, 1 + SPLITS.index(given)))
                continue
            draw = draw_of(self.split.seed, self._group(document))
            records.append((digest_of(document.text), draw, reason, 0))
            if self.split.stratify is not None:
                strata.setdefault(str(draw), _column(document, self.split.stratify, "stratify"))
        np.save(self.folder / f"records-{rank:05d}.npy", np.array(records, RECORD))
        write_json(self.folder / f"strata-{rank:05d}.json", strata)
        yield from ()

    def _group(self, document: Document) -> list[Any]:
        return [_column(document, name, "group") for name in self.split.group] or [document.id]


def _column(document: Document, name: str, key: str) -> Any:
    if name not in document.metadata:
        there = ", ".join(document.metadata) or "none"
        raise InputError(f"data.split.{key}: document {document.id} has no column '{name}'; the columns are {there}")
    return document.metadata[name]


class KeepChosen(PipelineStep):
    """Passes on the documents that the decisions keep, each marked with its split."""

    name, type = "chosen", "FILTER"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        decisions = np.load(self.folder / f"decisions-{rank:05d}.npy")
        number = -1
        for number, document in enumerate(data):
            if number >= len(decisions):
                break
            if decisions[number] != DROPPED:
                document.metadata[SPLIT] = int(decisions[number])
                document.metadata.pop(GIVEN_SPLIT, None)
                yield document
        if number + 1 != len(decisions):
            raise InputError("the sources changed while they were read; run the stage again")


class WriteShards(PipelineStep):
    """Tokenises documents, appends the end token and writes a shard for each split, with held-out texts beside it."""

    name, type = "shards", "TOKENIZER"

    def __init__(self, folder: Path, work: Path, tokenizer_file: Path, end_of_document: int, vocab_size: int) -> None:
        super().__init__()
        self.folder, self.work, self.tokenizer_file = folder, work, tokenizer_file
        self.end_of_document, self.vocab_size = end_of_document, vocab_size

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        from tokenizers import Tokenizer

        _share_cores(world_size)
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # a document that spells a special token does not become one
        shards = [ShardWriter(self.folder, f"{split}-{rank:05d}", token_dtype(self.vocab_size)) for split in SPLITS]
        texts = [_HeldOutTexts(self.work / f"{split}-{rank:05d}.jsonl") for split in SPLITS[1:]]
        for batch in _batches(_shown(data, rank, "tokenising documents")):
            encoded = tokenizer.encode_batch_fast([d.text for d in batch], add_special_tokens=False)
            for document, encoding in zip(batch, encoded, strict=True):
                split = document.metadata.pop(SPLIT)
                num_bytes = len(document.text.encode())
                shards[split].add([*encoding.ids, self.end_of_document], num_bytes)
                self.stat_update("tokens", value=len(encoding.ids) + 1)
                if split:
                    texts[split - 1].add(document)
        for text in texts:
            text.close()
        write_json(self.work / f"shards-{rank:05d}.json", [shard.close() for shard in shards])
        yield from ()


def _share_cores(num_tasks: int) -> None:
    """Gives each of several tasks its part of the cores; a task alone keeps the tokenizer's default, all of them."""
    if num_tasks > 1:
        os.environ["RAYON_NUM_THREADS"] = str(max(1, num_cores() // num_tasks))
        os.environ["TOKENIZERS_PARALLELISM"] = "true"


def _shown(documents: Documents, rank: int, desc: str) -> Documents:
    """Shows the progress of the first task."""
    return progress(documents, desc=desc) if rank == 0 else documents


class _HeldOutTexts:
    """The raw documents of a held-out split, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def add(self, document: Document) -> None:
        row = {"id": document.id, "text": document.text, "metadata": document.metadata}
        self.file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


def _batches(documents: Documents) -> Iterator[list[Document]]:
    """Lists of documents with at most about BATCH_BYTES of text, so that memory stays flat."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_steps(steps: list[PipelineStep], num_tasks: int, logs: Path) -> None:
    """Runs the steps in local processes; tasks that finished before are not run again."""
    workers = min(num_tasks, num_cores())
    LocalPipelineExecutor([*steps], tasks=num_tasks, workers=workers, logging_dir=str(logs)).run()
