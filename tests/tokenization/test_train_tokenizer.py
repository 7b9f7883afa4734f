"""The train_tokenizer stage: the run folder is the tokenizer, and held-out documents are not looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ingot.recipe import InputError, build_recipe
from ingot.tokenization.train_tokenizer import TokenizerRecipe, run

from .conftest import texts


def train(tmp_path: Path, name: str = "run", size: int = 300, **data: Any) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts(200))))
    tree = {"tokenizer": {"vocab_size": size}, "data": {"sources": [{"path": str(path)}], **data}}
    recipe = build_recipe(TokenizerRecipe, {**tree, "run": {"dir": str(tmp_path / name)}})
    return tmp_path / name, run(recipe)


def test_the_run_folder_is_the_tokenizer(tmp_path: Path) -> None:
    folder, results = train(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert results["vocab_size"] == len(tokenizer) == 300
    assert 1 < results["bytes_per_token"] < 4
    assert not (folder / ".work").exists()
    assert train(tmp_path)[1] == results


def test_held_out_documents_do_not_change_it(tmp_path: Path) -> None:
    split = {"test": 150}
    folder, _ = train(tmp_path, "part", split=split)
    whole, _ = train(tmp_path, "whole")
    before = (folder / "tokenizer.json").read_bytes()
    assert before != (whole / "tokenizer.json").read_bytes()
    again, _ = train(tmp_path, "again", split=split)
    assert (again / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("size", "data", "message"),
    [
        (100, {}, r"tokenizer\.vocab_size"),
        (4000, {}, "enough for only"),
        (300, {"split": {"test": 0.5, "stratify": "id"}}, r"data\.split\.stratify: needs numbers of documents"),
        (300, {"filtres": {}}, r"data\.filtres: no such key; did you mean 'filters'\?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, size: int, data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, size=size, **data)
