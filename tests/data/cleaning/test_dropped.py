"""Dropped documents are written with their reasons, up to so many of each."""

import io
import json
from pathlib import Path
from typing import Any

import zstandard

from ingot.data.cleaning.dropped import DropWriter
from ingot.data.cleaning.section import KeepDropped


def rows(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as file:
        return [
            json.loads(line) for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
        ]


def test_every_document_is_written(tmp_path: Path) -> None:
    writer = DropWriter(tmp_path / "dropped-00000.jsonl.zst", KeepDropped())
    for i in range(3):
        writer.add(f"d{i}", "too_short", f"Fluß\n{i}\u2028")
    assert not writer.path.exists()
    assert writer.close() == {"too_short": 3}
    assert rows(writer.path)[1] == {"id": "d1", "reason": "too_short", "text": "Fluß\n1\u2028"}
    assert [path.name for path in tmp_path.iterdir()] == ["dropped-00000.jsonl.zst"]


def test_so_many_of_each_reason(tmp_path: Path) -> None:
    writer = DropWriter(tmp_path / "dropped.jsonl.zst", KeepDropped(per_reason=2))
    for i in range(5):
        writer.add(f"a{i}", "one", "x")
        writer.add(f"b{i}", "two", "y")
    assert writer.close() == {"one": 2, "two": 2}
    assert [row["id"] for row in rows(writer.path)] == ["a0", "b0", "a1", "b1"]


def test_no_document_at_all(tmp_path: Path) -> None:
    writer = DropWriter(tmp_path / "dropped.jsonl.zst", KeepDropped())
    assert writer.close() == {} and rows(writer.path) == []
