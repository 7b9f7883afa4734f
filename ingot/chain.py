"""`ingot run`: a folder of recipes from first stage to last, each in a process of its own, skipping what is done."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.cli import STAGES, load_stage, stage_of
from ingot.recipe import SHORT_FORMS, InputError, Recipe, stage_inputs
from ingot.recipe_yaml import apply_overrides, read_yaml, split_overrides
from ingot.runs import MANIFEST, get_logger, is_complete, read_json, write_json

logger = get_logger(__name__)

CHAIN = ("train_tokenizer", "prepare_data", "pretrain", "sft", "dpo", "evaluate", "export")
TRAINING = ("pretrain", "sft", "dpo")
# seconds that torch's launcher gives its processes to save after a signal, before it kills them
LAUNCHER = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
HELP = """usage: ingot run FOLDER [--run.dir DIR] [--stages a,b,...] [--launch ACCELERATE_CONFIG] [--num_processes N]
                 [--resume | --restart] [--STAGE.section.key=value ...]

Runs the recipes of a folder in order. With --run.dir X each stage writes X/<stage> and finds the earlier ones there.
A stage that is complete, with an unchanged recipe and unchanged inputs, is skipped. --stages also names variants, such
as pretrain,sft_lora. --launch starts the training stages with `accelerate launch --config_file`. --resume and
--restart say what becomes of an interrupted training whose recipe has changed."""


@dataclass
class Link:
    """One stage of the chain: its recipe, and the command line that makes the same recipe again."""

    name: str
    recipe: Recipe
    arguments: list[str]
    seconds: float | None = None  # wall time of its process; None when it was skipped

    @property
    def dir(self) -> Path:
        """Where it writes."""
        return self.recipe.run.dir


@dataclass
class Request:
    """The command line of `ingot run`."""

    folder: Path
    run_dir: Path | None = None
    stages: tuple[str, ...] | None = None
    launch: str | None = None
    num_processes: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()  # (recipe, --section.key=value)
    changed: str | None = None  # --resume or --restart, for the training stages


def run_command(arguments: Sequence[str]) -> None:
    """Runs the chain that the command line asks for.

    Raises: InputError for a wrong recipe, before any stage runs; SystemExit with the exit code of a stage that failed.
    """
    if not arguments or {"--help", "-h"} & set(arguments):
        print(HELP)
        return
    request = parse(arguments)
    links = plan_chain(request)
    for link in links:
        if is_complete(link.recipe):
            logger.info("%s: complete and unchanged, skipped", link.name)
            continue
        logger.info("\n== %s", link.name)
        began = time.monotonic()
        code = start(link, request)
        link.seconds = round(time.monotonic() - began, 1)
        if code:
            end = {130: "interrupted", 2: "was refused"}.get(code, f"failed (exit code {code})")
            way = "mend the input and run" if code == 2 else "run"
            logger.info("%s %s; %s the same command again to continue from here", link.name, end, way)
            raise SystemExit(code)
    conclude(links)


def parse(arguments: Sequence[str]) -> Request:
    """The command line of `ingot run`.

    Raises: InputError for a word that it does not know.
    """
    if arguments[0].startswith("-"):
        raise InputError("ingot run: name a folder of recipes first, such as: ingot run recipes/quickstart")
    request, overrides = Request(Path(arguments[0])), []
    request.changed = next((a for a in arguments if a in SHORT_FORMS), None)
    for key, value in split_overrides([a for a in arguments[1:] if a not in SHORT_FORMS]):
        if key == "run.dir":
            request.run_dir = Path(value)
        elif key == "stages":
            request.stages = tuple(value.split(","))
        elif key == "launch":
            request.launch = value
        elif key == "num_processes":
            if not value.isdigit() or value == "0":
                raise InputError(f"--num_processes: expected a whole number above 0, got '{value}'")
            request.num_processes = int(value)
        else:
            overrides.append((key.split(".")[0], f"--{key.partition('.')[2]}={value}"))
    if request.num_processes is not None and request.launch is None:
        raise InputError("--num_processes: needs --launch with a file of accelerate_configs/")
    request.overrides = tuple(overrides)
    return request


def plan_chain(request: Request) -> list[Link]:
    """The stages to run with their recipes, checked and pointing into the run folder.

    Raises: InputError with the errors of all recipes.
    """
    paths = recipe_paths(request)
    unknown = [stage for stage, _ in request.overrides if stage not in {p.stem for p in paths}]
    if unknown:
        names = ", ".join(p.stem for p in paths)
        raise InputError(f"--{unknown[0]}....: no such stage in {request.folder}; overrides begin with one of {names}")
    moves = dict(_moves(request))
    links, errors = [], []
    for path in paths:
        given = [text for stage, text in request.overrides if stage == path.stem]
        if request.changed is not None and stage_of(path.stem) in TRAINING:
            given.append(SHORT_FORMS[request.changed])
        try:
            links.append(_link(path, given, moves))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    return links


def recipe_paths(request: Request) -> list[Path]:
    """The recipe files to run, in order.

    Raises: InputError when the folder or a named stage has none.
    """
    if not request.folder.is_dir():
        raise InputError(f"{request.folder}: no such folder of recipes")
    names = request.stages or tuple(s for s in CHAIN if (request.folder / f"{s}.yaml").is_file())
    endless = [n for n in names if stage_of(n) not in CHAIN]
    if endless:
        raise InputError(f"--stages: {endless[0]} has no end; start it alone: ingot {endless[0]} FOLDER")
    missing = [n for n in names if stage_of(n) and not (request.folder / f"{n}.yaml").is_file()]
    if missing:
        raise InputError(f"{request.folder / missing[0]}.yaml: no such file; --stages names recipes of the folder")
    if not names:
        raise InputError(f"{request.folder}: holds no recipe of a stage; they are named {', '.join(CHAIN)} (.yaml)")
    return [request.folder / f"{name}.yaml" for name in names]


def _is_stage(name: str) -> bool:
    return any(name == stage or name.startswith(f"{stage}_") for stage in STAGES)


def _moves(request: Request) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """For every recipe of the folder, by name: the run folder that it says and the one that it gets."""
    chosen = {name: apply_overrides({}, [text]) for name, text in request.overrides if text.startswith("--run.dir=")}
    for path in sorted(p for p in request.folder.glob("*.yaml") if _is_stage(p.stem)):
        try:
            tree = read_yaml(path)
        except InputError:
            continue  # told when it is loaded, if it is to run
        said = _run_dir(tree)
        given = _run_dir(chosen.get(path.stem, {}))
        if said is not None:
            yield path.stem, (said, given or (request.run_dir / path.stem if request.run_dir else said))


def _run_dir(tree: dict[str, Any]) -> Path | None:
    section = tree.get("run")
    said = section.get("dir") if isinstance(section, dict) else None
    return None if said is None else Path(str(said))


def _link(path: Path, given: list[str], moves: dict[str, tuple[Path, Path]]) -> Link:
    recipe = load_stage(path, given)
    moved = {"run.dir": moves[path.stem][1] if path.stem in moves else recipe.run.dir}
    for key, folder, _ in stage_inputs(recipe):
        for old, new in moves.values():
            if folder == old or old in folder.parents:
                moved[key] = new / folder.relative_to(old)
    # quoted: a folder may be called 2024
    arguments = [*given, *(f"--{key}={json.dumps(str(folder))}" for key, folder in moved.items())]
    return Link(path.stem, load_stage(path, arguments), ["--config", str(path), *arguments])


def start(link: Link, request: Request) -> int:
    """Runs one stage in a process of its own and returns its exit code; signals are passed on to it once."""
    words = ["-m", "ingot.cli", link.recipe.stage, *link.arguments]
    if request.launch and link.recipe.stage in TRAINING:
        number = ["--num_processes", str(request.num_processes)] if request.num_processes else []
        words = ["-m", "accelerate.commands.launch", "--config_file", request.launch, *number, *words]
    environment = {**LAUNCHER, **os.environ}
    child = subprocess.Popen(
        [sys.executable, *words], start_new_session=True, preexec_fn=_end_with_parent, env=environment
    )
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        # the launcher of several processes would die of SIGUSR1 and leave them alone
        _pass_on(child, signal.SIGTERM if number == signal.SIGUSR1 else number)

    previous = {which: signal.signal(which, pass_on) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        code = child.wait()
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
    return exit_code(code, bool(received))


def exit_code(code: int, interrupted: bool) -> int:
    """A stage's exit code from its process's: accelerate ends with 1 whatever its workers end with.

    A stage that was told to stop ends the chain even when it was just done.
    """
    if interrupted:
        return 130
    return 128 - code if code < 0 else 3 if code == 1 else code


def _pass_on(child: "subprocess.Popen[bytes]", number: int) -> None:
    if child.poll() is None:
        os.killpg(child.pid, number)


def _end_with_parent() -> None:
    """Asks Linux to end this process when the one that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def conclude(links: list[Link]) -> None:
    """Prints the table of stages and writes summary.json beside the stages' folders."""
    manifests = {link.name: read_json(link.dir / MANIFEST) for link in links}
    for link in links:
        manifests[link.name]["seconds"] = link.seconds or manifests[link.name]["seconds"]
    rows = [(name, f"{m['seconds']:.0f} s", headline(m["stage"], m["results"])) for name, m in manifests.items()]
    rows.append(("total", f"{sum(m['seconds'] for m in manifests.values()):.0f} s", ""))
    width = max(len(row[0]) for row in rows)
    print(f"\n{'stage':<{width}}  {'time':>6}  result")
    for name, seconds, result in rows:
        print(f"{name:<{width}}  {seconds:>6}  {result}")
    root = links[-1].dir.parent
    write_json(root / "summary.json", summary(manifests))
    print(f"\nsummary: {root / 'summary.json'}")
    talker = next((link for link in reversed(links) if link.recipe.stage in (*TRAINING, "export")), None)
    if talker is not None:
        print(f"chat:    ingot chat {talker.dir}\n         ingot chat {talker.dir} --run.web=true")


def headline(stage: str, results: dict[str, Any]) -> str:
    """The result of a stage in a few words."""
    if stage == "evaluate":
        return "bits per byte: " + ", ".join(f"{n} {v['bits_per_byte']:.3f}" for n, v in _measured(results).items())
    texts = {
        "train_tokenizer": "{vocab_size:,} entries, {bytes_per_token:.2f} bytes per token",
        "prepare_data": "{splits[train][tokens]:,} training tokens of {splits[train][documents]:,} documents",
        "pretrain": "{parameters:,} parameters, held-out loss {heldout_loss:.3f}",
        "sft": "held-out loss {loss_before:.3f} -> {loss_after:.3f} on {validation_rows} rows",
        "dpo": "held-out margin {margin_before:.3f} -> {margin_after:.3f} on {validation_pairs} pairs",
        "export": "{path}",
    }
    return texts[stage].format(**results)


def summary(manifests: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a whole run: stages with seconds, and the headline figures of each."""
    found: dict[str, Any] = {"stages": [{"name": n, "seconds": m["seconds"]} for n, m in manifests.items()]}
    results = {m["stage"]: m["results"] for m in manifests.values()}
    for name, value in _measured(results.get("evaluate", {})).items():
        found[name] = {"bits_per_byte": value["bits_per_byte"]}
    keys = {"sft": ("loss_before", "loss_after"), "dpo": ("margin_before", "margin_after"), "export": ("path",)}
    for stage, wanted in keys.items():
        if stage in results:
            found[stage] = found.get(stage, {}) | {key: results[stage][key] for key in wanted}
    return found


def _measured(results: dict[str, Any]) -> dict[str, Any]:
    """The models (and compressors) among the results of evaluate."""
    return {name: value for name, value in results.items() if isinstance(value, dict) and "bits_per_byte" in value}
