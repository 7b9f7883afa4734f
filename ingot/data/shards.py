"""Token shards: flat files of token ids with the ends of their documents, written once and memory-mapped.

A folder holds `tokens/<split>-<number>.bin` (uint16 or uint32, little-endian), `tokens/<split>-<number>.ends`
(uint64: for every document the index after its last token) and `data.json`, which lists them with their counts.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.recipe import InputError
from ingot.runs import read_json

DESCRIPTION = "data.json"
TOKENS = "tokens"
RESERVED_FILES = 128  # that a process has open besides shards


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every token id: 2 bytes up to 65,536 entries, else 4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenShards:
    """The memory-mapped tokens and document ends of one split of a prepare_data folder.

    `files[s]` are the token ids of shard s, `ends[s]` the ends of its documents; nothing is held in memory.

    Raises: InputError when the folder has no such split or a file is not as long as it should be.
    """

    def __init__(self, folder: Path, split: str) -> None:
        if not (folder / DESCRIPTION).is_file():
            raise InputError(
                f"{folder}: no token shards here (no {DESCRIPTION}); name an output folder of prepare_data"
            )
        self.description = _description(folder)
        entry = self.description["splits"].get(split)
        if entry is None or entry["documents"] == 0:
            held = ", ".join(name for name, e in self.description["splits"].items() if e["documents"])
            raise InputError(f"{folder}: no documents in split '{split}'; it has {held}; see data.split of its recipe")
        self.num_documents: int = entry["documents"]
        self.num_tokens: int = entry["tokens"]
        self.num_bytes: int = entry["bytes"]
        self.files, self.ends = [], []
        self._paths = [folder / TOKENS / f"{shard['name']}.ends" for shard in entry["shards"]]
        allow_open_files(2 * len(entry["shards"]))
        for shard in entry["shards"]:
            path = folder / TOKENS / shard["name"]
            self.files.append(_map(path.with_suffix(".bin"), np.dtype(self.description["dtype"]), shard["tokens"]))
            self.ends.append(_map(path.with_suffix(".ends"), np.dtype("<u8"), shard["documents"]).view("<i8"))
        self._first = np.cumsum([0, *(len(ends) for ends in self.ends)])  # the number of each shard's first document

    @property
    def vocab_size(self) -> int:
        """The length of the tokenizer that the tokens were made with."""
        return int(self.description["vocab_size"])

    @property
    def end_of_document(self) -> int:
        """The id of the token that ends every document."""
        return int(self.description["end_of_document"])

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text for every token that a model predicts: all but the first of each document."""
        return self.num_bytes / (self.num_tokens - self.num_documents)

    def spans(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Shard, first token in it and length of documents: sorted numbers in the order of the files."""
        shard = (self._first.searchsorted(documents, side="right") - 1).astype(np.int32)
        starts, ends = np.zeros(len(documents), np.int64), np.empty(len(documents), np.int64)
        edges = documents.searchsorted(self._first)
        for number, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            if begin == end:
                continue
            inside = documents[begin:end] - self._first[number]
            ends[begin:end] = self.ends[number][inside]
            starts[begin:end] = np.where(inside > 0, self.ends[number][inside - 1], 0)
            if (ends[begin:end] <= starts[begin:end]).any() or ends[begin:end].max() > len(self.files[number]):
                raise InputError(f"{self._paths[number]}: is not as it was written; run prepare_data again")
        return shard, starts, ends - starts

    def document(self, index: int) -> NDArray[Any]:
        """The token ids of a document, in the order of the files."""
        (shard,), (start,), (length,) = self.spans(np.array([index]))
        return self.files[shard][start : start + length]


def _description(folder: Path) -> dict[str, Any]:
    found = read_json(folder / DESCRIPTION)
    if not isinstance(found, dict) or not isinstance(found.get("splits"), dict):
        raise InputError(f"{folder / DESCRIPTION}: does not describe shards; run prepare_data again")
    return found


def _map(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """A memory-mapped file as a plain array (slices of np.memmap cost microseconds each)."""
    if not path.is_file() or path.stat().st_size != length * dtype.itemsize:
        raise InputError(f"{path}: missing or not {length * dtype.itemsize} bytes long; run prepare_data again")
    return np.asarray(np.memmap(path, dtype, mode="r")).view(np.ndarray)


def allow_open_files(more: int) -> None:
    """Raises this process's limit of open files, often 1,024, by `more`: every memory-mapped file counts as one.

    Raises: InputError when the system does not allow so many.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and more > hard - RESERVED_FILES:
        raise InputError(f"{more:,} files of shards but only {hard:,} may be open; raise the limit (ulimit -Hn)")
    wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_held_out(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The raw held-out documents of a prepare_data folder: {id, text, metadata}."""
    path = folder / f"{split}.jsonl"
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)
