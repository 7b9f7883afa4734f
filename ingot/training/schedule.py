"""The learning rate's schedule, tried before anything is trained."""

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler

from ingot.recipe import InputError
from ingot.runs import get_logger

WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")

logger = get_logger(__name__)


def check_schedule(arguments: TrainingArguments) -> None:
    """Builds the schedule once for a single number and asks for its last step.

    Raises: InputError for options that upstream would refuse after the data is loaded, would not look at, or that do
    not fit in `max_steps`.
    """
    name = str(SchedulerType(arguments.lr_scheduler_type).value)
    options = cast(dict[str, Any], arguments.lr_scheduler_kwargs or {})
    steps, warmup = arguments.max_steps, arguments.get_warmup_steps(arguments.max_steps)
    if name in WITHOUT_OPTIONS and options:
        raise InputError(f"training.lr_scheduler_kwargs: {name} takes none; leave it out")
    if name in WITHOUT_WARMUP and warmup:
        way_out = "use lr_scheduler_type: constant_with_warmup" if name == "constant" else "leave it out"
        raise InputError(f"training.warmup_steps: {name} has none; {way_out}")
    if warmup > steps:
        logger.warning("training.warmup_steps: %d, and the run has %d: the learning rate stays below", warmup, steps)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    try:
        schedule = get_scheduler(name, optimizer, warmup, steps, options)
        if isinstance(schedule, LambdaLR):
            schedule.lr_lambdas[0](steps - 1)
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"training.lr_scheduler_kwargs: {options} for {name}: {reason}") from error
    if name == "warmup_stable_decay":
        _check_phases(steps, warmup, options)


def _check_phases(steps: int, warmup: int, options: dict[str, Any]) -> None:
    decay = options["num_decay_steps"]
    if decay < 0:
        raise InputError(f"training.lr_scheduler_kwargs: num_decay_steps is {decay}; give 0 or more")
    if not 0 <= options.get("min_lr_ratio", 0) <= 1:
        raise InputError(f"training.lr_scheduler_kwargs: min_lr_ratio is {options['min_lr_ratio']}; give 0 to 1")
    phases = warmup + decay + (options.get("num_stable_steps") or 0)
    if phases > steps:
        raise InputError(
            f"training.lr_scheduler_kwargs: warmup, stable and decay make {phases} steps and the run has {steps}; "
            "lower num_decay_steps, or leave num_stable_steps out"
        )
