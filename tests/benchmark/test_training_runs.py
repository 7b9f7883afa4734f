"""Runs of a study: their recipes, and what is told of runs that do not end well."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from ingot.benchmark import training_runs
from ingot.benchmark.training_runs import Run, Study, earlier_rows, take_overrides, train_all
from ingot.recipe import InputError
from ingot.recipe_yaml import read_yaml

RECIPE = Path(__file__).parents[2] / "recipes/1b5-24gb/pretrain.yaml"


def study_in(folder: Path, *overrides: str, **changes: Any) -> Study:
    return Study(RECIPE, overrides, 200, 4, folder, **changes)


def trained(metrics: list[dict[str, Any]], code: int = 0) -> Any:
    """Stands for subprocess.run: the process writes these metrics and ends."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        recipe = read_yaml(Path(command[-1]))
        folder = Path(recipe["run"]["dir"])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return subprocess.CompletedProcess(command, code, "", "first\nerror: the loss is not finite\n")

    return run


METRICS = [
    {"step": 1, "loss": 5.0, "tokens_per_second": 10.0},
    *({"step": step, "loss": 4.0, "tokens_per_second": 50.0} for step in (2, 3, 4)),
    {"step": 4, "eval_loss": 3.5},
]  # fmt: skip


def test_a_run_has_the_schedule_of_the_recipe_in_proportion(tmp_path: Path) -> None:
    study = study_in(tmp_path, "--run.global_batch_size=8", "--training.eval_steps=7")
    training = study.recipe(Run("a b", ("--training.learning_rate=0.5",)))["training"]
    assert (training["max_steps"], training["warmup_steps"], training["learning_rate"]) == (200, 0.1, 0.5)
    assert training["lr_scheduler_kwargs"]["num_decay_steps"] == 20  # a tenth, as in the recipe
    assert (training["eval_steps"], training["logging_steps"], training["save_strategy"]) == (7, 2, "no")
    assert study.recipe(Run("short", steps=40))["training"]["lr_scheduler_kwargs"]["num_decay_steps"] == 4
    folders = {study.recipe(Run(name))["run"]["dir"] for name in ("a b", "a@b", "a_b")}
    assert len(folders) == 3 and str(tmp_path / "a_b") in folders


def test_rows_tell_losses_and_speed_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", trained(METRICS))
    seen: list[Any] = []
    study = study_in(tmp_path, "--run.global_batch_size=8")
    rows = train_all(study, [Run("a", about={"kind": "x"}), Run("b")], 2, seen.append)
    assert [row["name"] for row in rows] == ["a", "b"] and len(seen) == 2
    row = rows[0]
    assert (row["kind"], row["steps"], row["tokens_per_step"]) == ("x", 200, 8 * 1024)
    assert row["train"] == [[1, 5.0], [2, 4.0], [3, 4.0], [4, 4.0]] and row["heldout"] == [[4, 3.5]]
    assert row["tokens_per_second"] == 50.0 and "error" not in row
    assert not (tmp_path / "a").exists()


def test_runs_that_end_together_are_told_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", trained(METRICS))
    within: list[str] = []

    def done(row: dict[str, Any]) -> None:
        within.append(row["name"])
        time.sleep(0.05)
        assert within.pop() == row["name"] and not within

    train_all(study_in(tmp_path), [Run(name) for name in "abcd"], 4, done)


def test_a_failed_run_is_a_row_with_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", trained(METRICS[:2], code=3))
    (row,) = train_all(study_in(tmp_path), [Run("a")], 1, lambda _: None)
    assert row["error"] == "error: the loss is not finite" and row["train"] == [[1, 5.0], [2, 4.0]]


def test_no_run_starts_after_the_deadline(tmp_path: Path) -> None:
    (row,) = train_all(study_in(tmp_path, deadline=0.0), [Run("a")], 1, lambda _: None)
    assert row["error"] == "not started: no time was left" and row["heldout"] == []


def test_a_process_that_takes_too_long_is_stopped() -> None:
    assert training_runs._start([sys.executable, "-c", "while True: pass"], 0.2) == "stopped: no time was left"


def test_a_wrong_key_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learning_rte"):
        train_all(study_in(tmp_path), [Run("a"), Run("b", ("--training.learning_rte=1",))], 1, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_failed_runs_of_an_earlier_study_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "earlier.json"
    path.write_text('{"steps": 9, "runs": [{"name": "a"}, {"name": "b", "error": "no time"}]}')
    assert earlier_rows(Namespace(add=[path], steps=9)) == [{"name": "a"}]
    with pytest.raises(InputError, match=r"earlier.json: its runs took 9 steps: --steps=9"):
        earlier_rows(Namespace(add=[path], steps=10))


def test_words_that_are_no_keys_are_refused(tmp_path: Path) -> None:
    assert take_overrides(["--training.seed=2"], "x") == ("--training.seed=2",)
    with pytest.raises(InputError, match="--stepz: no such option"):
        take_overrides(["--stepz", "3"], "x")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match=r"other.json: not the results of an earlier study"):
        earlier_rows(Namespace(add=[tmp_path / "other.json"], steps=9))
