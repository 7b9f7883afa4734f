"""Runs a trainer to its end: from the newest whole checkpoint, and back to one from before when the loss runs off."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_model_param_count

from ingot.recipe import InputError
from ingot.records import differences, shared
from ingot.runs import STARTED, RunFailed, get_logger, is_main_process, num_processes, read_json, write_json
from ingot.training.callbacks import metrics_first
from ingot.training.checkpoint_folders import (
    RUN_STATE,
    checkpoints_of,
    newest_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    step_of,
)
from ingot.training.disk import check_room, checkpoint_bytes, estimated_bytes, wait_for_room
from ingot.training.order import PutOff
from ingot.training.prediction import strategy_of_run
from ingot.training.processes import on_main, wait_for_all
from ingot.training.safety import TrainingRun
from ingot.training.watch import Rewind, check_skipping, check_weights

logger = get_logger(__name__)

REWINDS = "rewinds.json"
# strategies whose checkpoints are alike: weights and states whole, whatever the number of processes
WHOLE = ("single", "ddp")


class _Finished(Exception):  # noqa: N818 - no error
    """The checkpoint is of the last step."""


class _StopWhenDone(TrainerCallback):
    """Upstream would train one more step from a checkpoint of the last one."""

    checkpoint: Path | None = None  # that the run continues from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises: InputError when a new recipe would not be used for a single step."""
        if self.checkpoint is None or state.global_step < state.max_steps:
            return
        changes = changed_since(self.checkpoint)
        if changes or state.global_step > state.max_steps:
            raise InputError(
                f"{self.checkpoint}: the run ends at step {state.max_steps}, so nothing is left to train with the new "
                f"recipe ({'; '.join(changes[:5])}); take the change back, raise training.max_steps or "
                "training.num_train_epochs, or begin anew with --restart"
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises: _Finished."""
        if state.global_step >= state.max_steps:
            raise _Finished


class _FindBest(TrainerCallback):
    """Looks for the best checkpoint in this run folder; the state names it where the folder was when it was saved."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Upstream has forgotten it where the folder was moved, and would load it from there where it was copied."""
        best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None


def train_to_the_end(trainer: Any, run: TrainingRun, optimizer: str) -> None:
    """Trains from the newest checkpoint, or from the beginning.

    optimizer: the planner's name.
    Raises: InputError when the checkpoint does not fit this launch, or the disk does not hold the checkpoints;
    KeyboardInterrupt after a signal, when a checkpoint has been saved; NotFinite, DiskFull, RunFailed.
    """
    run_dir = Path(trainer.args.output_dir)
    _prepare(trainer, run, optimizer)
    trainer.add_callback(done := _StopWhenDone())
    trainer.add_callback(_FindBest())
    metrics_first(trainer)
    if is_main_process():
        remove_leftovers(run_dir)
    checkpoint = on_main(lambda: newest_checkpoint(run_dir))
    while True:
        trainer.put_off = [PutOff(*put_off) for entry in rewinds_of(run_dir) for put_off in entry["put_off"]]
        if checkpoint is not None:
            check_continues(checkpoint, trainer)
            logger.info("continuing from %s", checkpoint)
            trainer.args.eval_on_start = False  # it was at the start
        done.checkpoint = checkpoint
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except _Finished:
            _load_best(trainer)
        except Rewind as rewind:
            trainer.finish_saving()
            checkpoint = go_back(trainer, rewind, run)
            continue
        finally:
            trainer.finish_saving()
        trainer.look()  # at what was neither logged nor saved
        check_weights(trainer.model, trainer.state.global_step)
        wait_for_room(run_dir, weight_bytes(trainer), run.wait_for_disk)  # for the model
        return


def _prepare(trainer: Any, run: TrainingRun, optimizer: str) -> None:
    """Gives the trainer what the recipe's `run` section says, and looks at the disk."""
    run_dir, args = Path(trainer.args.output_dir), trainer.args
    trainer.strategy, trainer.optimizer_name = strategy_of_run(args), optimizer
    check_skipping(run.skip_nonfinite, trainer.strategy)
    trainer.background_save, trainer.wait_for_disk = run.background_save, run.wait_for_disk
    trainer.skip_nonfinite, trainer.loss_spike = run.skip_nonfinite, run.loss_spike
    trainer.estimated_bytes = estimated_bytes(trainer.model, args, optimizer, trainer.strategy)
    check_room(run_dir, args, checkpoint_bytes(run_dir, trainer.estimated_bytes), weight_bytes(trainer))


def weight_bytes(trainer: Any) -> int:
    """The size of the finished model, in bytes."""
    return int(get_model_param_count(trainer.model)) * next(iter(trainer.model.parameters())).element_size()


def check_continues(checkpoint: Path, trainer: Any) -> None:
    """Holds a checkpoint against this launch: the run, the rows of a step, the optimizer, the strategy, the steps.

    Raises: InputError with the way out.
    """
    if not (checkpoint / RUN_STATE).is_file():
        logger.warning("%s: says nothing of its batch (an earlier version wrote it); it is taken to fit", checkpoint)
        return
    made, rows, processes = read_json(checkpoint / RUN_STATE), trainer.rows_per_step, num_processes()
    if (changes := changed_since(checkpoint)) and not _was_resumed(checkpoint):
        raise InputError(
            f"{checkpoint}: was made by another run ({'; '.join(changes[:5])}); move it out of the folder, or "
            "continue it where it was made"
        )
    if made["rows_per_step"] != rows:
        raise InputError(
            f"{checkpoint}: was trained with {made['rows_per_step']} rows in a step ({made['num_processes']} "
            f"processes); this launch makes {rows} ({processes} processes): later steps would have other rows. Keep "
            "per_device_train_batch_size x gradient_accumulation_steps x processes the same (run.global_batch_size of "
            "pretrain does so by itself), or begin anew in another folder with --run.dir"
        )
    if made.get("optimizer", trainer.optimizer_name) != trainer.optimizer_name:
        raise InputError(
            f"{checkpoint}: holds the states of {made['optimizer']}, which {trainer.optimizer_name} cannot continue; "
            "take the change of the optimizer back, or begin anew with --restart"
        )
    before, now = made["strategy"], trainer.strategy
    sharded = now not in WHOLE or before not in WHOLE
    if sharded and (before, made["num_processes"] if now != "fsdp2" else processes) != (now, processes):
        raise InputError(
            f"{checkpoint}: holds optimizer states as {before} on {made['num_processes']} processes shares them, and "
            f"this launch is {now} on {processes}; launch it as before, or begin anew in another folder with "
            "--run.dir"
        )
    if trainer.args.max_steps > 0 and step_of(checkpoint) > trainer.args.max_steps:
        raise InputError(
            f"training.max_steps: {trainer.args.max_steps} lies before {checkpoint}; raise it, or begin anew with "
            "--restart"
        )


def changed_since(checkpoint: Path) -> list[str]:
    """How the recipe of a run differs from the one that made a checkpoint; keys that only one of them has are no
    difference, for a later version may have brought them.
    """
    record = checkpoint.parent / STARTED
    if not (checkpoint / RUN_STATE).is_file() or not record.is_file():
        return []
    made, now = (read_json(path) for path in (checkpoint / RUN_STATE, record))
    parts = ("stage", "recipe", "inputs", "sources")
    return differences(*(shared({k: a[k] for k in parts if k in a}, b) for a, b in ((made, now), (now, made))))


def _was_resumed(checkpoint: Path) -> bool:
    """Whether the run was given another recipe, with --resume, at this checkpoint or after it."""
    until = checkpoint.parent.glob("recipe.until-step-*.yaml")
    return any(int(path.stem.removeprefix("recipe.until-step-")) >= step_of(checkpoint) for path in until)


def rewinds_of(run_dir: Path) -> list[dict[str, Any]]:
    """Where the run went back, in order."""
    return list(read_json(run_dir / REWINDS)) if (run_dir / REWINDS).is_file() else []


def go_back(trainer: Any, rewind: Rewind, run: TrainingRun) -> Path:
    """Takes back the steps of a spike, and puts their rows off. Returns the checkpoint from before.

    Raises: RunFailed when there is none, or when it has happened too often.
    """
    run_dir, past = Path(trainer.args.output_dir), rewinds_of(Path(trainer.args.output_dir))
    assert run.loss_spike is not None
    if len(past) >= run.loss_spike.rewinds:
        raise RunFailed(
            f"{rewind}, and the run went back {len(past)} times already (run.loss_spike.rewinds); lower "
            "training.learning_rate and continue with --resume"
        )
    checkpoint = on_main(lambda: newest_checkpoint(run_dir, upto=rewind.first_step))
    if checkpoint is None:
        raise RunFailed(f"{rewind}, and no checkpoint is from before it; lower training.learning_rate or save_steps")
    if trainer.order is None:
        raise RunFailed(f"{rewind}; this training.train_sampling_strategy has no rows that could be put off")
    begin = step_of(checkpoint)
    put_off = trainer.order.put_off_steps(begin, rewind.step)
    logger.warning(
        "%s: going back to %s; the rows of steps %d to %d come last (rewind %d of %d)", rewind, checkpoint, begin + 1,
        rewind.step, len(past) + 1, run.loss_spike.rewinds,
    )  # fmt: skip
    lost = [entry for entry in trainer.state.log_history if entry["step"] > begin]
    if is_main_process():
        # first these: a crash in between leaves a run that meets its spike again
        for later in [c for c in checkpoints_of(run_dir) if step_of(c) > begin]:
            remove_checkpoint(later)
        entry = {"from_step": begin, "to_step": rewind.step, "loss": rewind.loss, "usual_loss": rewind.usual}
        write_json(run_dir / REWINDS, [*past, {**entry, "put_off": put_off, "log": lost}])
    wait_for_all()  # nobody reads the file before it is there
    _begin_again(trainer)
    return checkpoint


def _begin_again(trainer: Any) -> None:
    """Takes the engine and the optimizer off the model, so that `train` makes them anew."""
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()
        trainer.model_wrapped = trainer.deepspeed = trainer.model
        trainer.optimizer = trainer.lr_scheduler = None
    trainer.forget()


def _load_best(trainer: Any) -> None:
    """What upstream does at the end of training, where there is nothing left to train."""
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
