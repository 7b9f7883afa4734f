"""Runs of the pretrain stage that differ in a few keys, each in a process of its own: their losses and their speed."""

import json
import math
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any
from zlib import crc32

import torch

from ingot.planning.arguments import Parser, count, output_folder, positive
from ingot.planning.sweep import STEPS_OF_SCHEDULE, tokens_per_step
from ingot.recipe import InputError, apply_overrides, build_recipe
from ingot.recipe_yaml import dump_yaml, read_yaml
from ingot.runs import get_logger, write_text
from ingot.training.callbacks import METRICS, read_metrics
from ingot.training.pretrain import PretrainRecipe

logger = get_logger(__name__)

INGOT = ("ingot.cli", "pretrain")
WARMUP = 0.1  # share of the steps, unless an override says otherwise: a recipe's own is meant for a longer run
LINES = 100  # of training losses, over a run

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run: its name, what it changes of the recipe, its steps where they are not the study's, and who trains.

    about: what else its row says.
    """

    name: str
    overrides: tuple[str, ...] = ()
    steps: int | None = None
    program: tuple[str, ...] = INGOT
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)


def study_parser(prog: str, description: str | None, result: str, steps: int, evaluations: int) -> Parser:
    """A parser with the words that every study takes; `result` names its JSON and its plot."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, required=True, help="recipe of pretrain; --section.key=value changes it"
    )
    parser.add_argument("--out", type=output_folder, required=True, help=f"folder for {result}.json and {result}.png")
    parser.add_argument("--steps", type=count, default=steps, help="of every run; default %(default)s")
    parser.add_argument(
        "--evaluations", type=count, default=evaluations, help="on the way of every run; default %(default)s"
    )
    parser.add_argument("--jobs", type=count, default=1, help="runs at the same time; default %(default)s")
    parser.add_argument("--minutes", type=positive, help="stop then, with what there is")
    parser.add_argument("--add", type=Path, action="append", default=[], help=f"{result}.json of an earlier study")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(result=result)
    return parser


@contextmanager
def open_study(words: Namespace, overrides: tuple[str, ...]) -> Iterator["Study"]:
    """The study that the words ask for, its runs in a folder that is gone afterwards; only results go to stdout.

    Raises: InputError where results lie that would be lost.
    """
    result, deadline = words.out / f"{words.result}.json", time.monotonic() + 60 * (words.minutes or math.inf)
    if result.exists() and result.resolve() not in [path.resolve() for path in words.add]:
        raise InputError(f"--out: {result} exists; keep its runs with --add {result}, or choose another folder")
    with TemporaryDirectory(prefix="ingot-") as folder, redirect_stdout(sys.stderr):
        try:
            yield Study(words.config, overrides, words.steps, words.evaluations, Path(folder), deadline)
        except KeyboardInterrupt:
            kept = f"what ended is in {result}; --add takes it in" if result.exists() else "no run had ended"
            raise KeyboardInterrupt(f"interrupted; {kept}") from None


@dataclass(frozen=True)
class Study:
    """What its runs have in common; `folder` holds them, `deadline` is a time.monotonic() after which all end."""

    config: Path
    overrides: tuple[str, ...]
    steps: int
    evaluations: int
    folder: Path
    deadline: float = field(default=float("inf"))

    def recipe(self, run: Run) -> dict[str, Any]:
        """The recipe of a run as plain values; its schedule is that of the study's recipe, in proportion.

        Raises: InputError for a key that there is not, or that contradicts another.
        """
        tree = read_yaml(self.config)
        steps, training = run.steps or self.steps, dict(tree.get("training", {}))
        phases = dict(training.get("lr_scheduler_kwargs") or {})
        for key in STEPS_OF_SCHEDULE:
            if key in phases:
                phases[key] = max(1, round(phases[key] / training["max_steps"] * steps))
        evaluated = max(1, steps // self.evaluations)
        training |= {
            "max_steps": steps, "warmup_steps": WARMUP, "save_strategy": "no", "eval_strategy": "steps",
            "eval_steps": evaluated, "logging_steps": max(1, steps // LINES),
        } | ({"lr_scheduler_kwargs": phases} if phases else {})  # fmt: skip
        own = {**tree.get("run", {}), "dir": str(self.folder_of(run)), "sample_prompts": []}
        tree = apply_overrides({**tree, "training": training, "run": own}, [*self.overrides, *run.overrides])
        build_recipe(PretrainRecipe, tree, f"{self.config} ({run.name})")
        return tree

    def folder_of(self, run: Run) -> Path:
        """The run folder; another for every name."""
        safe = re.sub(r"[^\w.-]+", "_", run.name)
        return self.folder / (safe if safe == run.name else f"{safe}-{crc32(run.name.encode()):08x}")


def train_all(study: Study, runs: Sequence[Run], at_once: int, done: Callable[[Row], None]) -> list[Row]:
    """Trains every run, so many at the same time, and gives each row to `done` when its run has ended.

    Raises: InputError for a wrong recipe, before anything runs.
    """
    for run in runs:
        study.recipe(run)

    turn = Lock()  # runs that end together: `done` writes a file

    def one(run: Run) -> Row:
        row = train(study, run)
        with turn:
            done(row)
        return row

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, runs))


def train(study: Study, run: Run) -> Row:
    """One run as a row: steps, tokens of a step, [step, loss] of training and held out, tokens per second, seconds.

    `error` says why a run did not reach its end; what it had logged is there.
    """
    tree, folder = study.recipe(run), study.folder_of(run)
    row: Row = {"name": run.name, **run.about, "overrides": list(run.overrides)}
    row |= {"steps": tree["training"]["max_steps"], "tokens_per_step": tokens_per_step(tree)}
    if folder.is_dir():
        rmtree(folder)  # what an earlier study left
    folder.mkdir(parents=True)
    config = study.folder / f"{folder.name}.yaml"
    write_text(config, dump_yaml(tree))
    began = time.monotonic()
    problem = _start([sys.executable, "-m", *run.program, "--config", str(config)], study.deadline - began)
    row |= {"seconds": round(time.monotonic() - began, 1), **_losses(folder)}
    if problem:
        row["error"] = problem + ("; a study keeps no folder of its runs" if str(folder) in problem else "")
    rmtree(folder)  # a model is large
    last = row["heldout"][-1][1] if row["heldout"] else None
    logger.info("%s: %s, %s s", run.name, problem or f"held-out loss {last:.4f}", row["seconds"])
    return row


def _start(command: list[str], seconds: float) -> str | None:
    """Runs a command for so long at most; returns the last line of what it said when it did not end well."""
    if seconds <= 0:
        return "not started: no time was left"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=None if seconds > 1e9 else seconds)
    except subprocess.TimeoutExpired:
        return "stopped: no time was left"
    if done.returncode == 0:
        return None
    lines = (done.stderr.strip() or "no output").splitlines()
    logger.info("%s\n%s", " ".join(command[1:]), "\n".join(lines[-15:]))
    return lines[-1]


def _losses(folder: Path) -> Row:
    metrics = read_metrics(folder / METRICS)
    rates = [line["tokens_per_second"] for line in metrics if "tokens_per_second" in line]
    return {
        "train": [[line["step"], line["loss"]] for line in metrics if "loss" in line],
        "heldout": [[line["step"], line["eval_loss"]] for line in metrics if "eval_loss" in line],
        "tokens_per_second": median(rates[len(rates) // 4 :]) if rates else None,  # the first have a cold start
    }


def earlier_rows(words: Namespace) -> list[Row]:
    """The rows of the studies that `--add` names, without the runs that did not reach their end.

    Raises: InputError for a file that is no study, or one of other steps: their losses do not compare.
    """
    return [row for path in words.add for row in _ended_rows(path, words.steps)]


def new_results(study: Study, rows: list[Row]) -> dict[str, Any]:
    """What every study's JSON begins with: the machine, the steps, and the rows, to which more are added."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": where, "torch": torch.__version__, "steps": study.steps, "runs": rows}


def _ended_rows(path: Path, steps: int) -> list[Row]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in found["runs"] if "error" not in row]
        earlier = int(found["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--add: {path}: not the results of an earlier study ({type(error).__name__})") from error
    if earlier != steps:
        raise InputError(f"--add: {path}: its runs took {earlier} steps: --steps={earlier} makes new ones like them")
    if len(rows) < len(found["runs"]):
        logger.info("%s: left out, for they did not reach their end: %s", path, len(found["runs"]) - len(rows))
    return rows


def take_overrides(words: Sequence[str], prog: str) -> tuple[str, ...]:
    """The words that change keys of the recipe.

    Raises: InputError for one that does not.
    """
    for word in words:
        if not re.match(r"--\w+\.[\w.]+=", word):
            raise InputError(f"{prog}: {word}: no such option; a key of the recipe is changed by --section.key=value")
    return tuple(words)
