"""The last step of the data pipeline: documents become shards, with held-out and dropped texts beside them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from ingot.data.cleaning.dropped import DropWriter
from ingot.data.documents import ERROR
from ingot.data.encode import Encoder, TooLongToTokenise
from ingot.data.execution import DataRun
from ingot.data.executors import run_tasks
from ingot.data.parts import WORK, Parts
from ingot.data.pipeline import CLEANED, SPLIT, Documents, Tally, columns_of
from ingot.data.selection import Selection, refuse_nothing_left, say_what_is_kept
from ingot.data.shard_writer import PartialFile, ShardWriter, remove_partial_files
from ingot.data.shards import TOKENS, token_dtype
from ingot.data.sources import Corpus
from ingot.data.splits import SPLITS
from ingot.data.tasks import Task, shards_key
from ingot.files import describe_file, naming_full_disk
from ingot.recipe import InputError
from ingot.runs import DOUBTED

DROPPED_TEXTS = "dropped"
SHARDS = {f"{split}.{kind}": f"{TOKENS}/{split}-{{rank}}.{kind}" for split in SPLITS for kind in ("bin", "ends")}
SHARDS |= {f"{split}.jsonl": f"{WORK}/{split}-{{rank}}.jsonl" for split in SPLITS[1:]}
SHARDS |= {DROPPED_TEXTS: f"{DROPPED_TEXTS}/{{rank}}.jsonl.zst"}


class Tokens:
    """How documents become tokens: the tokenizer's file, its number of ids and the id that ends a document."""

    def __init__(self, file: Path, sha256: str, vocab_size: int, end_of_document: int) -> None:
        self.file, self.sha256, self.vocab_size, self.end_of_document = file, sha256, vocab_size, end_of_document
        self.dtype = token_dtype(vocab_size)

    @property
    def key(self) -> list[Any]:
        """What the ids depend on."""
        return [self.sha256, self.end_of_document, self.dtype.str]


class WriteShards(PipelineStep):
    """Tokenises documents, appends the end token and writes a shard for each split, with held-out texts beside it."""

    name, type = "shards", "TOKENIZER"

    def __init__(
        self, parts: Parts, keys: Sequence[str], tasks: Sequence[Task], corpus: Corpus, tokens: Tokens, threads: int
    ) -> None:
        super().__init__()
        self.parts, self.keys, self.corpus, self.tokens, self.threads = parts, list(keys), corpus, tokens, threads
        self.num_units = [len(task.units) for task in tasks]

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        tokens = self.tokens
        encoder = Encoder(tokens.file, tokens.end_of_document, tokens.dtype, self.threads)
        sink = _Sink(self, rank)
        try:
            for split, ids, ends, num_bytes in encoder.encode(sink.texts(data)):
                sink.shards[split].write(ids, ends, num_bytes)
        except TooLongToTokenise as error:
            raise InputError(f"document {sink.latest}: {error}") from None
        files, found = sink.close()
        self.parts.finish(rank, self.keys[rank], files, found)
        yield from ()


class _Sink:
    """Everything that one task writes in the second pass."""

    def __init__(self, step: WriteShards, rank: int) -> None:
        parts = step.parts
        self.parts, self.rank = parts, rank
        places = [parts.path(rank, f"{split}.bin") for split in SPLITS]
        self.shards = [ShardWriter(path.parent, path.stem, step.tokens.dtype) for path in places]
        self.held_out = [PartialFile(parts.path(rank, f"{split}.jsonl")) for split in SPLITS[1:]]
        self.drops = None
        if step.corpus.keep_dropped is not None:
            parts.path(rank, DROPPED_TEXTS).parent.mkdir(parents=True, exist_ok=True)
            self.drops = DropWriter(parts.path(rank, DROPPED_TEXTS), step.corpus.keep_dropped)
        self.latest = ""  # id of the document that was given last
        self.tally, self.cleaned = Tally(step.num_units[rank]), Counter[str]()

    def texts(self, data: Documents) -> Iterator[tuple[int, str]]:
        """The split and text of every document that is kept; the others are counted and, if asked, written."""
        for document in data:
            reason = self.tally.count(document)
            if reason is not None:
                if self.drops is not None:
                    self.drops.add(document.id, reason, document.text or document.metadata.get(ERROR, ""))
                continue
            split = document.metadata[SPLIT]
            if changes := document.metadata.get(CLEANED):
                self.cleaned += changes
            if split:
                self.held_out[split - 1].write(_held_out_line(document))
            self.latest = document.id
            yield split, document.text

    def close(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Puts all files in place. Returns them by role, and what else is known."""
        files = {f"{name}.jsonl": file.close() for name, file in zip(SPLITS[1:], self.held_out, strict=True)}
        shards = [shard.close() for shard in self.shards]
        for split, shard in zip(SPLITS, shards, strict=True):
            files |= {f"{split}.{kind}": record for kind, record in shard.pop("files").items()}
        if self.drops is not None:
            path = self.parts.path(self.rank, DROPPED_TEXTS)
            with naming_full_disk(path):
                self.drops.close()
            files[DROPPED_TEXTS] = describe_file(path)
        return files, {**self.tally.described(), "shards": shards, "cleaned": dict(self.cleaned)}


def _held_out_line(document: Document) -> bytes:
    row = {"id": document.id, "text": document.text, "metadata": columns_of(document)}
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()


def write_shards(chosen: Selection, tokens: Tokens, run: DataRun) -> Parts:
    """Tokenises what is not done yet, or can be taken over from a folder that was set aside.

    Raises: InputError for anything wrong in the sources, or when no document is left.
    """
    parts = Parts(chosen.folder, "shards", SHARDS)
    (chosen.folder / TOKENS).mkdir(exist_ok=True)
    for folder in (chosen.folder, chosen.folder / TOKENS, chosen.folder / DROPPED_TEXTS):
        remove_partial_files(folder)
    if (chosen.folder / DOUBTED).is_file():
        parts.forget_damaged()
    pairs = zip(chosen.texts, chosen.keys, strict=True)
    keys = [shards_key(text, decisions, tokens.key, chosen.corpus) for text, decisions in pairs]
    taken = parts.take_over(keys)
    missing = parts.missing(keys)
    say_what_is_kept("tokenising", len(keys), len(missing), taken)
    threads = run.threads(len(missing))
    steps = [*chosen.steps(), WriteShards(parts, keys, chosen.tasks, chosen.corpus, tokens, threads)]
    run_tasks(steps, chosen.tasks, missing, chosen.folder / WORK / "tokenising", run, "prepare_data: tokenising")
    found = [parts.read(rank) for rank in range(len(keys))]
    refuse_nothing_left([part["read"] for part in found], [part["dropped"] for part in found])
    return parts
