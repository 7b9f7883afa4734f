"""A tiny corpus, a tokenizer trained on it, and a way to prepare any sources with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.data import execution
from ingot.data.prepare_data import DataRecipe, run
from ingot.recipe import build_recipe
from ingot.tokenization.train_tokenizer import TokenizerRecipe
from ingot.tokenization.train_tokenizer import run as train_tokenizer

from .helpers import make_rows, write_jsonl


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every task of the pipeline in this process."""
    monkeypatch.setattr(execution, "num_cores", lambda: 1)


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
