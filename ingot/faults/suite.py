"""Every case, in the order in which they run."""

import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ingot.faults.workplace import Result, Workplace

# name -> (module, what it does to Ingot, whether it is part of the short form)
CASES = {
    "kills_pretrain": ("kill_cases", "pretraining killed at random moments and inside saves", True),
    "kills_sft": ("kill_cases", "the same for sft", True),
    "kills_dpo": ("kill_cases", "the same for dpo", False),
    "kills_ddp": ("kill_cases", "the same for two processes: all of them, or one", False),
    "kills_zero2": ("kill_cases", "the same under ZeRO-2", False),
    "rank_death": ("ranks", "one of two processes dies", False),
    "sigterm": ("signals", "SIGTERM, SIGINT and SIGUSR1 at any moment", True),
    "full_disk": ("full_disk", "the disk fills up while a run saves", True),
    "resume_every_step": ("resume", "a run continued from each of its steps", False),
    "elastic": ("resume", "one process, then two, then one", False),
    "finished_run": ("resume", "a finished run started again", True),
    "changed_recipe": ("resume", "a recipe that changed since the checkpoint", False),
    "nan": ("nonfinite", "NaN in the weights, the gradient or the loss of one step", True),
    "input_mutations": ("inputs", "damaged data, tokenizers, configs, templates and recipes", True),
    "recipe_keys": ("recipe_keys", "every key of every recipe, misspelt by one letter", True),
    "interrupted_data": ("data_stage", "prepare_data killed at random moments", True),
    "checkpoint_mutations": ("mutations", "every kind of damage to every file of checkpoints and models", True),
    "overhead": ("overhead", "what safety costs: steps beside a plain Trainer, and saves", False),
}


def selected(only: Sequence[str], short: bool) -> list[str]:
    """The names that were asked for, or those of the form."""
    return list(only) or [name for name, (_, _, in_short) in CASES.items() if in_short or not short]


def run_case(name: str, work: Workplace) -> dict[str, Any]:
    """The result of a case with its seconds; one that cannot come to its end has not passed, and says why."""
    began = time.monotonic()
    work.say(f"{name}: {CASES[name][1]}")
    function: Callable[[Workplace], Result] = getattr(import_module(f"ingot.faults.{CASES[name][0]}"), name)
    try:
        result = function(work)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = {"error": f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"}
        result = {"name": name, "asked": CASES[name][1], "measured": what, "passed": False}
    return {**result, "seconds": round(time.monotonic() - began, 1)}
