"""The stage: models in, numbers and a report out; done once; wrong recipes refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot.evaluation.evaluate import EvaluateRecipe, is_chat, run
from ingot.recipe import InputError, build_recipe, stage_inputs

from .conftest import make_model, make_run


def recipe_of(hub_folder: Path, data_folder: Path, run_dir: Path, **sections: Any) -> EvaluateRecipe:
    """A recipe that compares the tiny model with itself, as base and as chat model."""
    tree: dict[str, Any] = {
        "model": {"candidates": {"base": str(hub_folder), "dpo": str(hub_folder)}, "raw_text": ["base"]},
        "data": {"documents": str(data_folder), "continuation_rows": 8},
        "generation": {"prompts": ["the state", "free people"], "max_new_tokens": 3},
        "run": {"dir": str(run_dir)},
    }
    return build_recipe(EvaluateRecipe, tree | sections)


@pytest.fixture(scope="module")
def finished(hub_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished evaluation: its folder and its results."""
    folder = tmp_path_factory.mktemp("runs") / "evaluate"
    return folder, run(recipe_of(hub_folder, data_folder, folder))


def test_results_are_in_the_manifest_under_each_model(finished: tuple[Path, Any]) -> None:
    folder, results = finished
    assert json.loads((folder / "manifest.json").read_text())["results"] == results
    assert results["base"]["bits_per_byte"] == results["dpo"]["bits_per_byte"] > 2
    assert results["base"]["tasks"]["continuation"]["rows"] == 8
    assert results["base"]["tasks"]["continuation"]["chance"] == 0.25
    assert min(results[name]["bits_per_byte"] for name in ("xz", "bz2")) > 0


def test_the_folder_holds_the_report_the_task_and_the_answers(finished: tuple[Path, Any]) -> None:
    folder, results = finished
    report = (folder / "report.md").read_text()
    assert f"{results['base']['bits_per_byte']:.3f}" in report and "### 2. free people" in report
    assert len((folder / "tasks" / "continuation.jsonl").read_text().splitlines()) == 8
    answers = json.loads((folder / "scores" / "dpo.json").read_text())
    assert [answer["prompt"] for answer in answers["answers"]] == ["the state", "free people"]
    assert (answers["about"]["chat"], answers["about"]["window_in_tokens"]) == (True, 128)


def test_a_finished_evaluation_is_not_repeated(
    finished: tuple[Path, Any], hub_folder: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = finished
    monkeypatch.setattr("ingot.evaluation.evaluate.load_model", lambda path: pytest.fail("loaded again"))
    assert run(recipe_of(hub_folder, data_folder, folder)) == results


def test_an_interrupted_evaluation_keeps_the_models_that_are_done(
    hub_folder: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(hub_folder, data_folder, tmp_path / "run", data={
        "documents": str(data_folder), "continuation_rows": 0})  # fmt: skip
    loads: list[str] = []

    def load_once(path: Path) -> Any:
        loads.append(str(path))
        if len(loads) == 2:
            raise KeyboardInterrupt
        return make_model()

    monkeypatch.setattr("ingot.evaluation.evaluate.load_model", load_once)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    results = run(recipe)
    assert len(loads) == 3 and results["base"]["tasks"] == {}


@pytest.mark.parametrize(
    "section,value,message",
    [
        ("model", {"candidates": {}}, "model.candidates: name at least one model"),
        ("model", {"candidates": {"xz": "a"}}, "'xz' cannot name a model"),
        ("model", {"candidates": {"a/b": "a"}}, "'a/b' cannot name a model"),
        ("model", {"candidates": {"base": "a"}, "raw_text": ["bas"]}, "model.raw_text: 'bas' is not one of"),
        ("data", {"documents": "a", "tasks": ["absent.yaml"]}, "data.tasks: absent.yaml does not exist"),
        ("perplexity", {"sride": 3}, "perplexity.sride: no such key; did you mean 'stride'"),
    ],
)
def test_wrong_recipes_are_refused(hub_folder: Path, tmp_path: Path, section: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(hub_folder, tmp_path, tmp_path / "run", **{section: value})


def test_every_candidate_is_an_input_that_a_stage_may_have_made(hub_folder: Path, tmp_path: Path) -> None:
    keys = {key: marker for key, _, marker in stage_inputs(recipe_of(hub_folder, tmp_path, tmp_path / "run"))}
    assert set(keys) == {"model.candidates.base", "model.candidates.dpo", "data.documents"}
    assert keys["model.candidates.dpo"].hub and "dpo" in keys["model.candidates.dpo"].stages


def test_a_pretrained_model_continues_text_and_a_tuned_one_chats(tokenizer: Any, tmp_path: Path) -> None:
    base, sft = make_run(tmp_path / "base", "pretrain", {}), make_run(tmp_path / "sft", "sft", {})
    assert not is_chat("base", base, None, tokenizer)
    assert not is_chat("base", base / "model", None, tokenizer)
    assert is_chat("sft", sft, None, tokenizer)
    assert is_chat("base", base, [], tokenizer)


def test_the_module_is_light_to_import() -> None:
    code = "import sys, ingot.evaluation.evaluate; print({'torch', 'lm_eval', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
