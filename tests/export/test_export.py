"""The stage: a finished run in, a Hub folder out that a stranger can load; broken sources refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from ingot.export.export import ExportRecipe, evaluation_of, run
from ingot.recipe import InputError, build_recipe

from .conftest import make_model, save_hub


def recipe_of(source: Path, run_dir: Path, **card: Any) -> ExportRecipe:
    """A recipe that exports a folder."""
    return build_recipe(ExportRecipe, {"run": {"from": str(source), "dir": str(run_dir)}, "card": card})


@pytest.fixture(scope="module")
def exported(runs: Path) -> tuple[Path, dict[str, Any]]:
    """The DPO run, exported."""
    card = {"title": "Tiny", "language": ["en"], "license": "apache-2.0", "evaluation": str(runs / "evaluate")}
    return runs / "export", run(recipe_of(runs / "dpo", runs / "export", **card))


def test_the_export_is_proved_equal(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, results = exported
    assert results["path"] == str(folder / "model") and results["max_logit_difference"] == 0.0
    assert results["remote_code"] is True and results["parameters"] == make_model().num_parameters()
    assert results["embedding_parameters"] == 320 * 16  # tied: counted once
    assert not (folder / ".partial").exists()


def test_the_card_has_the_numbers_of_the_evaluation(exported: tuple[Path, dict[str, Any]]) -> None:
    card = ModelCard.load(exported[0] / "model" / "README.md")
    assert card.data.model_name == "Tiny"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["bits_per_byte"] == 1.4321


def test_a_finished_export_is_not_repeated(
    exported: tuple[Path, dict[str, Any]], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingot.export.export.load_model", lambda path: pytest.fail("loaded again"))
    card = {"title": "Tiny", "language": ["en"], "license": "apache-2.0", "evaluation": str(runs / "evaluate")}
    assert run(recipe_of(runs / "dpo", exported[0], **card)) == exported[1]


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    source = save_hub(tmp_path / "source", make_model())
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        run(recipe_of(source, tmp_path / "export"))
    assert not (tmp_path / "export" / "model").exists()


def test_an_unequal_export_leaves_no_model(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, folder: Path) -> float:
        raise RuntimeError("not equal")

    monkeypatch.setattr("ingot.export.export.verify_export", refuse)
    with pytest.raises(RuntimeError, match="not equal"):
        run(recipe_of(runs / "dpo", tmp_path / "export"))
    assert not (tmp_path / "export" / "model").exists() and not (tmp_path / "export" / "manifest.json").exists()


def test_an_evaluation_of_other_models_is_not_taken_for_this_one(runs: Path) -> None:
    assert evaluation_of(runs / "evaluate", runs / "dpo").name == "dpo"
    assert evaluation_of(runs / "evaluate", runs / "pretrain").name is None


def test_a_missing_source_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.from: .*dpo does not exist; make it with: ingot dpo"):
        run(recipe_of(tmp_path / "dpo", tmp_path / "export"))


def test_the_module_is_light_to_import() -> None:
    code = "import sys, ingot.export.export; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "set()"
