"""Checkpoints that are whole or absent: staged, hashed, made durable, then renamed into place."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ingot.files import sync
from ingot.recipe import InputError
from ingot.runs import (
    STARTED,
    damage,
    get_logger,
    is_main_process,
    num_processes,
    read_json,
    write_checksums,
    write_json,
)
from ingot.training.checkpoint_folders import (
    RUN_STATE,
    STAGING,
    checkpoints_of,
    remove_checkpoint,
    remove_leftovers,
    step_of,
)
from ingot.training.disk import checkpoint_bytes, naming_room, wait_for_room
from ingot.training.processes import on_main, wait_for_all
from ingot.training.watch import check_weights

logger = get_logger(__name__)


class SafeCheckpoints:
    """A mixin for transformers' Trainer and TRL's trainers: `class X(SafeCheckpoints, Trainer)`."""

    args: Any
    state: Any
    model: Any
    rows_per_step: int
    background_save = False
    strategy = "single"  # the planner's name
    optimizer_name = ""  # the planner's, too
    estimated_bytes = 0  # of a checkpoint, before there is one
    wait_for_disk = 0.0  # seconds
    pauses: tuple[float, ...] = ()  # seconds that training stood still for each save
    saves: tuple[float, ...] = ()  # seconds from the beginning of each save until it was durable

    _staging = False
    _pending: Future[None] | None = None
    _pool: ThreadPoolExecutor | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, STAGING) if self._staging else self.args.output_dir

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Upstream's save into a staging folder, then checksums, then one rename, then rotation.

        Raises: NotFinite for weights that are no numbers, DiskFull when there is no room.
        """
        began = time.monotonic()
        self.finish_saving()
        run_dir, step = Path(self.args.output_dir), self.state.global_step
        final = run_dir / f"checkpoint-{step}"
        if on_main(lambda: final.is_dir() and damage(final) is None):
            return
        check_weights(self.model, step)
        if is_main_process():
            remove_leftovers(run_dir)
        needed = checkpoint_bytes(run_dir, self.estimated_bytes)
        wait_for_room(run_dir, needed, self.wait_for_disk)
        with naming_room(run_dir, needed):
            self._stage(model, trial)
            self._name_best(run_dir, final)
            if is_main_process():
                self._describe(run_dir / STAGING / final.name, run_dir)
                self._publish(final, step, began)
        wait_for_all()
        self.pauses = (*self.pauses, time.monotonic() - began)

    def _stage(self, model: Any, trial: Any) -> None:
        """Upstream's save, into the staging folder."""
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._staging = False
        wait_for_all()

    def _name_best(self, run_dir: Path, final: Path) -> None:
        """Where the best checkpoint is; upstream says where it was staged, which a continued run would not find."""
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best == final or best.is_dir() else None

    def _describe(self, staged: Path, run_dir: Path) -> None:
        """What a run that continues from this checkpoint is held against."""
        self.state.save_to_json(str(staged / "trainer_state.json"))
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
        record = read_json(run_dir / STARTED) if (run_dir / STARTED).is_file() else {}
        made = {key: record[key] for key in ("stage", "recipe", "inputs", "sources") if key in record}
        how = {
            "step": self.state.global_step, "rows_per_step": self.rows_per_step, "num_processes": num_processes(),
            "strategy": self.strategy, "optimizer": self.optimizer_name,
        }  # fmt: skip
        write_json(staged / RUN_STATE, how | made)

    def _publish(self, final: Path, step: int, began: float) -> None:
        """Makes the staged checkpoint durable and gives it its name, now or in the background."""
        best = best_step(self.state.log_history, self.state.best_global_step, [*checkpoints_of(final.parent), final])
        work = (final, step, best, self.args.save_total_limit, began)
        if not self.background_save:
            self._make_durable(*work)
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "save")
        self._pending = self._pool.submit(self._make_durable, *work)

    def _make_durable(self, final: Path, step: int, best: int | None, limit: int | None, began: float) -> None:
        run_dir, staging = final.parent, final.parent / STAGING
        with naming_room(run_dir, checkpoint_bytes(run_dir, self.estimated_bytes)):
            write_checksums(staging / final.name)
            if final.is_dir():  # damaged, or it would not be written again
                remove_checkpoint(final)
            os.replace(staging / final.name, final)
        staging.rmdir()
        sync(run_dir)
        rotate(run_dir, step, best, limit)
        self.saves = (*self.saves, time.monotonic() - began)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Upstream warns, also of a tied head, which is not saved; a tensor that is really missing ends the run.

        Raises: InputError that names it.
        """
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        wrong = [f"{key} is missing" for key in load_result.missing_keys if key not in tied]
        wrong += [f"{key} is unknown to the model" for key in load_result.unexpected_keys]
        if wrong:
            raise InputError(f"{self.args.output_dir}: the checkpoint is of another model ({'; '.join(wrong[:3])})")

    def _load_best_model(self) -> None:
        """Upstream's, once the last checkpoint has its name: it may be the best."""
        self.finish_saving()
        super()._load_best_model()  # type: ignore[misc]

    def finish_saving(self) -> None:
        """Waits for the checkpoint that is stored in the background. Raises: what went wrong there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def best_step(log_history: list[dict[str, Any]], said: int | None, checkpoints: list[Path]) -> int | None:
    """The step of the best checkpoint: the one that upstream was told to look for, else of the lowest held-out loss.

    Only checkpoints of steps that were evaluated are compared.
    """
    steps = {step_of(checkpoint) for checkpoint in checkpoints}
    if said in steps:
        return said
    losses = {log["step"]: log["eval_loss"] for log in log_history if "eval_loss" in log and log["step"] in steps}
    return min(losses, key=lambda step: losses[step]) if losses else None


def rotate(run_dir: Path, step: int, best: int | None, limit: int | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`; never that of `step`, just written, or the best."""
    # a later one is damaged: the run was continued from an earlier
    kept = [c for c in checkpoints_of(run_dir) if step_of(c) <= step]
    if not limit or len(kept) <= limit:
        return
    for checkpoint in [c for c in kept[:-1] if step_of(c) != best][: len(kept) - limit]:
        remove_checkpoint(checkpoint)
