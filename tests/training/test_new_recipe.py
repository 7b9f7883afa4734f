"""What `--resume` does with a changed recipe: a change has its effect, or is refused and leaves the run as it was."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.recipe import InputError
from ingot.runs import NotFinite, read_json, write_json
from ingot.training.callbacks import read_metrics
from ingot.training.dpo import DPORecipe
from ingot.training.dpo import run as run_dpo
from ingot.training.pretrain_trainer import PretrainTrainer
from ingot.training.sft import SFTRecipe
from ingot.training.sft import run as run_sft
from ingot.training.trl_trainers import SafeDPOTrainer, SafeSFTTrainer
from ingot.training.watch import WatchedSteps

from .conftest import Pretrain
from .finetune_toys import dpo_recipe, make_start, sft_recipe, write_rows

Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, int, Callable[[], Any]], None]:
    """Runs a stage and stops it when its trainer logs a step."""

    def stop_after(trainer: type, step: int, run: Callable[[], Any]) -> None:
        def stop(self: Any, logs: dict[str, float], *args: Any) -> None:
            WatchedSteps.log(self, logs, *args)
            if self.state.global_step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "log", stop)
            with pytest.raises(KeyboardInterrupt):
                run()

    return stop_after


@pytest.fixture
def interrupted(pretrain: Pretrain, stop_after: Any, tmp_path: Path) -> Path:
    """A run that was stopped after its step 9, with a checkpoint of step 8."""
    stop_after(PretrainTrainer, 9, pretrain)
    return tmp_path / "pretrain"


def rates(folder: Path) -> dict[int, float]:
    """The learning rate of each step."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def test_a_new_learning_rate_holds_from_the_next_step_on(interrupted: Path, pretrain: Pretrain) -> None:
    before = rates(interrupted)
    pretrain(training__learning_rate=1e-3, run__if_changed="resume")
    after = rates(interrupted)
    assert [after[step] for step in range(1, 9)] == [before[step] for step in range(1, 9)]
    assert after[9] == pytest.approx(before[9] / 10) and after[12] == pytest.approx(1e-4)


def test_a_new_schedule_holds_from_the_next_step_on(interrupted: Path, pretrain: Pretrain) -> None:
    pretrain(training__lr_scheduler_type="constant_with_warmup", run__if_changed="resume")
    assert set(list(rates(interrupted).values())[8:]) == {1e-2}


def test_a_new_learning_rate_that_a_schedule_cannot_take_is_refused(pretrain: Pretrain, stop_after: Any) -> None:
    plateau: dict[str, Any] = {"training__lr_scheduler_type": "reduce_lr_on_plateau", "training__warmup_steps": 0}
    stop_after(PretrainTrainer, 9, lambda: pretrain(**plateau))
    with pytest.raises(InputError, match="learning_rate: 0.001 would not be used"):
        pretrain(**plateau, training__learning_rate=1e-3, run__if_changed="resume")
    assert pretrain(**plateau)[1]["steps"] == 12


@pytest.mark.parametrize(("key", "value"), [("weight_decay", 3.0), ("adam_beta1", 0.2)])
def test_the_optimizers_other_numbers_are_the_new_recipes(
    key: str, value: float, interrupted: Path, pretrain: Pretrain, weights: Weights
) -> None:
    _, unchanged = pretrain("unbroken")
    pretrain(**{f"training__{key}": value}, run__if_changed="resume")
    before, after = weights(interrupted.with_name("unbroken")), weights(interrupted)
    assert unchanged["steps"] == 12 and any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run__optimizer": "lion"}, "holds the states of muon, which lion cannot continue"),
        ({"training__max_steps": 6}, "max_steps: 6 lies before"),
        ({"training__per_device_train_batch_size": 2}, "rows in a step"),
    ],
    ids=["optimizer", "steps", "rows"],
)
def test_a_refused_change_leaves_the_run_as_it_was(
    changes: dict[str, Any], said: str, interrupted: Path, pretrain: Pretrain, weights: Weights
) -> None:
    with pytest.raises(InputError, match=said):
        pretrain(**changes, run__if_changed="resume")
    assert not list(interrupted.glob("recipe.until-*"))
    folder, _ = pretrain()
    pretrain("unbroken")
    one, other = weights(folder), weights(folder.with_name("unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("changes", [{"training__max_steps": 6}, {"training__learning_rate": 5e-3}], ids=str)
def test_a_finished_run_that_would_not_be_trained_stays_finished(changes: dict[str, Any], pretrain: Pretrain) -> None:
    folder, results = pretrain()
    manifest = (folder / "manifest.json").read_text()
    with pytest.raises(InputError, match="lies before|nothing is left to train"):
        pretrain(**changes, run__if_changed="resume")
    assert (folder / "manifest.json").read_text() == manifest and pretrain()[1] == results


def test_a_checkpoint_of_another_run_is_refused(interrupted: Path, pretrain: Pretrain, stop_after: Any) -> None:
    stop_after(PretrainTrainer, 3, lambda: pretrain("other", training__learning_rate=2e-2))
    shutil.copytree(interrupted / "checkpoint-8", interrupted.with_name("other") / "checkpoint-8")
    with pytest.raises(InputError, match="made by another run .*learning_rate: 0.01 -> 0.02"):
        pretrain("other", training__learning_rate=2e-2)


def test_a_checkpoint_of_an_earlier_version_lacks_keys(interrupted: Path, pretrain: Pretrain) -> None:
    from ingot.files import write_checksums

    state = read_json(interrupted / "checkpoint-8/run_state.json")
    del state["recipe"]["run"]["optimizer"], state["optimizer"]
    write_json(interrupted / "checkpoint-8/run_state.json", state)
    write_checksums(interrupted / "checkpoint-8")
    assert pretrain()[1]["steps"] == 12
    assert "continuing from" in (interrupted / "log.txt").read_text()


def test_an_evaluation_at_the_start_is_not_repeated(pretrain: Pretrain, stop_after: Any) -> None:
    stop_after(PretrainTrainer, 9, lambda: pretrain(training__eval_on_start=True))
    folder, _ = pretrain(training__eval_on_start=True)
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "eval_loss" in line] == [0, 6, 12]


@pytest.mark.parametrize("key", ["save_only_model", "ignore_data_skip"])
def test_keys_that_would_lose_a_run_are_refused(key: str, pretrain: Pretrain) -> None:
    with pytest.raises(InputError, match=f"training.{key}: not a key of a recipe"):
        pretrain(**{f"training__{key}": True})


def test_what_was_neither_logged_nor_saved_is_looked_at_in_the_end(pretrain: Pretrain, tmp_path: Path) -> None:
    silent = {f"training__{key}_strategy": "no" for key in ("save", "logging", "eval")}
    with pytest.raises(NotFinite, match="step 3"):
        pretrain(**silent, training__learning_rate=1e30)
    assert not (tmp_path / "pretrain/model").exists()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start"))


def test_metrics_with_lines_that_a_power_cut_left_do_not_stop_a_run(interrupted: Path, pretrain: Pretrain) -> None:
    metrics = interrupted / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:3], "\0" * 80, "7", *lines[3:]]) + "\n")
    assert pretrain()[1]["steps"] == 12
    assert [line["step"] for line in read_metrics(metrics) if "loss" in line] == list(range(1, 13))


SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1, "packing": False}


@pytest.mark.parametrize("lost", [False, True], ids=["other rows", "file lost"])
def test_the_start_is_measured_again_on_other_rows(lost: bool, start: Path, tmp_path: Path, stop_after: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)

    def recipe(name: str, validation_rows: int, if_changed: str = "refuse") -> SFTRecipe:
        made = sft_recipe(tmp_path / name, start, rows, max_steps=8, **SAVES)
        made.data.validation_rows, made.run.if_changed = validation_rows, if_changed  # type: ignore[assignment]
        return made

    stop_after(SafeSFTTrainer, 6, lambda: run_sft(recipe("sft", 10 if lost else 20)))
    if lost:
        (tmp_path / "sft/before.json").unlink()
    results = run_sft(recipe("sft", 10, "resume"))
    assert results["loss_before"] == pytest.approx(run_sft(recipe("other", 10))["loss_before"], rel=1e-12)


def test_dpo_goes_on_with_the_new_pairs(start: Path, tmp_path: Path, stop_after: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)

    def recipe(if_changed: str = "refuse") -> DPORecipe:
        made = dpo_recipe(
            tmp_path / "dpo", start, rows, max_steps=8, **{k: v for k, v in SAVES.items() if k != "packing"}
        )
        made.run.if_changed = if_changed  # type: ignore[assignment]
        return made

    stop_after(SafeDPOTrainer, 6, lambda: run_dpo(recipe()))
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps({**line, "chosen": "new"}) + "\n" for line in lines))
    seen: list[Any] = []
    init = SafeDPOTrainer.__init__

    def look(self: Any, **kwargs: Any) -> None:
        seen.extend(kwargs["train_dataset"]["chosen_ids"])
        init(self, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafeDPOTrainer, "__init__", look)
        results = run_dpo(recipe("resume"))
    assert len({tuple(ids) for ids in seen}) == 1 and results["steps"] == 8


BEST: dict[str, Any] = {
    "training__load_best_model_at_end": True, "training__save_total_limit": 1, "training__eval_steps": 4,
}  # fmt: skip


def worse_later(patch: pytest.MonkeyPatch, best: int) -> None:
    """Held-out losses that rise from a step on."""
    heldout = PretrainTrainer._heldout_loss

    def loss(self: Any, blocks: Any) -> float:
        heldout(self, blocks)
        return 1.0 + abs(self.state.global_step - best)

    patch.setattr(PretrainTrainer, "_heldout_loss", loss)


@pytest.mark.parametrize("best", [8, 12])
def test_the_best_model_is_loaded_while_it_is_still_being_saved(
    best: int, pretrain: Pretrain, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.training import checkpoints

    worse_later(monkeypatch, best)
    expected, _ = pretrain("plain", **BEST)
    write = checkpoints.write_checksums

    def slowly(folder: Path) -> None:
        time.sleep(0.2)
        write(folder)

    monkeypatch.setattr(checkpoints, "write_checksums", slowly)
    folder, _ = pretrain(**BEST, run__background_save=True)
    one, other = weights(folder), weights(expected)
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("keep", [False, True], ids=["moved", "copied"])
def test_the_best_checkpoint_is_found_where_the_folder_is_now(
    keep: bool, pretrain: Pretrain, weights: Weights, stop_after: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worse_later(monkeypatch, 4)
    expected, _ = pretrain("plain", **BEST)
    # the run ends after its last checkpoint, so that no later one names the place anew
    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "_load_best_model", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain("there", **BEST)
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    if keep:
        (tmp_path / "there/checkpoint-4/model.safetensors").unlink()
    else:
        shutil.rmtree(tmp_path / "there")
    one, other = weights(pretrain("here", **BEST)[0]), weights(expected)
    assert all(torch.equal(one[name], other[name]) for name in other)
