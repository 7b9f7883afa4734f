"""Python and the packages: versions against their bounds, what is missing, and what does not import."""

import configparser
import importlib.metadata
import platform
import signal
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ingot import __version__
from ingot.doctor.findings import Finding, fail, ok, warn
from ingot.doctor.probing import HOME, Probe, ended

CHAIN_EXTRAS = ("train", "eval", "serve", "export")  # what the stages of a model's life need
UNIMPORTED = {"dev"}  # extras whose packages no stage imports
# names of modules that are not their package's with "_" for "-"
MODULES = {"protobuf": "google.protobuf", "moto": "moto", "ruamel.yaml": "ruamel.yaml"}
TRAINER = """
import tempfile, torch
from transformers import Trainer, TrainingArguments
with tempfile.TemporaryDirectory() as folder:
    Trainer(torch.nn.Linear(1, 1), TrainingArguments(folder, use_cpu=True, report_to="none"))
"""
# what a broken package breaks beside itself: Trainer looks for DeepSpeed, TRL for PEFT and bitsandbytes
JOINTS = {
    "transformers.Trainer": TRAINER,
    "trl.SFTTrainer": "from trl import SFTTrainer, DPOTrainer",
}
IMPORT_SECONDS = 90.0


def requirements() -> dict[str, list[Requirement]]:
    """What Ingot asks for, by extra ("" for what is always needed): setup.cfg's words here, else as it was installed.

    A checkout that was updated may ask for more than when it was installed.
    """
    if in_checkout():
        parser = _setup()
        texts = {"": parser.get("options", "install_requires"), **dict(parser.items("options.extras_require"))}
        return {extra: [Requirement(line) for line in text.strip().split("\n")] for extra, text in texts.items()}
    found: dict[str, list[Requirement]] = {"": []}
    for extra in importlib.metadata.metadata("ingot").get_all("Provides-Extra") or []:
        found[extra] = []
    for text in importlib.metadata.requires("ingot") or []:
        requirement = Requirement(text)
        wanted = [e for e in found if requirement.marker is None or requirement.marker.evaluate({"extra": e})]
        for extra in [""] if "" in wanted else wanted:
            found[extra].append(requirement)
    return found


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(HOME / "setup.cfg", encoding="utf-8")
    return parser


def in_checkout() -> bool:
    """Whether Ingot runs from its repository."""
    return (HOME / "setup.cfg").is_file() and (HOME / "modeling").is_dir()


def pip_command(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install 'ingot[{extra}]'"


def version_findings() -> Iterator[Finding]:
    """Python, every package against its bounds, and the extras."""
    yield _python()
    for extra, wanted in requirements().items():
        yield from _group(extra, wanted)


def _python() -> Finding:
    if in_checkout():
        bounds = SpecifierSet(_setup().get("options", "python_requires"))
    else:
        bounds = SpecifierSet(importlib.metadata.metadata("ingot")["Requires-Python"])
    version = platform.python_version()
    if bounds.contains(version, prereleases=True):
        return ok("python", f"{version} (needs {bounds}), ingot {__version__}")
    way = "make a virtual environment with a Python that fits, and install Ingot in it"
    return fail("python", f"{version} is not within {bounds}", way)


def _group(extra: str, wanted: list[Requirement]) -> Iterator[Finding]:
    """The packages of an extra: one line for those that fit, one for each that does not, one for those missing."""
    name = f"packages [{extra}]" if extra else "packages"
    fitting, missing = [], []
    for requirement in wanted:
        version = _version(requirement.name)
        if version is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is outside of what was tested: {requirement.specifier}"
            yield fail(name, text, f"pip install '{requirement.name}{requirement.specifier}'")
        else:
            fitting.append(f"{requirement.name} {version} ({requirement.specifier})")
    if fitting:
        yield ok(name, ", ".join(fitting))
    if missing and not extra:
        yield fail(name, f"{', '.join(missing)}: not installed", "pip install -e ." if in_checkout() else "pip check")
    elif missing and extra in CHAIN_EXTRAS:
        yield warn(name, f"{', '.join(missing)}: not installed", pip_command(extra))
    elif missing:
        yield ok(name, f"{', '.join(missing)}: not installed; when you need it: {pip_command(extra)}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def imports() -> dict[str, str]:
    """What is tried: name -> statement; every installed package that Ingot names, and where they meet."""
    names = [r.name for extra, group in requirements().items() if extra not in UNIMPORTED for r in group]
    here = list(dict.fromkeys(name for name in names if _version(name) is not None))
    tried = {name: f"import {MODULES.get(name, name.replace('-', '_'))}" for name in here}
    return tried | {k: v for k, v in JOINTS.items() if k.split(".")[0] in tried}


def import_findings(scratch: Path, tried: dict[str, str] | None = None) -> Iterator[Finding]:
    """Imports every package in another process, where a crash or a hang hurts nobody."""
    pending, well = dict(imports() if tried is None else tried), []
    while pending:
        told: dict[str, str | None] = {}
        code, problem = _try_imports(pending, scratch / "imports.log", told)
        for name, error in told.items():
            pending.pop(name)
            if error is None:
                well.append(name)
            else:
                yield _broken(name, error)
        if pending:  # the process ended in the middle of one
            name = next(iter(pending))
            pending.pop(name)
            yield _broken(name, problem or ended(code))
    yield ok("imports", f"{len(well)} import: {', '.join(well)}")


def _try_imports(pending: dict[str, str], log: Path, told: dict[str, str | None]) -> tuple[int, str | None]:
    """Imports until the process ends; returns its exit code, or what else ended it."""
    probe = Probe(["-c", SCRIPT, *(word for pair in pending.items() for word in pair)], log)
    problem = None
    try:
        for value in probe.values(IMPORT_SECONDS):
            told[value["name"]] = value["error"]
    except TimeoutError as error:
        problem = f"hangs ({error})"
        probe.process.send_signal(signal.SIGKILL)
    return probe.end(), problem


SCRIPT = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a package prints is not an answer
words = sys.argv[1:]
for name, statement in zip(words[::2], words[1::2]):
    error = None
    try:
        exec(statement, {})
    except BaseException as caught:
        error = type(caught).__name__ + ": " + str(caught).strip().split("\\n")[0]
    print(json.dumps({"name": name, "error": error}), file=answers, flush=True)
os._exit(0)
"""


def _broken(name: str, error: str) -> Finding:
    bounds = {r.name: str(r.specifier) for group in requirements().values() for r in group}
    package = name if name in bounds else name.split(".")[0]
    way = f"pip install --force-reinstall --no-deps '{package}{bounds.get(package, '')}'"
    if name in JOINTS:
        way = f"mend the packages that are named before; where none is: {way}"
    if package == "deepspeed":
        way += "; or, without ZeRO: pip uninstall deepspeed (a broken one breaks Trainer)"
    return fail("imports", f"{name} is installed and does not work: {error}", way)
