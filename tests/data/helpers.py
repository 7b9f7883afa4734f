"""Rows of generated text."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["the", "river", "runs", "over", "old", "stones", "and", "small", "bird", "sings", "in", "tall", "green"]
WORDS += ["trees", "near", "our", "quiet", "house", "where", "people", "gather", "every", "morning", "with", "bread"]


def sentence(seed: int, num_words: int = 12) -> str:
    """A sentence that differs from seed to seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words)) + f" {seed}."


def make_rows(size: int) -> list[dict[str, Any]]:
    """Rows of different lengths; three rows a year."""
    return [{"id": f"d{i}", "text": sentence(i, 5 + i % 17), "year": 1900 + i // 3} for i in range(size)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
