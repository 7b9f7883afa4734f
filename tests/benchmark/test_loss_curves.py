"""Variants of a recipe beside a reference."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ingot.benchmark.loss_curves import loss_curves_command, summary, table
from ingot.recipe import InputError
from ingot.recipe_yaml import read_yaml

RECIPE = str(Path(__file__).parents[2] / "recipes/125m/pretrain.yaml")


def row(name: str, heldout: float, train: float = 4.0, **more: Any) -> dict[str, Any]:
    losses = [[10, 9.0], [150, train - 0.5], [200, train + 0.5]]
    return {"name": name, "steps": 200, "train": losses, "heldout": [[100, 6.0], [200, heldout]], **more}


def test_differences_are_relative_and_held_against_other_seeds() -> None:
    rows = [row("bf16", 4.0), row("stock", 4.02), row("seed2", 4.01), row("fp8", 3.96, 4.2), row("x", 0, error="e")]
    assert not any("within_chance" in one for one in summary(rows, "bf16").values())  # one draw of chance says little
    rows.append(row("seed3", 3.99))
    found = summary(rows, "bf16")
    assert list(found) == ["bf16", "stock", "seed2", "fp8", "seed3"]
    assert found["stock"]["heldout_difference"] == pytest.approx(0.005) and found["stock"]["within_chance"]
    assert found["fp8"]["within_chance"] is False and found["fp8"]["train_difference"] == pytest.approx(0.05)
    assert found["bf16"]["train_loss"] == pytest.approx(4.0)  # of the steps after the 100th
    page = table({"device": "H200", "torch": "2", "steps": 200, "against": "bf16", "runs": rows, "summary": found})
    assert "| stock | 4.0200 | +0.500% | 4.0000 | +0.000% | yes |" in page and "- x: e" in page


def test_without_other_seeds_nothing_is_said_of_chance() -> None:
    found = summary([row("a", 4.0), row("b", 4.1)], "a")
    page = table({"device": "x", "torch": "2", "steps": 200, "against": "a", "runs": [], "summary": found})
    assert "seed" not in page and "within_chance" not in found["b"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The recipes that would have been trained."""
    recipes: list[dict[str, Any]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        recipes.append({**read_yaml(Path(command[-1])), "program": command[2]})
        lines = [{"step": step, "loss": 4.0} for step in range(1, 11)] + [{"step": 10, "eval_loss": 4.0}]
        folder = Path(recipes[-1]["run"]["dir"])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return recipes


def test_the_command_writes_results_and_adds_earlier_ones(
    trained: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", RECIPE, "--steps", "10", "--stock-micro-batch", "4", "--data.seq_length=64"]
    loss_curves_command([*words, "--out", str(tmp_path / "a"), "--run", "stock2", "--run", "bf16"])
    assert [recipe["program"] for recipe in trained] == ["ingot.benchmark.stock_pretrain", "ingot.cli"]
    assert [r["training"]["per_device_train_batch_size"] for r in trained] == [4, 16]
    with pytest.raises(InputError, match="loss_curves.json exists; keep its runs with --add"):
        loss_curves_command([*words, "--out", str(tmp_path / "a")])
    assert {recipe["data"]["seq_length"] for recipe in trained} == {64}
    earlier = tmp_path / "a/loss_curves.json"
    loss_curves_command(
        [*words, "--out", str(tmp_path / "b"), "--run", "seed2 --training.seed=2", "--add", str(earlier)]
    )
    assert trained[-1]["training"]["seed"] == 2 and len(trained) == 3
    results = json.loads((tmp_path / "b/loss_curves.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["stock2", "bf16", "seed2"]
    assert (tmp_path / "b/loss_curves.png").stat().st_size > 1000
    assert "| stock2 | 4.0000 | +0.000% |" in capsys.readouterr().out


def test_without_words_the_stock_trainer_other_seeds_and_fp8_run(
    trained: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_curves_command(["--config", RECIPE, "--out", str(tmp_path), "--steps", "10"])
    assert [recipe["program"].rpartition(".")[2] for recipe in trained] == ["stock_pretrain", *["cli"] * 4]
    assert [recipe["run"].get("fp8", False) for recipe in trained] == [False, False, False, False, True]
    assert [recipe["training"]["seed"] for recipe in trained] == [1, 1, 2, 3, 1]
    assert "| stock | 4.0000 | +0.000% | 4.0000 | +0.000% | yes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "a", "--run", "a"], "two runs named 'a'"),
        (["--run", "a"], "--against: 'bf16' is none of the runs: a"),
        (["--run=--training.seed=2"], "write a name"),
        (["--run", "bf16 seed=2"], "seed=2: no such option"),
        (["--run", "bf16", "--run", "stock", "--run.global_batch_size=null"], "run.global_batch_size: missing"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: list[str], message: str, trained: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        loss_curves_command(["--config", RECIPE, "--out", str(tmp_path), *words])
    assert not trained


def test_an_interrupted_study_says_where_its_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt, match="interrupted; no run had ended"):
        loss_curves_command(["--config", RECIPE, "--out", str(tmp_path), "--run", "bf16"])
