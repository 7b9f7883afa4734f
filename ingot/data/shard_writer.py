"""Writes token shards: a file of token ids and one of document ends, whole under their names or not there at all."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.files import naming_full_disk

KINDS = ("bin", "ends")
BUFFER = 1 << 20  # bytes


class ShardWriter:
    """Writes one shard; the files appear under their names only when it is closed, whole.

    Raises: InputError that names the file when the disk is full.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.paths = [folder / f"{name}.{kind}" for kind in KINDS]
        self.files = [PartialFile(path) for path in self.paths]
        self.num_documents = self.num_tokens = self.num_bytes = 0

    def add(self, ids: Sequence[int], num_bytes: int) -> None:
        """Appends a document: its token ids and the bytes of its text."""
        self.write(np.asarray(ids, self.dtype), np.array([len(ids)]), num_bytes)

    def write(self, ids: NDArray[Any], ends: NDArray[np.integer], num_bytes: int) -> None:
        """Appends token ids; `ends` are the places in them after which a document ends, `num_bytes` their text's."""
        tokens, files = self.num_tokens, self.files
        files[0].write(np.ascontiguousarray(ids, self.dtype).data)
        files[1].write((ends.astype(np.uint64) + np.uint64(tokens)).data)
        self.num_tokens += len(ids)
        self.num_documents += len(ends)
        self.num_bytes += num_bytes

    def close(self) -> dict[str, Any]:
        """Puts the files in place and describes them; an empty shard leaves no files."""
        described = {}
        for kind, file in zip(KINDS, self.files, strict=True):
            record = file.close(keep=self.num_documents > 0)
            described[kind] = record
        found: dict[str, Any] = {"name": self.name, "documents": self.num_documents}
        found |= {"tokens": self.num_tokens, "bytes": self.num_bytes}
        return {**found, "files": described if self.num_documents else {}}


class PartialFile:
    """A file that has its name only when it is whole and safe on the disk; it knows its sha256.

    Raises: InputError that names it when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self.hash = hashlib.sha256()
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.partial, "wb", BUFFER)  # noqa: SIM115 - closed in close()

    def write(self, data: Any) -> None:
        """Appends bytes."""
        with naming_full_disk(self.path):
            self.file.write(data)
        self.hash.update(data)
        self.size += memoryview(data).nbytes

    def close(self, keep: bool = True) -> dict[str, Any]:
        """Puts the file in place, or removes it. Returns its bytes and sha256."""
        with naming_full_disk(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            if keep:
                os.replace(self.partial, self.path)
            else:
                self.partial.unlink()
                self.path.unlink(missing_ok=True)
        return {"bytes": self.size, "sha256": self.hash.hexdigest()}


def remove_partial_files(folder: Path) -> None:
    """Removes what killed processes left half-written."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)
