"""The run folder: what a stage reads and writes, when it is complete, and how files are written without being lost."""

import importlib.metadata
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ingot.alone import alone, check_alone
from ingot.changed_recipe import MANIFEST, STARTED, go_on, is_foreign, refuse_changed, set_aside
from ingot.failures import FULL, DiskFull, LostProcess, NotFinite, RunFailed, exit_code_of, interruptible
from ingot.files import (
    damage,
    describe_file,
    naming_full_disk,
    read_json,
    sha256_file,
    sha256_json,
    write_checksums,
    write_json,
    write_text,
)
from ingot.hashing import SOURCES, changed_file, hash_sources
from ingot.logs import get_logger, is_main_process, log_to, num_processes, progress
from ingot.recipe import InputError, Recipe, StageFolder, stage_inputs, to_tree
from ingot.recipe_yaml import dump_yaml
from ingot.records import differences, drop, is_of

__all__ = [
    "MANIFEST", "STARTED", "DiskFull", "LostProcess", "NotFinite", "RunFailed", "RunFolder", "check_inputs", "damage",
    "describe_file", "differences", "exit_code_of", "fingerprint_folder", "get_logger", "identity", "is_complete",
    "is_main_process", "model_folder", "num_processes", "open_run", "progress", "read_json", "read_manifest",
    "sha256_file", "sha256_json", "verify", "versions", "write_checksums", "write_json", "write_text",
]  # fmt: skip

DOUBTED = "manifest.old.json"  # what the manifest was before a file of the result was found changed
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "datatrove", "trl", "peft", "deepspeed")

logger = get_logger(__name__)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in ("ingot", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def model_folder(path: Path) -> Path:
    """The Hub-format folder at a path: the path itself, or `model/` in a run folder.

    Raises: InputError when neither has a config.json.
    """
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(
        f"{path}: no model here (no config.json, no model/config.json); "
        "name a run folder of pretrain, sft or dpo, or a Hub folder"
    )


def check_inputs(recipe: Recipe) -> None:
    """Checks that every earlier stage's output that the recipe names is there and complete.

    Raises: InputError with a line for every missing input: the key, the path and the command that makes it.
    """
    lines = [
        f"{key}: {reason}"
        for key, path, marker in stage_inputs(recipe)
        if (reason := _input_problem(recipe, path, marker))
    ]
    if lines:
        raise InputError("\n".join(lines))


def _input_problem(recipe: Recipe, path: Path, marker: StageFolder) -> str | None:
    known = any((path / f).is_file() for f in ("config.json", "model/config.json", "tokenizer.json"))
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if manifest["stage"] not in marker.stages and not (marker.hub and known):
            return f"{path} is an output of {manifest['stage']}, not of {marker.stages[0]}"
        lost = next((n for n, r in manifest["files"].items() if _size(path / n) != r["bytes"]), None)
        return None if lost is None else f"{path / lost} is gone or changed in size since {manifest['stage']} wrote it"
    if marker.hub and known and not (path / STARTED).is_file():
        return None
    stage = path.name if path.name in marker.stages else marker.stages[0]
    folder = recipe.source.parent if recipe.source else Path("recipes/quickstart")
    state = (
        "is not finished"
        if (path / STARTED).is_file()
        else "does not exist"
        if not path.exists()
        else f"is not an output of {stage}"
    )
    if marker.hub and recipe.source and not (folder / f"{stage}.yaml").is_file():
        return f"{path} {state}; put the folder there, as {recipe.source} says"
    return f"{path} {state}; make it with: ingot {stage} --config {folder / (stage + '.yaml')} --run.dir {path}"


def fingerprint_folder(path: Path) -> str:
    """What a folder holds, as one hash: from its manifest when a stage wrote it, else from its files."""
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        return sha256_json([manifest["stage"], manifest["files"]])
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_json([[str(p.relative_to(path)), sha256_file(p)] for p in files])


def identity(recipe: Recipe, save: bool = False) -> dict[str, Any]:
    """What a stage's result depends on: the recipe without its own folder, and the content of its inputs.

    `save` keeps the hashes of its sources in the run folder.
    """
    tree = to_tree(recipe)
    tree["run"] = {k: v for k, v in tree["run"].items() if k not in recipe.run.how}
    tree.pop("plan", None)  # what is expected changes nothing in the result
    inputs = {}
    for key, path, _ in stage_inputs(recipe):
        inputs[key] = fingerprint_folder(path)
        drop(tree, key)
    hashes = hash_sources(recipe.source_files(), recipe.run.dir, save and is_main_process())
    hashes = {**hashes, **recipe.source_stamps()}
    sources = sha256_json([[Path(name).name, digest] for name, digest in hashes.items()])
    return {"stage": recipe.stage, "recipe": json.loads(json.dumps(tree)), "inputs": inputs, "sources": sources}


class RunFolder:
    """The folder of one stage's run; `complete` says that nothing is left to do."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        identity: dict[str, Any],
        complete: bool,
        take_back: Callable[[], None] | None = None,
    ) -> None:
        """`take_back`: gives the folder the recipe again that it had before."""
        self.path, self.recipe, self.identity, self.complete = path, recipe, identity, complete
        self._take_back = take_back
        self._refused = False
        self.started = time.monotonic()

    @property
    def results(self) -> dict[str, Any]:
        """What the finished stage reported."""
        return dict(read_json(self.path / MANIFEST)["results"])

    @property
    def seconds(self) -> float:
        """Wall seconds of the finished stage, over all its interrupted parts."""
        return float(read_json(self.path / MANIFEST)["seconds"])

    def finish(self, results: dict[str, Any], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes the manifest, which marks the stage complete; on the main process only. Returns the results.

        known: bytes and sha256 of files, by name, that need not be read again.
        """
        if is_main_process():
            names = [str(path.relative_to(self.path)) for path in _result_files(self.path)]
            files = {name: (known or {}).get(name) or describe_file(self.path / name) for name in names}
            seconds = round(self.elapsed, 1)
            record = {**self.identity, "results": results, "seconds": seconds, "versions": versions(), "files": files}
            write_json(self.path / MANIFEST, record)
            (self.path / DOUBTED).unlink(missing_ok=True)
            logger.info("%s: done in %.0f s -> %s", self.recipe.stage, seconds, self.path)
        self.complete = True
        return results

    def refuse(self) -> None:
        """Leaves the folder as it was, when a run that was to go on with a new recipe cannot."""
        if self._take_back is not None:
            self._take_back()
            self._refused = True

    def add_seconds(self) -> None:
        """Keeps the time spent so far when a run is interrupted."""
        if not is_main_process() or self.complete or self._refused:
            return
        try:
            write_json(self.path / STARTED, {**self.identity, "seconds": self.elapsed})
        except OSError as error:
            if error.errno not in FULL:
                raise
            logger.warning("%s: %s; the time spent is not kept", self.path / STARTED, error.strerror)

    @property
    def elapsed(self) -> float:
        """Wall seconds so far, over all interrupted parts."""
        return self._seconds_before() + time.monotonic() - self.started

    def _seconds_before(self) -> float:
        return float(read_json(self.path / STARTED).get("seconds", 0.0))


def _result_files(folder: Path) -> list[Path]:
    """The files that are a stage's result: not checkpoints, logs or the folder's own records."""
    skipped = {MANIFEST, STARTED, DOUBTED, SOURCES, "log.txt"}
    found = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in skipped]
    return sorted(p for p in found if not p.relative_to(folder).parts[0].startswith((".", "checkpoint-", "log.txt")))


@contextmanager
def open_run(recipe: Recipe) -> Iterator[RunFolder]:
    """Opens a stage's run folder: checks its inputs, keeps what another recipe left there, saves the resolved recipe.

    Raises: InputError when an input is missing or the folder holds something else.
    """
    with interruptible():
        yield from _opened(recipe)


def _opened(recipe: Recipe) -> Iterator[RunFolder]:
    if num_processes() > 1:
        from accelerate import PartialState

        check_inputs(recipe)  # on every process, so that none waits for one that ended
        _check_unchanged(recipe)
        with PartialState().main_process_first():
            folder = _prepare(recipe)
        _check_shared(folder.path)
    else:
        folder = _prepare(recipe)
    working = is_main_process() and not folder.complete
    with alone(folder.path) if working else nullcontext():
        yield from _working_in(folder, working)


def _working_in(folder: RunFolder, working: bool) -> Iterator[RunFolder]:
    handler = None
    try:
        if working:
            from ingot.integrity import check_inputs_unchanged  # which imports this module

            check_inputs_unchanged(folder.recipe)
            handler = log_to(folder.path / "log.txt")
        with naming_full_disk(folder.path):
            yield folder
    except InputError:
        folder.refuse()
        raise
    finally:
        folder.add_seconds()
        if handler is not None:
            logging.getLogger("ingot").removeHandler(handler)
            handler.close()


def _check_unchanged(recipe: Recipe) -> None:
    """Raises: InputError on every process alike, where the first one alone would leave the others waiting."""
    record = recipe.run.dir / STARTED
    if record.is_file() and not (recipe.run.dir / MANIFEST).is_file():
        found, wanted = read_json(record), identity(recipe)
        if not is_of(found, recipe, wanted):
            refuse_changed(recipe.run.dir, recipe, found, wanted)


def _check_shared(path: Path) -> None:
    """Raises: InputError on every process when one does not see the run folder that the first one made."""
    from accelerate.utils import gather_object

    seen = gather_object([_sees_record(path)])
    if not all(seen):
        raise InputError(
            f"run.dir: process {seen.index(False)} does not see {path}, which process 0 made; put it on a file system "
            "that all machines share"
        )


def _sees_record(path: Path) -> bool:
    """Whether there is a run here; a network file system may show what another machine wrote some seconds later."""
    for wait in (0.0, 1.0, 2.0, 4.0):
        time.sleep(wait)
        if any((path / name).is_file() for name in (STARTED, MANIFEST)):
            return True
    return False


def _prepare(recipe: Recipe) -> RunFolder:
    check_inputs(recipe)
    path = recipe.run.dir
    if is_main_process():
        check_alone(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"run.dir: {path} is a file; choose a folder")
    for key, needed, _ in stage_inputs(recipe):
        if (
            path.resolve() in (needed.resolve(), *needed.resolve().parents)
            or needed.resolve() in path.resolve().parents
        ):
            raise InputError(f"run.dir: {path} and {key}: {needed} lie in each other; choose another folder")
    record = path / (MANIFEST if (path / MANIFEST).is_file() else STARTED)
    if path.is_dir() and not record.is_file() and any(map(is_foreign, path.iterdir())):
        raise InputError(f"run.dir: {path} holds files that no stage of Ingot wrote; choose another folder")
    wanted = identity(recipe, save=True)
    if record.is_file():
        found = read_manifest(path) if record.name == MANIFEST else read_json(record)
        if not isinstance(found, dict):
            raise InputError(f"{record}: not a record that Ingot wrote; move the folder away to start anew")
        if is_of(found, recipe, wanted):
            changed = changed_file(path, found["files"], _time(record)) if record.name == MANIFEST else STARTED
            complete = changed is None
            if record.name == MANIFEST and not complete and is_main_process():
                logger.info("%s: %s", recipe.stage, changed)
                write_json(path / STARTED, found)
                os.replace(record, path / DOUBTED)
            logger.info(
                "%s: %s: %s", recipe.stage, path, "complete and unchanged, nothing to do" if complete else "continuing"
            )
            return RunFolder(path, recipe, wanted, complete)
        refuse_changed(path, recipe, found, wanted)
        changes = differences(found, wanted)
        if (take_back := go_on(path, recipe, wanted, changes)) is not None:
            return RunFolder(path, recipe, wanted, False, take_back)
        if is_main_process():
            set_aside(path, changes)
    if is_main_process():
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / STARTED, wanted)
        write_text(path / "recipe.yaml", dump_yaml(to_tree(recipe)))
        hash_sources(recipe.source_files(), path, save=True)  # what the folder set aside knew
    return RunFolder(path, recipe, wanted, False)


def is_complete(recipe: Recipe) -> bool:
    """Whether the stage has finished with this recipe and these inputs."""
    manifest = recipe.run.dir / MANIFEST
    if not manifest.is_file() or any(_input_problem(recipe, path, marker) for _, path, marker in stage_inputs(recipe)):
        return False
    found = read_manifest(recipe.run.dir)
    return is_of(found, recipe, identity(recipe)) and not changed_file(recipe.run.dir, found["files"], _time(manifest))


def _time(path: Path) -> float:
    return path.stat().st_mtime


def verify(folder: Path) -> str | None:
    """Reads every byte of a finished result. Returns the first file that is not as it was written, and why.

    Raises: InputError when the folder is no finished result.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: no {MANIFEST} here; only the folder of a finished stage can be verified")
    return changed_file(folder, read_manifest(folder)["files"])


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The record that a finished stage left.

    Raises: InputError when the file is not one.
    """
    found = read_json(folder / MANIFEST)
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("stage"), str)
        or not isinstance(found.get("files"), dict)
    ):
        raise InputError(f"{folder / MANIFEST}: not a record that Ingot wrote; run the stage into another folder")
    return found
