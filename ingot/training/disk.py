"""Room for checkpoints: foreseen before a run starts, and looked at before each is written."""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import ge
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import SaveStrategy

from ingot.files import CHECKSUMS, says_full
from ingot.planning.optimizers import OPTIMIZERS, SHORT_NAMES
from ingot.planning.show import size
from ingot.recipe import InputError
from ingot.runs import DiskFull, get_logger, read_json
from ingot.training.checkpoint_folders import STAGING, checkpoints_of
from ingot.training.processes import on_main

logger = get_logger(__name__)

OTHER_FILES = 16 << 20  # bytes for samples, metrics, log and plots
SLACK = 0.95  # of an estimate: what is missing less than this is not held against a run
ASK_EVERY = 5.0  # seconds


def checkpoint_bytes(run_dir: Path, estimate: int) -> int:
    """The size of the next checkpoint, in bytes: that of the newest one, or an estimate before there is one."""
    for folder in reversed(checkpoints_of(run_dir)):
        if (folder / CHECKSUMS).is_file():
            return sum(int(file["bytes"]) for file in read_json(folder / CHECKSUMS).values())
    return estimate


def estimated_bytes(model: Any, arguments: TrainingArguments, optimizer: str, strategy: str) -> int:
    """The size of a checkpoint before any is written: weights, and the optimizer's states of what is trained.

    An unknown optimizer counts as AdamW. DeepSpeed writes the weights twice, and once more in float32.
    """
    trained = get_model_param_count(model, trainable_only=True)
    weight = max(p.element_size() for p in model.parameters() if p.requires_grad)
    kept = OPTIMIZERS.get(SHORT_NAMES.get(optimizer, optimizer), OPTIMIZERS["adamw_torch"])
    states = kept.moments * kept.bytes_per_value
    if strategy.startswith("zero"):
        return round(trained * (2 * weight + 4 + states))
    return round(trained * (weight + states))


def planned_saves(arguments: TrainingArguments) -> int:
    """Checkpoints that the whole run writes, the last one included."""
    steps, strategy = arguments.max_steps, SaveStrategy(arguments.save_strategy).value
    if strategy == "no":
        return 0
    if strategy != "steps" or steps <= 0:
        return max(1, round(arguments.num_train_epochs))
    every = arguments.save_steps if arguments.save_steps >= 1 else max(1, round(arguments.save_steps * steps))
    return -(-steps // int(every))


def check_room(run_dir: Path, arguments: TrainingArguments, one: int, weights: int) -> None:
    """Sees before the start whether all checkpoints that will stand at once, and the model, have room.

    `one`: bytes of a checkpoint; `weights`: of the finished model. What lies there already is counted as room.
    Raises: InputError that says what is needed, what is free and what to change.
    """
    saves, limit = planned_saves(arguments), arguments.save_total_limit or 0
    # the newest, the best where it is kept, and the next one, which is written before the oldest goes
    standing = min(saves, limit + 1 + (limit > 0) if limit else saves)
    present = sum(file.stat().st_size for c in checkpoints_of(run_dir) for file in c.rglob("*") if file.is_file())
    needed = one * standing + weights + OTHER_FILES
    free = shutil.disk_usage(run_dir).free + present
    if free >= needed * SLACK:
        return
    fitting = max(0, (free - weights - OTHER_FILES) // max(1, one) - 2)
    way = f"set training.save_total_limit to {fitting}" if fitting >= 1 else "free some space"
    raise InputError(
        f"run.dir: {run_dir}: {standing} checkpoints of {size(one)} and the model need {size(needed)} ({needed:,} "
        f"bytes), and {size(free)} ({free:,} bytes) are free; {way}, or choose a folder on another disk with --run.dir"
    )


def wait_for_room(run_dir: Path, needed: int, seconds: float) -> None:
    """Waits a while for room when there is too little for a checkpoint: the steps since the last one are worth it.

    Raises: DiskFull, on every process.
    """
    until, told = time.monotonic() + seconds, False
    while True:
        free = shutil.disk_usage(run_dir).free
        if on_main(partial(ge, free, needed * SLACK)):
            return
        if on_main(lambda: time.monotonic() >= until):
            raise DiskFull(full_disk(run_dir, needed, free))
        if not told:
            logger.warning("%s; waiting %.0f s for it", full_disk(run_dir, needed, free), until - time.monotonic())
            told = True
        time.sleep(ASK_EVERY)


@contextmanager
def naming_room(run_dir: Path, needed: int) -> Iterator[None]:
    """Turns what the system, safetensors or torch say of a full disk into one line; torch's own words tell nobody.

    What was written of the checkpoint is removed.
    Raises: DiskFull with the bytes needed and free.
    """
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(run_dir).free
        if not says_full(error):
            raise
        shutil.rmtree(run_dir / STAGING, ignore_errors=True)
        said = os.strerror(error.errno or 0) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
        raise DiskFull(full_disk(run_dir, needed, free, f"the checkpoint cannot be written ({said})")) from error


def full_disk(path: Path, needed: int, free: int, reason: str = "no room for a checkpoint") -> str:
    """The one line that is said of a full disk."""
    return (
        f"{path}: {reason}: {size(needed)} ({needed:,} bytes) needed, {size(free)} ({free:,} bytes) "
        "free; free some space and run the same command again, it continues from the last checkpoint"
    )
