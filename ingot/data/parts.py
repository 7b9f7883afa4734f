"""Finished parts of a run folder: every task's work has a record with its key, and the files that belong to it.

A part counts as finished when its record is there, has the key that is wanted, and its files have the sizes that it
says. Files are put in place before the record, so that a killed process never leaves a part that only looks whole.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.files import naming_full_disk, read_json, write_json
from ingot.hashing import changed_file, set_aside
from ingot.runs import get_logger

logger = get_logger(__name__)

WORK = ".parts"  # what a run keeps besides its result, so that a changed recipe need not do all again


class Parts:
    """The parts of one kind ("judged", "shards"); `names` gives the file of each role, with {rank} in it."""

    def __init__(self, root: Path, kind: str, names: Mapping[str, str]) -> None:
        self.root, self.kind, self.names = root, kind, dict(names)

    def path(self, rank: int, role: str) -> Path:
        """Where a file of a part lies."""
        return self.root / self.names[role].format(rank=f"{rank:05d}")

    def _record(self, rank: int) -> Path:
        return self.root / WORK / f"{self.kind}-{rank:05d}.json"

    def finish(self, rank: int, key: str, files: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> None:
        """Records a part whose files (role -> {bytes, sha256}) are in place; `found` is what else to keep about it."""
        with naming_full_disk(self._record(rank)):
            write_json(self._record(rank), {"key": key, "files": files, **found})

    def read(self, rank: int) -> dict[str, Any]:
        """The record of a finished part."""
        return dict(read_json(self._record(rank)))

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The ranks that are not finished with these keys."""
        return [rank for rank, key in enumerate(keys) if not self._is_finished(rank, key)]

    def _is_finished(self, rank: int, key: str) -> bool:
        if not self._record(rank).is_file():
            return False
        record = self.read(rank)
        return record.get("key") == key and all(
            _size(self.path(rank, role)) == file["bytes"] for role, file in record["files"].items()
        )

    def take_over(self, keys: Sequence[str]) -> int:
        """Links parts with the wanted keys that folders set aside hold. Returns how many."""
        missing = self.missing(keys)
        taken = 0
        for folder in set_aside(self.root) if missing else []:
            old = Parts(folder, self.kind, self.names)
            there = {record["key"]: rank for rank, record in old._all().items()}
            for rank in [r for r in missing if keys[r] in there]:
                if self._link(rank, old, there[keys[rank]]):
                    missing.remove(rank)
                    taken += 1
        return taken

    def forget_damaged(self) -> None:
        """Reads every byte of the finished parts; one that is not as it was written has to be made again."""
        for rank, record in self._all().items():
            files = {str(self.path(rank, role).relative_to(self.root)): file for role, file in record["files"].items()}
            if changed := changed_file(self.root, files):
                logger.info("%s: making it again", changed)
                self._record(rank).unlink()

    def _all(self) -> dict[int, dict[str, Any]]:
        paths = sorted((self.root / WORK).glob(f"{self.kind}-*.json"))
        return {int(path.stem.rpartition("-")[2]): read_json(path) for path in paths}

    def _link(self, rank: int, old: "Parts", old_rank: int) -> bool:
        record = old.read(old_rank)
        if not old._is_finished(old_rank, record["key"]):
            return False
        for role in record["files"]:
            link_or_copy(old.path(old_rank, role), self.path(rank, role))
        write_json(self._record(rank), record)
        return True


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none; atomic."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    with naming_full_disk(target):
        try:
            os.link(source, partial)
        except OSError:  # another file system, or one without links
            shutil.copy2(source, partial)
        os.replace(partial, target)
