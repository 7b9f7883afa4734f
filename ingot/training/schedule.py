"""The learning rate's schedule, tried before anything is trained."""

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments, get_scheduler

from ingot.recipe import InputError

WITHOUT_OPTIONS = ("constant", "constant_with_warmup")


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
    if name == "constant" and warmup:
        raise InputError("training.warmup_steps: constant has none; use lr_scheduler_type: constant_with_warmup")
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
    phases = warmup + options["num_decay_steps"] + (options.get("num_stable_steps") or 0)
    if phases > steps:
        raise InputError(
            f"training.lr_scheduler_kwargs: warmup, stable and decay make {phases} steps and the run has {steps}; "
            "lower num_decay_steps, or leave num_stable_steps out"
        )
