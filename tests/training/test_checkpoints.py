"""Checkpoints are whole or absent, and a run continues from the newest that is whole."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerState

from ingot.runs import DiskFull, damage
from ingot.training.checkpoint_folders import checkpoints_of, newest_checkpoint
from ingot.training.checkpoints import SafeCheckpoints


class Upstream:
    """What SafeCheckpoints is mixed into: writes its files one after the other."""

    full_disk = False

    def __init__(self, run_dir: Path, save_total_limit: int | None = None) -> None:
        self.args = SimpleNamespace(output_dir=str(run_dir), save_total_limit=save_total_limit)
        self.state = TrainerState()
        self.state.log_history = []
        self.model = torch.nn.Linear(2, 2)
        self.rows_per_step = 4
        self.written = 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        (folder / "inner").mkdir(parents=True)
        (folder / "payload.data").write_bytes(bytes(100))
        assert folder.parent.name == ".staging"  # nothing half-written under the real name
        if self.full_disk:
            raise OSError(28, "No space left on device")
        (folder / "inner/state.json").write_text("{}")
        self.state.best_model_checkpoint = str(folder)  # upstream's idea of where it is
        self.state.save_to_json(str(folder / "trainer_state.json"))
        self.written += 1


class Trainer(SafeCheckpoints, Upstream):
    """As training uses it."""

    def save(self, step: int, best: int | None = None) -> Path:
        self.state.global_step = step
        self.state.best_global_step = best
        self._save_checkpoint(None, None)
        return Path(self.args.output_dir) / f"checkpoint-{step}"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was logged."""
    logging.getLogger("ingot").addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logging.getLogger("ingot").removeHandler(caplog.handler)


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in run_dir.iterdir())


def flip(path: Path) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    checkpoint = trainer.save(5)
    assert names(tmp_path) == ["checkpoint-5"] and damage(checkpoint) is None
    assert (checkpoint / "inner/state.json").is_file()
    assert trainer._get_output_dir(None) == str(tmp_path)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, save_total_limit=1)
    trainer.save(5)
    trainer.full_disk = True
    with pytest.raises(DiskFull, match=r": the checkpoint cannot be written \(No space left on device\): .* needed, "):
        trainer.save(10)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists() and trainer._get_output_dir(None) == str(tmp_path)
    trainer.full_disk = False
    trainer.save(10)
    assert names(tmp_path) == ["checkpoint-10"]


def test_saving_a_step_twice_is_harmless(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    checkpoint = trainer.save(5)
    trainer.save(5)
    assert trainer.written == 1
    flip(checkpoint / "payload.data")
    trainer.save(5)
    assert trainer.written == 2 and damage(checkpoint) is None


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [2, 4, 6, 8, 10]),
        (2, None, [8, 10]),
        (1, None, [10]),
        (2, 4, [4, 10]),
        (1, 4, [4, 10]),
        (3, 10, [6, 8, 10]),
    ],
)
def test_the_newest_and_the_best_are_kept(
    limit: int | None, best: int | None, kept: list[int], tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path, limit)
    for step in (2, 4, 6, 8, 10):
        trainer.save(step, best if best is not None and step >= best else None)
    assert [p.name for p in checkpoints_of(tmp_path)] == [f"checkpoint-{step}" for step in kept]


def test_a_damaged_later_checkpoint_costs_no_whole_one(tmp_path: Path) -> None:
    for step in (4, 8):
        Trainer(tmp_path).save(step)
    flip(tmp_path / "checkpoint-8/payload.data")
    trainer = Trainer(tmp_path, save_total_limit=1)
    for step in (6, 8):  # continued from step 4
        saved = trainer.save(step)
        assert newest_checkpoint(tmp_path) == saved
    assert names(tmp_path) == ["checkpoint-8"]


def test_the_best_checkpoint_is_remembered_where_it_is(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    for step, best in ((2, 2), (4, 2), (6, 6)):
        checkpoint = trainer.save(step, best)
        expected = str(tmp_path / f"checkpoint-{best}")
        assert trainer.state.best_model_checkpoint == expected
        saved = json.loads((checkpoint / "trainer_state.json").read_text())
        assert saved["best_model_checkpoint"] == expected
    trainer.save(8, None)
    assert trainer.state.best_model_checkpoint is None


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x", "checkpoint-3.bad", ".staging"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("a file")
    assert [p.name for p in checkpoints_of(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def damage_by_flipping(checkpoint: Path) -> str:
    flip(checkpoint / "payload.data")
    return "payload.data is not as it was written"


def damage_by_truncating(checkpoint: Path) -> str:
    (checkpoint / "payload.data").write_bytes(bytes(99))
    return "payload.data is not as it was written"


def damage_by_removing(checkpoint: Path) -> str:
    (checkpoint / "inner/state.json").unlink()
    return "inner/state.json is missing"


def damage_of_the_list(checkpoint: Path) -> str:
    (checkpoint / "checksums.json").write_text("")
    return "checksums.json: cannot be read as JSON"


def copy_that_was_cut_short(checkpoint: Path) -> str:
    (checkpoint / "checksums.json").unlink()
    return "checksums.json is missing"


@pytest.mark.parametrize(
    "harm",
    [damage_by_flipping, damage_by_truncating, damage_by_removing, damage_of_the_list, copy_that_was_cut_short],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    harm: Callable[[Path], str], tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    trainer = Trainer(tmp_path)
    for step in (9, 10):
        trainer.save(step)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10" and not lines()
    reason = harm(tmp_path / "checkpoint-10")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    (line,) = lines()
    assert line.startswith(f"{tmp_path / 'checkpoint-10'}: not used to continue: ") and reason in line
    harm(tmp_path / "checkpoint-9")
    assert newest_checkpoint(tmp_path) is None


def test_without_checkpoints_a_run_starts_afresh(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
