"""The checkpoint folders of a run: their names, their order, and which of them is whole."""

import re
import shutil
from pathlib import Path

from ingot.pickles import check_pickles
from ingot.runs import damage, get_logger

logger = get_logger(__name__)

STAGING = ".staging"  # where a checkpoint is written
REMOVED = ".removed-"  # the beginning of a checkpoint's name while it is deleted
RUN_STATE = "run_state.json"  # in a checkpoint: how and from which recipe it was made


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint is after."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def newest_checkpoint(run_dir: Path, upto: int | None = None) -> Path | None:
    """The newest checkpoint (of step `upto` or before) whose every file is as it was written.

    A line says why a damaged one is passed over.
    Raises: InputError when it is as it was written, but its weights are no model's, or a pickle is more than data.
    """
    for checkpoint in reversed(checkpoints_of(run_dir)):
        if upto is not None and step_of(checkpoint) > upto:
            continue
        problem = damage(checkpoint)
        if problem is None:
            from ingot.loading import check_checkpoint  # brings torch

            check_pickles(checkpoint)
            check_checkpoint(checkpoint)
            return checkpoint
        logger.warning("%s: not used to continue: %s", checkpoint, problem)
    return None


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint; under its own name there is never a part of one."""
    doomed = checkpoint.with_name(f"{REMOVED}{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(run_dir: Path) -> None:
    """Deletes what a crash left of a checkpoint that was being written or deleted."""
    for leftover in (run_dir / STAGING, *run_dir.glob(f"{REMOVED}*")):
        shutil.rmtree(leftover, ignore_errors=True)
