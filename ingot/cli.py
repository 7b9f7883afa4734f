"""The `ingot` command: one sub-command a stage, and `ingot run` for a folder of recipes."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ingot import __version__
from ingot.failures import end_with
from ingot.recipe import Recipe, load_recipe, parse_command_line
from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError, apply_overrides

# stage -> (module, recipe class), in the order of a model's life
STAGES = {
    "train_tokenizer": ("ingot.tokenization.train_tokenizer", "TokenizerRecipe"),
    "prepare_data": ("ingot.data.prepare_data", "DataRecipe"),
    "pretrain": ("ingot.training.pretrain", "PretrainRecipe"),
    "sft": ("ingot.training.sft", "SFTRecipe"),
    "dpo": ("ingot.training.dpo", "DPORecipe"),
    "evaluate": ("ingot.evaluation.evaluate", "EvaluateRecipe"),
    "export": ("ingot.export.export", "ExportRecipe"),
    "serve": ("ingot.serving.serve", "ServeRecipe"),
    "chat": ("ingot.serving.chat", "ChatRecipe"),
}
# stages that also take a folder in place of a recipe: `ingot chat runs/quickstart/export`
FOLDER_STAGES = ("serve", "chat")
# command -> subject -> (module, function that takes the words after it, meaning)
TOOLS = {
    "inspect": {
        "tokenizer": ("ingot.tokenization.inspect_tokenizer", "inspect_tokenizer_command", "a tokenizer, looked at"),
        "data": ("ingot.data.inspect_data", "inspect_data_command", "a prepared corpus: counts, drops, documents"),
    },
    "benchmark": {
        "memory": ("ingot.benchmark.memory", "main", "the planner's memory estimate against real training steps"),
        "train_step": ("ingot.benchmark.train_step", "train_step_command", "training speed beside the stock Trainer"),
        "data": ("ingot.benchmark.data", "benchmark_command", "tokenization and the whole pipeline beside others"),
        "reading": ("ingot.benchmark.reading", "reading_command", "rows and megabytes per second of every format"),
        "blocks": ("ingot.benchmark.blocks", "blocks_command", "training blocks per second"),
        "optimizers": ("ingot.benchmark.optimizers", "optimizers_command", "optimizers by tokens and by time"),
        "loss_curves": ("ingot.benchmark.loss_curves", "loss_curves_command", "losses beside the stock Trainer's"),
        "tokenizer": ("ingot.benchmark.tokenizer_training", "tokenizer_training_command", "BPE trainers compared"),
    },
}


def tool(arguments: Sequence[str]) -> None:
    """Runs `ingot inspect ...` or `ingot benchmark ...`.

    Raises: InputError for a subject that there is not.
    """
    name, subjects = arguments[0], TOOLS[arguments[0]]
    wanted = arguments[1] if len(arguments) > 1 else "--help"
    if wanted in ("--help", "-h"):
        print("\n".join(f"ingot {name} {subject:<12} {meaning}" for subject, (*_, meaning) in subjects.items()))
        return
    if wanted not in subjects:
        near = nearest(wanted, set(subjects))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(f"ingot {name}: there is no '{wanted}'; {hint}there are {', '.join(subjects)}")
    module, function, _ = subjects[wanted]
    getattr(importlib.import_module(module), function)(arguments[2:])


def stage_of(name: str) -> str:
    """The stage of a recipe's name: `sft_lora` is a recipe of `sft`.

    Raises: InputError when it is none.
    """
    found = [stage for stage in STAGES if name == stage or name.startswith(f"{stage}_")]
    if not found:
        near = nearest(name, set(STAGES))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(f"{name}: no such stage; {hint}there are {', '.join(STAGES)}")
    return found[0]


def recipe_class(stage: str) -> type[Recipe]:
    """The class that a stage's recipe is checked against."""
    module, name = STAGES[stage]
    return getattr(importlib.import_module(module), name)


def run_stage(recipe: Recipe) -> dict[str, Any]:
    """Runs the stage of a recipe; returns its results."""
    return importlib.import_module(STAGES[recipe.stage][0]).run(recipe)


def load_stage(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe in a file, whose name says the stage."""
    return load_recipe(recipe_class(stage_of(path.stem)), path, overrides)


def usage() -> str:
    """What `ingot --help` prints."""
    lines = [
        f"ingot {__version__}: make your own language model\n",
        "ingot run FOLDER       every stage of a folder of recipes",
        "ingot plan COMMAND     parameters, memory, time, money and loss before anything runs",
        "ingot inspect WHAT     look at a result",
        "ingot doctor [FOLDER]  versions, GPUs, disk and a self-test of this machine; or the state of a run",
        "ingot verify FOLDER    read every file again and compare it with what was written; --accept takes an edit",
        "ingot benchmark WHAT   the project's measurements, one table each",
        "ingot faults           kills, full disks, broken files: what is promised to survive them, counted",
    ]
    for stage in STAGES:
        meaning = (recipe_class(stage).__doc__ or "").strip().split("\n")[0]
        lines.append(f"ingot {stage:<16} {meaning}")
    return (
        "\n".join(lines) + "\n\nEach takes --config FILE and --section.key=value; `ingot STAGE --help` lists the keys."
    )


def command(arguments: Sequence[str]) -> None:
    """Does what the words after `ingot` say."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
    elif arguments[0] == "--version":
        print(__version__)
    elif arguments[0] == "run":
        from ingot.chain import run_command

        run_command(arguments[1:])
    elif arguments[0] == "plan":
        from ingot.planning.commands import plan_command

        plan_command(arguments[1:], load_stage)
    elif arguments[0] == "faults":
        from ingot.faults.command import faults_command

        faults_command(arguments[1:])
    elif arguments[0] == "doctor":
        from ingot.doctor.command import doctor_command

        doctor_command(arguments[1:])
    elif arguments[0] == "verify":
        from ingot.integrity import verify_command

        verify_command(arguments[1:])
    elif arguments[0] in TOOLS:
        tool(arguments)
    else:
        stage, rest = stage_of(arguments[0]), list(arguments[1:])
        if stage in FOLDER_STAGES and rest and not rest[0].startswith("-"):
            rest = [f"--model.path={json.dumps(rest[0])}", *rest[1:]]  # quoted: a folder may be called 2024
        run_stage(_recipe(stage, rest))


def _recipe(stage: str, arguments: list[str]) -> Recipe:
    """The recipe of the command line; stages that have a default for every key need no --config."""
    words = {a.split("=")[0] for a in arguments}
    if stage in FOLDER_STAGES and not words & {"--config", "--help", "-h"}:
        from ingot.recipe import build_recipe

        return build_recipe(recipe_class(stage), apply_overrides({}, arguments), f"ingot {stage}")
    return parse_command_line(recipe_class(stage), arguments)


def entry_point() -> NoReturn:
    """The console script."""
    end_with(lambda: command(sys.argv[1:]))


if __name__ == "__main__":
    entry_point()
