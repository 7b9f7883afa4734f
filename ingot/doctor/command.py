"""`ingot doctor`: the machine; `ingot doctor FOLDER`: a run, or a folder of runs."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.doctor.findings import Finding, as_tree, examined, fails, shown
from ingot.recipe import InputError
from ingot.runs import get_logger

HELP = """usage: ingot doctor [--short] [--json]
       ingot doctor FOLDER ... [--config RECIPE [--section.key=value ...]] [--json]

Without a folder: versions, imports, GPUs, memory, disk and network of this machine, and a self-test that makes a toy
model from raw text to a chat, with a kill -9 on the way (under two minutes; --short leaves it out).
With a folder of a run, or of several: what state it is in, what its checkpoints are worth, what a rerun would do.
--config asks what this recipe would do in the folder. Nothing is changed.
Exit code 0 when nothing fails, 3 otherwise."""
RUNS = Path("runs")  # where recipes write, unless they say otherwise


@dataclass
class Request:
    """The command line."""

    folders: list[Path]
    short: bool = False
    json: bool = False
    config: Path | None = None
    overrides: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Request:
    """The words after `ingot doctor`.

    Raises: InputError for one that it does not know.
    """
    request, words = Request([]), list(arguments)
    while words:
        word = words.pop(0)
        if word in ("--short", "--json"):
            setattr(request, word[2:], True)
        elif word.startswith("--config="):
            request.config = Path(word.removeprefix("--config="))
        elif word == "--config" and words:
            request.config = Path(words.pop(0))
        elif word.startswith("--") and "." in word.split("=")[0]:
            given = [word] if "=" in word or not words else [word, words.pop(0)]
            request.overrides = (*request.overrides, *given)
        elif word.startswith("-"):
            raise InputError(f"ingot doctor: {word} is no option; there are --short, --json, --config RECIPE, --help")
        else:
            request.folders.append(Path(word))
    if request.config is not None and len(request.folders) != 1:
        raise InputError("ingot doctor: --config says what a recipe would do in one folder; name that folder, too")
    if request.overrides and request.config is None:
        raise InputError(
            f"ingot doctor: {request.overrides[0]} changes a key of a recipe; name it with --config RECIPE"
        )
    if request.short and request.folders:
        raise InputError("ingot doctor: --short is for the machine; a folder is always looked at whole")
    return request


def doctor_command(arguments: Sequence[str]) -> None:
    """Examines what the command line names.

    Raises: InputError for wrong words, SystemExit with 3 when something fails.
    """
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return
    request = parse(arguments)
    good = _examine_runs(request) if request.folders else _examine_machine(request)
    if not good:
        raise SystemExit(3)


def machine_findings(short: bool) -> Iterator[Finding]:
    """Everything about this machine, quick things first."""
    from ingot.doctor import gpus, loopback, machine, packages, storage

    with tempfile.TemporaryDirectory(prefix="ingot-doctor-") as name:
        scratch = Path(name)
        gpu: list[Finding] = []

        def look_at_gpus() -> Iterator[Finding]:
            for finding in gpus.gpu_findings(scratch):
                gpu.append(finding)
                yield finding

        checks: dict[str, Callable[[], Iterable[Finding]]] = {
            "packages": packages.version_findings,
            "machine": machine.machine_findings,
            "storage": lambda: storage.storage_findings(RUNS),
            "imports": lambda: packages.import_findings(scratch),
            "torch": look_at_gpus,
            "network": lambda: loopback.loopback_findings(scratch, any(f.what.startswith("GPU ") for f in gpu)),
        }
        for label, check in checks.items():
            yield from examined(label, check)
    if not short:
        from ingot.doctor.selftest import selftest_findings

        yield from examined("self-test", selftest_findings)


def _examine_machine(request: Request) -> bool:
    found = []
    for finding in machine_findings(request.short):
        found.append(finding)
        if not request.json:
            print(shown(finding, 28), flush=True)
    good = not fails(found)
    if request.json:
        print(json.dumps({"ok": good, "findings": as_tree(found)}, indent=2))
    else:
        print(_verdict(found))
    return good


def _verdict(found: Sequence[Finding]) -> str:
    numbers = {status: sum(f.status == status for f in found) for status in ("fail", "warn")}
    if numbers["fail"]:
        return f"\n{numbers['fail']} of {len(found)} checks fail; mend those first"
    rest = f", {numbers['warn']} to know about" if numbers["warn"] else ""
    return f"\nnothing fails{rest}"


def _examine_runs(request: Request) -> bool:
    from ingot.doctor.run_facts import runs_below
    from ingot.training import checkpoint_folders
    from ingot.training.quiet import keep_quiet

    keep_quiet()
    speaker = get_logger(checkpoint_folders.__name__)
    speaker.setLevel(logging.ERROR)  # what it says of damage is a finding here
    try:
        return _examine_all(request, runs_below)
    finally:
        speaker.setLevel(logging.NOTSET)


def _examine_all(request: Request, runs_below: Callable[[Path], Iterable[Path]]) -> bool:
    trees: list[dict[str, Any]] = []
    for folder in request.folders:
        below = list(runs_below(folder)) or [folder]
        if request.config is not None and below != [folder]:
            raise InputError(f"ingot doctor: {folder} holds several runs; name the one that {request.config} is for")
        for run in below:
            trees.append(_examine_run(run, request, alone=len(below) == 1))
    good = all(tree["ok"] for tree in trees)
    if request.json:
        print(json.dumps({"ok": good, "runs": trees}, indent=2, allow_nan=False))
    return good


def _examine_run(folder: Path, request: Request, alone: bool) -> dict[str, Any]:
    """Shows one run, in one line when it is one of several and all is well with it."""
    from ingot.doctor.run_facts import continue_command, read_facts
    from ingot.doctor.run_findings import run_findings

    facts = read_facts(folder)
    found = list(run_findings(facts, request.config, request.overrides))
    if not request.json:
        print(f"{folder}")
        shown_ones = found if alone or facts.state != "complete" else [f for f in found if f.what == "state"]
        shown_ones = [f for f in found if f in shown_ones or f.status != "ok"]
        print("\n".join(shown(finding, 16) for finding in shown_ones) + "\n")
    usable, good = facts.usable, not fails(found)
    return {
        "ok": good, "folder": str(folder), "state": facts.state, "stage": facts.stage, "reached": facts.reached,
        "max_steps": facts.max_steps, "checkpoints": [c.as_tree() for c in facts.checkpoints],
        "continues_from": usable.step if usable else None, "findings": as_tree(found),
        "command": continue_command(facts) if facts.stage and facts.state == "interrupted" else None,
    }  # fmt: skip
