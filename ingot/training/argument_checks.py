"""Values of `training` that upstream takes and trips over only later, told before anything is loaded."""

from collections.abc import Iterator

from transformers import TrainingArguments
from transformers.training_args import trainer_log_levels

from ingot.recipe import InputError

# what torch.utils.checkpoint.checkpoint takes
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
STARTS = ("fork", "spawn", "forkserver")  # of the data loader's workers


def check_arguments(arguments: TrainingArguments) -> None:
    """Raises: InputError that names every key, its value and what it may be."""
    if problems := [f"training.{problem}" for problem in _problems(arguments)]:
        raise InputError("; ".join(problems))


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
