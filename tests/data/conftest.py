"""A tiny corpus, a tokenizer trained on it, and a way to prepare any sources with it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.data import pipeline
from ingot.data.prepare_data import DataRecipe, run
from ingot.recipe import build_recipe
from ingot.tokenization.train_tokenizer import TokenizerRecipe
from ingot.tokenization.train_tokenizer import run as train_tokenizer

WORDS = ["the", "river", "runs", "over", "old", "stones", "and", "a", "small", "bird", "sings", "in", "green", "trees"]


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


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every task of the pipeline in this process."""
    monkeypatch.setattr(pipeline, "num_cores", lambda: 1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer of 320 entries."""
    folder = tmp_path_factory.mktemp("tokenizer")
    path = write_jsonl(folder / "rows.jsonl", make_rows(60))
    tree = {"tokenizer": {"vocab_size": 320}, "data": {"sources": [{"path": str(path)}]}}
    train_tokenizer(build_recipe(TokenizerRecipe, {**tree, "run": {"dir": str(folder / "run")}}))
    return folder / "run"


@pytest.fixture
def prepare(tmp_path: Path, tokenizer_folder: Path, one_process: None) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Prepares sources: (list of sources, name of the run, further keys of `data`) -> (folder, results)."""

    def prepare(sources: list[dict[str, Any]], name: str = "run", **data: Any) -> tuple[Path, dict[str, Any]]:
        tree = {"data": {"sources": sources, "tokenizer": str(tokenizer_folder), **data}}
        recipe = build_recipe(DataRecipe, {**tree, "run": {"dir": str(tmp_path / name)}})
        return tmp_path / name, run(recipe)

    return prepare
