"""A run folder that belongs to another recipe: refused, gone on with, or kept under another name."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ingot.files import read_json, write_json, write_text
from ingot.hashing import SOURCES
from ingot.logs import get_logger, is_main_process
from ingot.recipe import InputError, Recipe, to_tree
from ingot.recipe_yaml import dump_yaml
from ingot.records import differences

logger = get_logger(__name__)

MANIFEST = "manifest.json"  # written last: its presence says that the stage is complete
STARTED = "started.json"  # written first: which recipe and inputs the folder belongs to
# keys by which one corpus makes other rows, or the same in another order: how many were read means nothing then
ROWS = ("data.seq_length:", "data.packing:", "data.seq_length_schedule", "training.seed:")


def is_foreign(path: Path) -> bool:
    """Whether a file in a folder without a record is none that a run leaves when it is killed at its very start."""
    return path.name != SOURCES and not (path.name.startswith(".") and path.name.endswith(".partial"))


def newest_step(path: Path) -> int | None:
    """The step of the newest checkpoint in a run folder."""
    steps = [int(p.name.removeprefix("checkpoint-")) for p in path.glob("checkpoint-*") if p.name[11:].isdecimal()]
    return max(steps, default=None)


def refuse_changed(path: Path, recipe: Recipe, found: Any, wanted: Mapping[str, Any]) -> None:
    """Raises: InputError for an interrupted run of another recipe that is neither to go on nor to begin anew."""
    newest = newest_step(path)
    if newest is None or recipe.run.on_change() != "refuse" or (path / MANIFEST).is_file():
        return
    raise InputError(_changed_recipe(path, differences(found, wanted), newest))


def _changed_recipe(path: Path, changes: list[str], newest: int) -> str:
    """Why an interrupted run is not touched, and the ways out."""
    return (
        f"{path}: an interrupted run with a checkpoint of step {newest}, whose recipe was another "
        f"({'; '.join(changes) or 'incomplete record'}). Take the change back to continue it; --resume continues from "
        "the checkpoint with the new recipe; --restart keeps the folder as it is under another name and begins anew; "
        "or choose another folder with --run.dir"
    )


def go_on(path: Path, recipe: Recipe, wanted: Mapping[str, Any], changes: list[str]) -> Callable[[], None] | None:
    """Whether a run goes on with a new recipe: with --resume, where there is a checkpoint.

    Gives a run a new recipe from its checkpoint on; the old one is kept as recipe.until-step-N.yaml. Returns what
    takes that back, for a recipe that is refused later; None when the run does not go on.
    Raises: InputError when the change is one of the model, which has other weights then.
    """
    newest = newest_step(path)
    if newest is None or recipe.run.on_change() != "resume":
        return None
    model = [c for c in changes if c.startswith(("model.", "stage", "inputs.model.", "inputs.run.from"))]
    if model:
        raise InputError(f"{path}: --resume cannot continue another model ({'; '.join(model)}); use --restart")
    if rows := [c for c in changes if c.startswith(ROWS)]:
        raise InputError(
            f"{path}: --resume cannot continue with other rows ({'; '.join(rows)}): some would be read twice and "
            "others never; take the change back, or use --restart"
        )
    kept = f"recipe.until-step-{newest}.yaml"
    before = {name: _content(path / name) for name in (STARTED, MANIFEST, "recipe.yaml", kept)}
    if is_main_process():
        logger.info("%s: goes on from step %d with a changed recipe (%s)", path, newest, "; ".join(changes))
        seconds = read_json(path / STARTED).get("seconds", 0.0) if (path / STARTED).is_file() else 0.0
        if (path / "recipe.yaml").is_file():
            os.replace(path / "recipe.yaml", path / kept)
        write_text(path / "recipe.yaml", dump_yaml(to_tree(recipe)))
        write_json(path / STARTED, {**wanted, "seconds": seconds})
        (path / MANIFEST).unlink(missing_ok=True)
    return partial(_take_back, path, before, newest)


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _take_back(path: Path, before: Mapping[str, str | None], newest: int) -> None:
    """Gives a run its old recipe again, unless it has gone on with the new one already."""
    if not is_main_process() or newest_step(path) != newest:
        return
    for name, text in before.items():
        if text is None:
            (path / name).unlink(missing_ok=True)
        else:
            write_text(path / name, text)


def set_aside(path: Path, changes: list[str]) -> None:
    """Moves a folder that belongs to another recipe out of the way; nothing is deleted."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    shutil.move(path, kept)
    logger.info("%s was made differently (%s); kept as %s", path, "; ".join(changes[:5]) or "incomplete record", kept)
