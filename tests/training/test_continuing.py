"""What a checkpoint is held against before a run continues from it, room on the disk, and saving in the background."""

import json
import re
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from ingot.recipe import InputError
from ingot.runs import DiskFull, damage, read_json
from ingot.training import checkpoints, continuing, disk
from ingot.training.callbacks import read_metrics
from ingot.training.checkpoint_folders import checkpoints_of
from ingot.training.pretrain_trainer import PretrainTrainer
from ingot.training.safety import TrainingRun
from ingot.training.watch import WatchedSteps

from .conftest import Pretrain
from .pretrain_toys import NO_EVALUATION

Weights = Callable[[Path], dict[str, torch.Tensor]]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def interrupted(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A run that was stopped after its step 9, with a checkpoint of step 8."""

    def interrupted(**changes: Any) -> Path:
        log = WatchedSteps.log

        def stop(self: Any, logs: dict[str, float], *args: Any) -> None:
            log(self, logs, *args)
            if self.state.global_step == 9:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(PretrainTrainer, "log", stop)
            with pytest.raises(KeyboardInterrupt):
                pretrain(**changes)
        return tmp_path / "pretrain"

    return interrupted


def test_a_changed_recipe_is_refused_with_the_change(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    folder = interrupted()
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError) as caught:
        pretrain(training__learning_rate=5e-3, training__weight_decay=0.2)
    said = str(caught.value)
    assert "training.learning_rate: 0.01 -> 0.005; training.weight_decay: 0.1 -> 0.2" in said
    assert "a checkpoint of step 8" in said and "--resume" in said and "--restart" in said
    assert sorted(path.name for path in folder.iterdir()) == before and not list(folder.parent.glob("*.old-*"))
    _, results = pretrain()  # taken back
    assert results["steps"] == 12 and "continuing from" in (folder / "log.txt").read_text()


def test_told_to_resume_it_goes_on_with_the_new_recipe(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    folder = interrupted()
    changes: dict[str, Any] = {"training__learning_rate": 5e-3, "training__max_steps": 16}
    _, results = pretrain(run__if_changed="resume", **changes)
    assert results["steps"] == 16
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}
    assert list(lines) == list(range(1, 17))
    assert "learning_rate: 0.01" in (folder / "recipe.until-step-8.yaml").read_text()
    assert "learning_rate: 0.005" in (folder / "recipe.yaml").read_text()
    assert read_json(folder / "manifest.json")["recipe"]["training"]["learning_rate"] == 5e-3
    assert read_json(folder / "checkpoint-16/run_state.json")["recipe"]["training"]["max_steps"] == 16
    assert pretrain(**changes)[1] == results  # complete, without the flag too


def test_a_finished_run_is_prolonged(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain()
    folder, results = pretrain(training__max_steps=20, run__if_changed="resume")
    assert results["steps"] == 20 and not list(tmp_path.glob("*.old-*"))
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] == list(range(1, 21))


def test_told_to_restart_it_keeps_the_old_folder(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    folder = interrupted()
    _, results = pretrain(training__learning_rate=5e-3, run__if_changed="restart")
    assert results["steps"] == 12 and (folder.with_name("pretrain.old-1") / "checkpoint-8").is_dir()


def test_another_model_is_never_resumed(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    interrupted()
    with pytest.raises(InputError, match="cannot continue another model .*hidden_size: 16 -> 32"):
        pretrain(model__hidden_size=32, run__if_changed="resume")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__seq_length": 16}, "data.seq_length: 32 -> 16"),
        ({"data__packing": "best_fit"}, "data.packing: 'concatenate' -> 'best_fit'"),
        ({"training__seed": 7}, "training.seed: "),
    ],
)
def test_other_rows_of_the_same_text_are_never_resumed(
    changes: dict[str, Any], told: str, interrupted: Callable[..., Path], pretrain: Pretrain
) -> None:
    interrupted()
    with pytest.raises(InputError, match=f"cannot continue with other rows .{re.escape(told)}"):
        pretrain(**changes, run__if_changed="resume")


@pytest.mark.parametrize("changes", [{"run__skip_nonfinite": 3}, {"run__background_save": True}], ids=str)
def test_safety_keys_may_change(
    changes: dict[str, Any], interrupted: Callable[..., Path], pretrain: Pretrain, weights: Weights
) -> None:
    folder = interrupted()
    pretrain(**changes)
    whole, _ = pretrain("whole")
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(whole).items())


def trainer_of(rows: int, strategy: str = "single", max_steps: int = 12) -> Any:
    arguments = SimpleNamespace(max_steps=max_steps)
    return SimpleNamespace(rows_per_step=rows, strategy=strategy, args=arguments, optimizer_name="adamw_torch")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of step 8 with what it says of how it was made."""

    def make(**state: Any) -> Path:
        folder = tmp_path / "checkpoint-8"
        folder.mkdir()
        made = {"step": 8, "rows_per_step": 8, "num_processes": 1, "strategy": "single"}
        (folder / "run_state.json").write_text(json.dumps(made | state))
        return folder

    return make


def test_a_batch_of_another_size_is_refused(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint()
    continuing.check_continues(folder, trainer_of(8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    continuing.check_continues(folder, trainer_of(8, "ddp"))
    with pytest.raises(InputError, match=r"8 rows in a step \(1 processes\); this launch makes 16 \(2 processes\)"):
        continuing.check_continues(folder, trainer_of(16, "ddp"))


@pytest.mark.parametrize(
    ("made", "launched", "fits"),
    [
        (("zero2", 2), ("zero2", 2), True),
        (("zero2", 2), ("zero2", 4), False),
        (("zero2", 2), ("zero1", 2), False),
        (("zero2", 2), ("ddp", 2), False),
        (("ddp", 2), ("zero2", 2), False),
        (("ddp", 4), ("ddp", 2), True),
        (("fsdp2", 2), ("fsdp2", 4), True),
        (("fsdp2", 2), ("ddp", 2), False),
    ],
)
def test_states_that_are_shared_otherwise_are_refused(
    made: tuple[str, int], launched: tuple[str, int], fits: bool, checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = checkpoint(strategy=made[0], num_processes=made[1])
    monkeypatch.setenv("WORLD_SIZE", str(launched[1]))
    if fits:
        continuing.check_continues(folder, trainer_of(8, launched[0]))
        return
    with pytest.raises(InputError, match=f"as {made[0]} on {made[1]} processes .* is {launched[0]} on {launched[1]}"):
        continuing.check_continues(folder, trainer_of(8, launched[0]))


def test_fewer_steps_than_were_made_are_refused(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    interrupted()
    with pytest.raises(InputError, match=r"training.max_steps: 6 lies before .*checkpoint-8"):
        pretrain(training__max_steps=6, run__if_changed="resume")


def test_what_a_crash_left_is_removed(interrupted: Callable[..., Path], pretrain: Pretrain) -> None:
    folder = interrupted()
    for name in (".staging/checkpoint-9", ".removed-checkpoint-4"):
        (folder / name).mkdir(parents=True)
    pretrain()
    assert not list(folder.glob(".staging")) and not list(folder.glob(".removed-*"))


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    given = {"max_steps": 100, "save_steps": 10, "save_strategy": "steps", "use_cpu": True, **changes}
    return TrainingArguments(output_dir=str(folder), report_to="none", **given)


@pytest.mark.parametrize(
    ("changes", "saves"),
    [({}, 10), ({"save_steps": 30}, 4), ({"save_steps": 0.25}, 4), ({"save_strategy": "no"}, 0),
     ({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}, 3)],
)  # fmt: skip
def test_saves_are_counted(changes: dict[str, Any], saves: int, tmp_path: Path) -> None:
    assert disk.planned_saves(arguments(tmp_path, **changes)) == saves


def test_too_little_room_is_told_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, 5_000_000_000))
    limited = arguments(tmp_path, save_total_limit=2)
    disk.check_room(tmp_path, limited, one=1_000_000_000, weights=500_000_000)  # two, the best and the next
    with pytest.raises(InputError) as caught:
        disk.check_room(tmp_path, limited, one=2_000_000_000, weights=500_000_000)
    said = str(caught.value)
    assert said.startswith(
        f"run.dir: {tmp_path}: 4 checkpoints of 1.86 GiB and the model need 7.93 GiB (8,516,777,216"
    )
    assert "4.66 GiB (5,000,000,000 bytes) are free" in said and "--run.dir" in said
    with pytest.raises(InputError, match="10 checkpoints .* set training.save_total_limit to 2"):
        disk.check_room(tmp_path, arguments(tmp_path), one=1_000_000_000, weights=500_000_000)


def test_a_run_that_the_disk_does_not_hold_is_not_started(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 20))
    with pytest.raises(InputError, match="are free"):
        pretrain()
    assert not (tmp_path / "pretrain/metrics.jsonl").exists()


def test_the_estimate_is_that_of_the_files(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        checkpoints, "wait_for_room", lambda path, needed, seconds: seen.append(needed) if len(seen) < 1 else None
    )
    model = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    for optimizer in ("muon", "lion", None):
        seen.clear()
        changes = {f"model__{key}": value for key, value in model.items()}
        folder, _ = pretrain(f"run-{optimizer}", run__optimizer=optimizer, model__num_hidden_layers=8, **changes)
        written = sum(f.stat().st_size for f in (folder / "checkpoint-12").rglob("*") if f.is_file())
        code = sum(f.stat().st_size for f in (folder / "checkpoint-12").glob("*.py"))
        assert seen[0] == pytest.approx(written - code, rel=0.1), optimizer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that goes on when somebody sleeps."""
    now = [0.0]
    monkeypatch.setattr(disk.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    yield now


def test_it_waits_for_room_and_then_stops(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(0, 0, 100 if clock[0] < 50 else 5_000))
    disk.wait_for_room(tmp_path, 4_000, 60.0)
    assert clock[0] == 50
    with pytest.raises(DiskFull) as caught:
        disk.wait_for_room(tmp_path, 40_000, 60.0)
    assert clock[0] == 110
    assert str(caught.value).startswith(
        f"{tmp_path}: no room for a checkpoint: 39.06 KiB (40,000 bytes) needed, 4.88 KiB (5,000 bytes) free"
    )


def test_saving_in_the_background_gives_the_same_run(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    seen: list[str] = []
    write = checkpoints.write_checksums

    def watched(folder: Path) -> None:
        seen.append(threading.current_thread().name)
        write(folder)

    monkeypatch.setattr(checkpoints, "write_checksums", watched)
    whole, _ = pretrain("whole", training__save_total_limit=None)
    behind, _ = pretrain("behind", training__save_total_limit=None, run__background_save=True)
    assert seen[:3] == ["MainThread"] * 3 and all(name.startswith("save") for name in seen[3:]) and len(seen) == 6
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(behind).items())
    for checkpoint in checkpoints_of(whole):
        twin = behind / checkpoint.name
        assert damage(twin) is None
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            assert (checkpoint / name).read_bytes() == (twin / name).read_bytes()


def test_what_goes_wrong_in_the_background_is_told(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_checksums", full)
    with pytest.raises(DiskFull, match="No space left on device"):
        pretrain(run__background_save=True, **NO_EVALUATION)
    assert not checkpoints_of(tmp_path / "pretrain")


def test_the_best_is_kept_without_being_asked_for(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainTrainer, "_heldout_loss", lambda self, blocks: 1.0 + abs(self.state.global_step - 4))
    folder, _ = pretrain(training__eval_steps=4, training__save_steps=2, training__save_total_limit=2)
    assert [c.name for c in checkpoints_of(folder)] == ["checkpoint-4", "checkpoint-12"]


def test_a_checkpoint_of_the_last_step_is_not_trained_on(tmp_path: Path) -> None:
    from .test_order import Model, Ordered, Rows, train

    class Trained(WatchedSteps, checkpoints.SafeCheckpoints, Ordered):
        pass

    whole = train(tmp_path, max_steps=7)  # in the middle of the second epoch
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-7/training_args.bin").unlink()
    arguments = TrainingArguments(**{**whole.args.to_dict(), "output_dir": str(tmp_path)})
    trainer = Trained(model=Model(), args=arguments, train_dataset=Rows())
    checkpoints.write_checksums(tmp_path / "checkpoint-7")
    continuing.train_to_the_end(trainer, TrainingRun(dir=tmp_path), "adamw_torch")
    assert trainer.state.global_step == 7 and trainer.model.seen == []
    assert torch.equal(trainer.model.weight, whole.model.weight)
