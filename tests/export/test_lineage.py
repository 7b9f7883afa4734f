"""The history of a model is read from the folders of its runs."""

import shutil
from pathlib import Path

import pytest

from ingot.export import lineage
from ingot.export.lineage import Run


def stages(runs: list[Run]) -> list[str]:
    """The names of the stages."""
    return [run.stage for run in runs]


def test_runs_come_oldest_first(runs: Path) -> None:
    history = lineage.lineage(runs / "dpo")
    assert stages(history) == ["prepare_data", "pretrain", "dpo"]
    assert history[1].manifest["results"] == {"eval_loss": 3.21}
    assert history[1].recipe["data"]["shards"] == str(runs / "prepare_data")


def test_inputs_in_lists_are_found() -> None:
    recipe = {"data": {"mixture": [{"shards": "a"}, {"shards": "b"}]}, "model": {"tokenizer": "t"}}
    inputs = {"model.tokenizer": "1", "data.mixture.0.shards": "2", "data.mixture.1.shards": "3"}
    run = Run(Path("run"), recipe, {"stage": "pretrain", "inputs": inputs})
    assert list(run.inputs()) == [(Path("t"), "1"), (Path("a"), "2"), (Path("b"), "3")]


def test_a_hub_folder_has_no_history(runs: Path) -> None:
    assert lineage.lineage(runs / "dpo" / "model") == []


def test_a_run_that_is_gone_or_was_made_anew_is_left_out_and_said(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(lineage.logger, "warning", lambda message, *values: said.append(message % values))
    copy = shutil.copytree(runs / "dpo", tmp_path / "dpo")
    recipe = copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(runs / "pretrain"), str(tmp_path / "gone")))
    assert stages(lineage.lineage(copy)) == ["dpo"]
    shutil.copytree(runs / "evaluate", tmp_path / "gone")
    assert stages(lineage.lineage(copy)) == ["dpo"]
    assert "which is gone" in said[0] and "changed after" in said[1]
