"""Checkpoints that are whole or absent: staged, hashed, made durable, then renamed into place."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ingot.runs import damage, get_logger, is_main_process, num_processes, write_checksums

logger = get_logger(__name__)

STAGING = ".staging"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose every file is as it was written; a line says why a damaged one is passed over."""
    for checkpoint in reversed(checkpoints_of(run_dir)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s: not used to continue: %s", checkpoint, problem)
    return None


class SafeCheckpoints:
    """A mixin for transformers' Trainer and TRL's trainers: `class X(SafeCheckpoints, Trainer)`."""

    args: Any
    state: Any
    _staging = False

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, STAGING) if self._staging else self.args.output_dir

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Upstream's save into a staging folder, then checksums, then one rename, then rotation."""
        run_dir = Path(self.args.output_dir)
        final = run_dir / f"checkpoint-{self.state.global_step}"
        if final.is_dir() and damage(final) is None:
            return
        if is_main_process():
            shutil.rmtree(run_dir / STAGING, ignore_errors=True)
        _wait_for_all()
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._staging = False
        _wait_for_all()
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best == final or best.is_dir() else None
        if is_main_process():
            # upstream wrote where the best checkpoint was staged, which a continued run would not find
            self.state.save_to_json(str(run_dir / STAGING / final.name / "trainer_state.json"))
            write_checksums(run_dir / STAGING / final.name)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(run_dir / STAGING / final.name, final)
            (run_dir / STAGING).rmdir()
            self._rotate(run_dir)
        _wait_for_all()

    def _rotate(self, run_dir: Path) -> None:
        """Deletes the oldest checkpoints beyond `save_total_limit`; never the one just written or the best."""
        limit = self.args.save_total_limit
        # a later one is damaged: the run was continued from an earlier
        kept = [c for c in checkpoints_of(run_dir) if _step(c) <= self.state.global_step]
        if not limit or len(kept) <= limit:
            return
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        for checkpoint in [c for c in kept[:-1] if c != best][: len(kept) - limit]:
            shutil.rmtree(checkpoint)


def _wait_for_all() -> None:
    if num_processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
