"""The train_tokenizer stage: the run folder is the tokenizer, and held-out documents are not looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ingot.recipe import InputError, build_recipe
from ingot.tokenization.build import copy_tokenizer
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


def recipe_of(tmp_path: Path, tokenizer: dict[str, Any], corpus: bool = True) -> TokenizerRecipe:
    """A recipe over a small file of documents, or without a corpus."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts(200))))
    data = {"data": {"sources": [{"path": str(path)}]}} if corpus else {}
    return build_recipe(TokenizerRecipe, {"tokenizer": tokenizer, **data, "run": {"dir": str(tmp_path / "run")}})


def test_unigram_from_a_recipe(tmp_path: Path) -> None:
    results = run(recipe_of(tmp_path, {"vocab_size": 420, "model": "unigram"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert results["vocab_size"] == len(tokenizer) == 420
    assert tokenizer.decode(tokenizer.encode("naïve ▁ 日本")) == "naïve ▁ 日本"
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["type"] == "Unigram"


def test_a_limit_on_the_text(tmp_path: Path) -> None:
    results = run(recipe_of(tmp_path, {"vocab_size": 300, "max_bytes": 9000}))
    assert 8000 < results["trained_on_bytes"] <= 9000 < results["corpus_bytes"]


@pytest.mark.parametrize("corpus", [True, False])
def test_a_tokenizer_that_is_taken_over(tmp_path: Path, folders: dict[str, Path], corpus: bool) -> None:
    results = run(recipe_of(tmp_path, {"from": str(folders["gpt4"])}, corpus))
    assert (results["added"], results["notes"], results["vocab_size"]) == ([], [], 512)
    assert results["texts_compared"] > 20 and results["bytes_per_token"] > 1
    ours, theirs = (Path(f) / "tokenizer.json" for f in (tmp_path / "run", folders["gpt4"]))
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


def test_a_changed_source_is_taken_over_again(tmp_path: Path, folders: dict[str, Path]) -> None:
    (tmp_path / "source").mkdir()
    copy_tokenizer(folders["gpt2"], tmp_path / "source")
    recipe = recipe_of(tmp_path, {"from": str(tmp_path / "source")}, corpus=False)
    run(recipe)
    copy_tokenizer(folders["qwen2"], tmp_path / "source")
    run(recipe)
    assert (tmp_path / "run.old-1").is_dir()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({}, r"tokenizer\.vocab_size: missing"),
        (
            {"vocab_size": 300, "model": "unigram"},
            r"tokenizer\.vocab_size: unigram needs at least 356 entries, not 300",
        ),
        ({"vocab_size": 300, "allow_lossy": True}, r"tokenizer\.allow_lossy: only with tokenizer\.from"),
        ({"from": ".", "vocab_size": 300}, r"tokenizer\.vocab_size: leave it out; it comes with the tokenizer"),
        ({"from": ".", "pre_tokenizer": "gpt2"}, r"tokenizer\.pre_tokenizer: leave it out"),
        ({"vocab_size": 300, "pre_tokenizer": "gpt5"}, r"tokenizer\.pre_tokenizer"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, tokenizer: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(tmp_path, tokenizer)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.from: nowhere is neither a folder with a tokenizer nor a Sent"):
        run(recipe_of(tmp_path, {"from": "nowhere"}, corpus=False))


def test_training_needs_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data: missing; name the corpus to train on"):
        recipe_of(tmp_path, {"vocab_size": 300}, corpus=False)
