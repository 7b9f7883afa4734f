"""The state of a run folder in words: what it is, what a rerun would do, and what stands in the way."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ingot.cli import STAGES, load_stage, recipe_class
from ingot.doctor.findings import Finding, fail, fails, gigabytes, ok, warn
from ingot.doctor.run_facts import LOG, RECIPE, Facts, continue_command
from ingot.doctor.run_progress import duration, metrics_findings, progress_findings
from ingot.hashing import changed_file, set_aside
from ingot.recipe import InputError, Recipe, load_recipe, stage_inputs
from ingot.records import is_of
from ingot.runs import MANIFEST, STARTED, check_inputs, differences, fingerprint_folder, identity, versions
from ingot.training.checkpoint_folders import REMOVED, STAGING

TAIL = 4  # lines of the log


def run_findings(facts: Facts, config: Path | None = None, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Everything that there is to say; `config` is a recipe that the user would run here."""
    yield state_finding(facts)
    if facts.stage is None:
        return
    origin = list(origin_findings(facts))
    yield from origin
    if config is not None:
        yield other_recipe_finding(facts, config, overrides)
    if facts.state == "complete":
        yield result_finding(facts)
    else:
        yield from progress_findings(facts, blocked=fails(origin))
    yield from metrics_findings(facts)
    yield from leftover_findings(facts.folder)
    yield from log_findings(facts)


def origin_findings(facts: Facts) -> Iterator[Finding]:
    """Whether the recipe and the inputs that it was made from are still the same; a rerun continues only then."""
    try:
        recipe = recipe_of(facts)
    except InputError as error:
        yield fail("recipe", " ".join(str(error).split()), f"take the recipe that made it: ingot {facts.stage} --help")
        return
    yield from recipe_findings(facts, recipe)
    yield from input_findings(facts, recipe)


def state_finding(facts: Facts) -> Finding:
    """In which of the states a folder can be it is."""
    folder, stage = facts.folder, facts.stage
    if facts.state == "never started":
        what = "is empty" if folder.exists() else "there is no such folder"
        return warn(
            "state", f"never started: {what}", "start a stage into it: ingot STAGE --config RECIPE --run.dir DIR"
        )
    if facts.state == "foreign":
        if any((folder.parent / name).is_file() for name in (MANIFEST, STARTED)):
            run = folder.resolve().parent
            return warn("state", f"foreign: a part of the run {run}, and no run of its own", f"ingot doctor {run}")
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
    text = f"{stage}, interrupted{steps} after {duration(seconds or seconds_seen(folder))}"
    return warn("state", f"{text}; it is not running on this machine", continue_command(facts))


def seconds_seen(folder: Path) -> float:
    """From the start to the last line of the log: a killed run could not write down its time."""
    if not (folder / LOG).is_file():
        return 0.0
    return max(0.0, (folder / LOG).stat().st_mtime - (folder / STARTED).stat().st_mtime)


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
    here = versions()
    other = [f"{k} {v} -> {here[k]}" for k, v in made.items() if k in here and here[k] != v]
    if other:
        yield ok("versions", f"made with others: {', '.join(other)}")


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
