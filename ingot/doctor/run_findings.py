"""The state of a run folder in words: what it is, what a rerun would do, and what stands in the way."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingot.cli import STAGES, load_stage, recipe_class
from ingot.doctor.findings import Finding, fail, gigabytes, ok, warn
from ingot.doctor.run_facts import (
    LOG,
    METRICS,
    RECIPE,
    Facts,
    best_step,
    continue_command,
    non_finite_steps,
    seconds_left,
    training_of,
)
from ingot.files import read_json
from ingot.hashing import changed_file, set_aside
from ingot.recipe import InputError, Recipe, load_recipe, stage_inputs
from ingot.records import is_of
from ingot.runs import MANIFEST, check_inputs, differences, fingerprint_folder, identity
from ingot.training.checkpoint_folders import REMOVED, STAGING, newest_checkpoint
from ingot.training.continuing import rewinds_of

TAIL = 4  # lines of the log
SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second")


def run_findings(facts: Facts, config: Path | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Everything that there is to say; `config` is a recipe that the user would run here."""
    yield state_finding(facts)
    if facts.stage is None:
        return
    recipe: Recipe | None = None
    try:
        recipe = recipe_of(facts)
        yield from recipe_findings(facts, recipe)
    except InputError as error:
        yield fail("recipe", " ".join(str(error).split()), f"take the recipe that made it: ingot {facts.stage} --help")
    if config is not None:
        yield other_recipe_finding(facts, config, overrides)
    if recipe is not None:
        yield from input_findings(facts, recipe)
    if facts.state == "complete":
        yield result_finding(facts)
    else:
        yield from progress_findings(facts)
    yield from metrics_findings(facts)
    yield from leftover_findings(facts.folder)
    yield from log_findings(facts)


def state_finding(facts: Facts) -> Finding:
    """In which of the states a folder can be it is."""
    folder, stage = facts.folder, facts.stage
    if facts.state == "never started":
        what = "is empty" if folder.exists() else "there is no such folder"
        return warn(
            "state", f"never started: {what}", "start a stage into it: ingot STAGE --config RECIPE --run.dir DIR"
        )
    if facts.state == "foreign":
        what = "is a file" if folder.is_file() else "holds files that no stage of Ingot wrote"
        return fail("state", f"foreign: {what}; stages refuse it as run.dir", "choose another folder")
    if facts.state == "damaged record":
        return fail(
            "state", f"its {MANIFEST} or started.json is not as Ingot writes it", f"mv {folder} {folder}.broken"
        )
    seconds = float(facts.record.get("seconds") or 0.0)
    if facts.state == "complete":
        return ok("state", f"{stage}, complete, made in {duration(seconds)}")
    if facts.state == "running":
        return ok("state", f"{stage}, running now in process {facts.process}, step {facts.reached} or later")
    steps = f" at step {facts.reached} of {facts.max_steps or 'an unknown number'}" if facts.metrics else ""
    text = f"{stage}, interrupted{steps} after {duration(seconds)}"
    return warn("state", f"{text}; it is not running on this machine", continue_command(facts))


def recipe_of(facts: Facts) -> Recipe:
    """The recipe that the folder keeps.

    Raises: InputError when it is no recipe of the stage.
    """
    assert facts.stage is not None
    if facts.stage not in STAGES:
        raise InputError(f"{facts.folder}: {facts.stage} is no stage of this version of Ingot")
    recipe = load_recipe(recipe_class(facts.stage), facts.folder / RECIPE)
    recipe.run.dir = facts.folder
    return recipe


def recipe_findings(facts: Facts, recipe: Recipe) -> Iterator[Finding]:
    """Whether recipe.yaml is still the one that the record was made from."""
    try:
        check_inputs(recipe)
    except InputError:
        yield ok("recipe", f"{facts.folder / RECIPE} (not compared: inputs are missing)")
        return
    changes = changed_keys(facts, recipe)
    own = [line for line in changes if not line.startswith(("inputs.", "sources"))]
    if own:
        way = f"put the keys back, or give it a folder of its own: --run.dir {facts.folder}-2"
        yield fail("recipe", f"{facts.folder / RECIPE} is not what was run: {'; '.join(own[:5])}", way)
    else:
        yield ok("recipe", f"{facts.folder / RECIPE} is what was run")
    if "sources changed" in changes:
        way = "put the old files back, or run it into another folder: --run.dir DIR"
        yield fail("sources", "files that it reads have changed since: a rerun does not continue", way)
    made = facts.record.get("versions") or {}
    here = _versions()
    other = [f"{k} {v} -> {here[k]}" for k, v in made.items() if k in here and here[k] != v]
    if other:
        yield ok("versions", f"made with others: {', '.join(other)}")


def _versions() -> dict[str, str]:
    from ingot.runs import versions

    return versions()


def changed_keys(facts: Facts, recipe: Recipe) -> list[str]:
    """What differs between the record and what a rerun of the recipe would write."""
    wanted = identity(recipe)
    return [] if is_of(facts.record, recipe, wanted) else differences(facts.record, wanted)


def other_recipe_finding(facts: Facts, config: Path, overrides: Sequence[str]) -> Finding:
    """What would happen to the folder if this recipe were run into it.

    Raises: InputError for a wrong recipe.
    """
    recipe = load_stage(config, overrides)
    recipe.run.dir = facts.folder
    if recipe.stage != facts.stage:
        text = f"the folder is a run of {facts.stage}, {config} a recipe of {recipe.stage}"
        return fail("would run", text, "choose another folder with --run.dir")
    check_inputs(recipe)
    changes = changed_keys(facts, recipe)
    if not changes:
        return ok("would run", f"{config} is the recipe of this folder")
    text = f"the folder belongs to another recipe than {config}: {'; '.join(changes[:8])}"
    if facts.state == "complete" or not facts.checkpoints:
        return warn("would run", text, "running it keeps the folder as DIR.old-N and begins anew")
    way = {
        "refuse": "it is refused; --resume goes on with the new recipe, --restart keeps the folder as DIR.old-N",
        "resume": "it goes on from the checkpoint with the new recipe",
        "restart": "it keeps the folder as DIR.old-N and begins anew",
    }[recipe.run.on_change()]
    return (fail if recipe.run.on_change() == "refuse" else warn)("would run", text, way)


def input_findings(facts: Facts, recipe: Recipe) -> Iterator[Finding]:
    """Whether what it was made from is still there and the same."""
    try:
        check_inputs(recipe)
    except InputError as error:
        for line in str(error).split("\n"):
            way = "paths are relative to the folder that the stage was started in; put the input back"
            yield (warn if facts.state == "complete" else fail)("input", line, way)
        return
    recorded = facts.record.get("inputs") or {}
    for key, path, _ in stage_inputs(recipe):
        if key in recorded and fingerprint_folder(path) != recorded[key]:
            text = f"{key}: {path} has been made anew since"
            if facts.state == "complete":
                yield warn("input", text, "a rerun keeps this result as DIR.old-N and begins anew")
            else:
                yield fail("input", text, f"put the old one back ({path}.old-N), or add --resume or --restart")
        else:
            yield ok("input", f"{key}: {path} is there and unchanged")


def result_finding(facts: Facts) -> Finding:
    """Whether every file of the result is as it was written."""
    files = facts.record.get("files") or {}
    changed = changed_file(facts.folder, files)
    if changed is not None:
        way = f"{continue_command(facts)}  makes it again; or restore the file"
        return fail("result", changed, way)
    size = sum(int(entry["bytes"]) for entry in files.values())
    return ok("result", f"{len(files)} files, {gigabytes(size)}, as they were written: a rerun does nothing")


def progress_findings(facts: Facts) -> Iterator[Finding]:
    """Checkpoints, where a rerun begins, how long it takes and whether the disk holds it."""
    for checkpoint in facts.checkpoints:
        what = f"checkpoint {checkpoint.step}"
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(checkpoint.time))}, {gigabytes(checkpoint.bytes)}"
        if checkpoint.problem is None:
            yield ok(what, f"{text}, whole{_launched(checkpoint.launch)}")
        else:
            yield warn(what, f"{text}, damaged: {checkpoint.problem}", "it is passed over; an older one is used")
    yield from _best(facts)
    if facts.metrics or facts.checkpoints or training_of(facts.record):
        yield continuation_finding(facts)
        yield from disk_findings(facts)
    else:
        again = (
            "repeats no part that is finished" if facts.stage == "prepare_data" else "does the stage from its start"
        )
        yield ok("a rerun", again)


def _launched(launch: Any) -> str:
    number = launch.get("num_processes")
    if number is None:
        return ""
    how, rows = launch.get("strategy"), launch.get("rows_per_step")
    return f", {number} process{'es' * (number > 1)} ({how}), {rows} rows a step"


def _best(facts: Facts) -> Iterator[Finding]:
    best = best_step(facts)
    if best is None:
        return
    step, loss = best
    kept = any(c.step == step and c.problem is None for c in facts.checkpoints)
    where = f"checkpoint-{step} is kept" if kept else "no checkpoint of that step is kept"
    yield ok("best", f"held-out loss {loss:.4f} at step {step}; {where}")


def continuation_finding(facts: Facts) -> Finding:
    """From where a rerun goes on, what it repeats and how long it takes."""
    usable, total = facts.usable, facts.max_steps
    begin = 0 if usable is None else usable.step
    repeated = max(0, facts.reached - begin)
    left = (
        f"{total - begin} of {total} steps are left" if total else "the number of steps is not known before it starts"
    )
    if repeated:
        left += f", {repeated} of them a second time"
    seconds = seconds_left(facts, total - begin) if total else None
    if seconds is not None:
        left += f": about {duration(seconds)} at the speed of before"
    if usable is not None:
        try:
            newest_checkpoint(facts.folder)
        except InputError as error:  # whole, and still not to be used
            return fail("a rerun", f"is refused: {error}", f"move {usable.path} away: an older one is used then")
        return ok("a rerun", f"continues from {usable.path}: {left}")
    if facts.checkpoints:
        way = "look for a copy of one; the disk that lost bytes of all of them is not to be trusted"
        return fail("a rerun", f"begins from step 0, for every checkpoint is damaged: {left}", way)
    return ok("a rerun", f"begins from step 0, for nothing was saved: {left}")


def disk_findings(facts: Facts) -> Iterator[Finding]:
    """Whether the next checkpoints have room."""
    usable, free = facts.usable, shutil.disk_usage(facts.folder).free
    if usable is None:
        yield ok("disk", f"{gigabytes(free)} free; the start says what checkpoints will need")
        return
    number = more_checkpoints(facts, usable.step)
    needed = usable.bytes * number
    text = (
        f"{number} more checkpoint{'s' * (number > 1)} of {gigabytes(usable.bytes)}: {gigabytes(needed)} needed, "
        f"{gigabytes(free)} free"
    )
    if needed > free:
        way = "free some space, lower training.save_total_limit, or copy the run to a larger disk and add --run.dir"
        yield fail("disk", text, way)
    else:
        yield ok("disk", text)


def more_checkpoints(facts: Facts, begin: int) -> int:
    """How many checkpoints there will be beside those that are there, as the start of a run counts them.

    The limit counts neither the best one nor the next one, which is written before the oldest goes.
    """
    training, total = training_of(facts.record), facts.max_steps
    every = training.get("save_steps") or 500
    every = max(1, round(every * (total or 1)) if every < 1 else int(every))
    saves = -(-((total or begin + every) - begin) // every)
    limit = training.get("save_total_limit")
    if not limit:
        return max(1, saves)
    return max(1, min(saves, int(limit) + 2 - len(facts.checkpoints)))


def metrics_findings(facts: Facts) -> Iterator[Finding]:
    """The last numbers of the log, and whether one of all is none."""
    last = next((m for m in reversed(facts.metrics) if "loss" in m), None)
    if last is not None:
        numbers = [f"{key} {last[key]:.4g}" for key in SHOWN if isinstance(last.get(key), int | float)]
        yield ok("metrics", f"step {last.get('step')}: {', '.join(numbers)}")
    yield from trouble_findings(facts)


def trouble_findings(facts: Facts) -> Iterator[Finding]:
    """Numbers that were not finite, and spikes from which the run went back."""
    broken = non_finite_steps(facts)
    records = [_named(path) for path in sorted(facts.folder.glob("nonfinite-step-*.json"))]
    if broken or records:
        steps = "; ".join([*records, *(f"step {step} in {METRICS}" for step in broken[:5])])
        way = "lower training.learning_rate, raise training.warmup_steps, or see NaN in docs/troubleshooting.md"
        yield warn("not finite", steps, way)
    for entry in rewinds_of(facts.folder):
        yield ok(
            "went back", "from step {to_step} to {from_step}: loss {loss:.4f}, usual {usual_loss:.4f}".format(**entry)
        )


def _named(path: Path) -> str:
    record = read_json(path)
    return f"step {record['step']} {record['what']} (loss {record['loss']}, grad norm {record['grad_norm']}): {path}"


def leftover_findings(folder: Path) -> Iterator[Finding]:
    """What a crash left behind, and folders of earlier recipes."""
    if not folder.is_dir():
        return
    hidden = [p for p in folder.rglob(".*") if p.name.startswith((STAGING, REMOVED)) or p.name.endswith(".partial")]
    for path in sorted(p for p in hidden if not any(q in p.parents for q in hidden)):
        size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
        what = "a checkpoint that was being written or deleted" if path.is_dir() else "a file that was being written"
        yield ok("leftover", f"{path}: {gigabytes(size)} of {what}; never read, a rerun clears it away")
    if earlier := set_aside(folder):
        names = ", ".join(p.name for p in earlier[:5])
        yield ok("set aside", f"results of earlier recipes: {names}; delete them when you do not need them")


def log_findings(facts: Facts) -> Iterator[Finding]:
    """The end of the log."""
    path = facts.folder / LOG
    if facts.state == "complete" or not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in [text for text in lines if text.strip()][-TAIL:]:
        yield ok("log", line.strip()[:240])


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"
