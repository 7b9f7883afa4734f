"""TrainingArguments of upstream, with what it would trip over only later told before anything is loaded."""

from collections.abc import Iterator
from copy import copy
from typing import Any, TypeVar

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames, trainer_log_levels

from ingot.recipe import InputError
from ingot.training.launch import use_one_gpu

# what torch.utils.checkpoint.checkpoint takes
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
STARTS = ("fork", "spawn", "forkserver")  # of the data loader's workers

A = TypeVar("A", bound=TrainingArguments)


def make_arguments(kind: type[A], values: dict[str, Any]) -> A:
    """Upstream's arguments of a kind; one process keeps to one GPU.

    Raises: InputError for values that upstream refuses, now or later: the key, the value and what it may be.
    """
    try:
        arguments = kind(**values)
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise InputError(f"training: {' '.join(str(error).split())}") from error
    if problems := [f"training.{problem}" for problem in _problems(arguments)]:
        raise InputError("; ".join(problems))
    check_optimizer(arguments)
    use_one_gpu(arguments)
    return arguments


def _problems(arguments: TrainingArguments) -> Iterator[str]:
    for key in ("seed", "data_seed"):
        value = getattr(arguments, key)
        if value is not None and not 0 <= value < 2**32:
            yield f"{key}: {value} is not from 0 to 2^32 - 1"
    for key in ("ddp_timeout", "save_total_limit"):
        value = getattr(arguments, key)
        if value is not None and value < 1:
            yield f"{key}: {value} is less than 1"
    for key in ("log_level", "log_level_replica"):
        if getattr(arguments, key) not in trainer_log_levels:
            yield f"{key}: '{getattr(arguments, key)}' is none of {', '.join(trainer_log_levels)}"
    if arguments.dataloader_persistent_workers and not arguments.dataloader_num_workers:
        yield "dataloader_persistent_workers: there are none; raise dataloader_num_workers, or leave it out"
    context = getattr(arguments, "dataloader_multiprocessing_context", None)
    if context is not None and context not in STARTS:
        yield f"dataloader_multiprocessing_context: '{context}' is none of {', '.join(STARTS)}"
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):  # the old and the new one
        for key in getattr(arguments, name, None) or {}:
            if key not in CHECKPOINTING:
                yield f"{name}: '{key}' is none of {', '.join(CHECKPOINTING)}"
                return


def check_optimizer(arguments: TrainingArguments) -> None:
    """Asks upstream for the optimizer of `training.optim`, as its Trainer does when the model is built.

    Raises: InputError for a package that is missing, and for an `optim_args` that the optimizer would not look at.
    """
    name, given = OptimizerNames(arguments.optim).value, arguments.optim_args
    if given and any(part.count("=") != 1 for part in given.split(",")):
        raise InputError(f"training.optim_args: '{given}' is not name=value, with commas between several")
    bare = copy(arguments)
    bare.optim_args = None
    try:
        found, plain = (Trainer.get_optimizer_cls_and_kwargs(one) for one in (arguments, bare))
    except (ImportError, ValueError, TypeError) as error:
        if "pass a" in str(error) and "model" in str(error):  # it looks at the model's weights
            return
        raise InputError(f"training.optim: {name}: {' '.join(str(error).split())}") from error
    if given and found == plain:
        raise InputError(f"training.optim_args: {name} reads none of '{given}'; leave it out")
