"""Dropped documents with their reasons, for whoever wants to look at them."""

import io
import json
from collections import Counter
from pathlib import Path

from ingot.data.cleaning.section import KeepDropped
from ingot.data.shard_writer import PartialFile


class DropWriter:
    """Writes {id, reason, text} lines to a .jsonl.zst file, which takes its name when it is closed.

    Raises: InputError that names the file when the disk is full.
    """

    def __init__(self, path: Path, section: KeepDropped) -> None:
        import zstandard

        self.path, self.limit = path, section.per_reason
        self.raw = PartialFile(path)
        packed = zstandard.ZstdCompressor().stream_writer(self.raw, closefd=False)  # type: ignore[arg-type]
        self.file = io.TextIOWrapper(packed, encoding="utf-8", newline="")
        self.counts: Counter[str] = Counter()

    def add(self, identity: str, reason: str, text: str) -> None:
        """Writes a document, unless there are enough with this reason."""
        if self.limit is not None and self.counts[reason] >= self.limit:
            return
        self.counts[reason] += 1
        row = {"id": identity, "reason": reason, "text": text}
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> dict[str, int]:
        """Finishes the file. Returns how many documents of each reason it holds."""
        self.file.close()
        self.raw.close()
        return dict(self.counts)
