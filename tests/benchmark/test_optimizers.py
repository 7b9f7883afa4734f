"""Optimizers by learning rate, at equal tokens and in equal time."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingot.benchmark.optimizers import equal_time_steps, optimizers_command, summary
from ingot.recipe import InputError
from ingot.recipe_yaml import read_yaml

RECIPE = str(Path(__file__).parents[2] / "recipes/125m/pretrain.yaml")
RATES = {"adamw_torch_fused": 100.0, "muon": 80.0}  # tokens per second
BEST = {"adamw_torch_fused": 2e-3, "muon": 4e-3}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recipes that would have been trained; the loss grows with the distance from the best learning rate."""
    recipes: list[dict[str, Any]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        recipe = read_yaml(Path(command[-1]))
        recipes.append(recipe)
        training = recipe["training"]
        name = recipe["run"]["optimizer"] or training["optim"]
        loss = 4 + abs(training["learning_rate"] - BEST[name])
        steps = training["max_steps"]
        lines = [{"step": steps, "loss": loss, "tokens_per_second": RATES[name]}, {"step": steps, "eval_loss": loss}]
        (Path(recipe["run"]["dir"]) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return recipes


def test_the_best_of_the_sweep_runs_again_in_equal_time(
    trained: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--sweep", "adamw=1e-3,2e-3,4e-3", "--sweep", "muon=1e-3,2e-3,4e-3"]
    words = ["--config", RECIPE, "--out", str(tmp_path), "--steps", "200", "--timing-steps", "20", *sweep]
    optimizers_command([*words, "--run.global_batch_size=16"])
    assert [r["training"]["max_steps"] for r in trained] == [20, 20, *[200] * 6, 160]  # muon has 80% of the speed
    assert trained[0]["training"]["eval_strategy"] == "no"  # of the runs that are timed
    assert trained[-1]["run"]["optimizer"] == "muon" and trained[-1]["training"]["learning_rate"] == 4e-3
    results = json.loads((tmp_path / "optimizers.json").read_text())
    adamw, muon = results["optimizers"]["adamw"], results["optimizers"]["muon"]
    assert (adamw["best"], adamw["best_is_at_the_edge"]) == (2e-3, False)
    assert (muon["best"], muon["best_is_at_the_edge"]) == (4e-3, True)
    assert (muon["equal_time_steps"], muon["equal_time_loss"]) == (160, 4.0) and "equal_time_loss" not in adamw
    page = capsys.readouterr().out
    assert "| muon | 80 | 0.004 (edge of the sweep) | 4.0000 | 4.0000 (160 steps) |" in page
    assert (tmp_path / "optimizers.png").stat().st_size > 1000


def test_a_sweep_is_widened_and_nothing_is_timed_again(trained: list[dict[str, Any]], tmp_path: Path) -> None:
    words = ["--config", RECIPE, "--steps", "200", "--timing-steps", "20", "--run.global_batch_size=16"]
    optimizers_command([*words, "--out", str(tmp_path / "a"), "--sweep", "adamw=2e-3", "--sweep", "muon=1e-3"])
    more = ["--out", str(tmp_path / "b"), "--sweep", "muon=4e-3", "--add", str(tmp_path / "a/optimizers.json")]
    optimizers_command([*words, *more])
    assert [r["training"]["max_steps"] for r in trained] == [20, 20, 200, 200, 160, 200, 160]
    assert trained[-1]["training"]["learning_rate"] == 4e-3  # the best of both studies, in equal time
    again = ["--out", str(tmp_path / "d"), "--sweep", "muon=9e-3", "--add", str(tmp_path / "b/optimizers.json")]
    trained.clear()
    optimizers_command([*words, *again])
    assert [r["training"]["learning_rate"] for r in trained] == [9e-3]  # worse: the best has run in equal time


def test_an_optimizer_that_never_ended_has_no_best() -> None:
    rows = [
        {"name": "a", "optimizer": "a", "kind": "timing", "tokens_per_second": 50.0, "heldout": []},
        {"name": "a", "optimizer": "a", "kind": "sweep", "learning_rate": 1.0, "heldout": [[1, 9.0]], "error": "x"},
    ]
    found = summary(rows)
    assert found == {"a": {"tokens_per_second": 50.0, "heldout_loss": {}}}
    assert equal_time_steps(found, 100) == {}


@pytest.mark.parametrize("text", ["muon", "muon=", "muon=fast"])
def test_rates_that_are_no_numbers_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--sweep: '{text}': write an optimizer and its rates"):
        optimizers_command(["--config", RECIPE, "--out", str(tmp_path), "--sweep", text])
