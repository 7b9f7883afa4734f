"""What the files of a run folder say: which stage, how far, which checkpoints, what was left behind."""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ingot.files import damage, read_json
from ingot.hashing import SOURCES
from ingot.recipe import InputError
from ingot.runs import MANIFEST, STARTED
from ingot.training.checkpoint_folders import RUN_STATE, checkpoints_of, step_of

State = Literal["never started", "foreign", "damaged record", "interrupted", "running", "complete"]
METRICS, LOG, RECIPE = "metrics.jsonl", "log.txt", "recipe.yaml"
RATES = 5  # log events whose median is the speed


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint as it lies there; `problem` is None when every byte is as it was written."""

    path: Path
    step: int
    time: float
    bytes: int
    problem: str | None
    trainer: Mapping[str, Any]  # what trainer_state.json says
    launch: Mapping[str, Any]  # what run_state.json says: rows_per_step, num_processes, strategy

    def as_tree(self) -> dict[str, Any]:
        """For --json."""
        return {
            "path": str(self.path), "step": self.step, "time": self.time, "bytes": self.bytes, "problem": self.problem,
            "run_state": dict(self.launch),
        }  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """All that a run folder tells about itself."""

    folder: Path
    state: State
    record: Mapping[str, Any]  # manifest.json, or started.json
    checkpoints: Sequence[Checkpoint]
    metrics: Sequence[Mapping[str, Any]]
    process: int | None  # who writes its log now

    @property
    def stage(self) -> str | None:
        """Which stage it belongs to."""
        found = self.record.get("stage")
        return found if isinstance(found, str) else None

    @property
    def usable(self) -> Checkpoint | None:
        """The newest whole checkpoint: a rerun continues from it."""
        return next((c for c in reversed(self.checkpoints) if c.problem is None), None)

    @property
    def max_steps(self) -> int | None:
        """The steps of the whole run, when a checkpoint or the recipe says so."""
        trainer = self.checkpoints[-1].trainer if self.checkpoints else {}
        steps = trainer.get("max_steps") or training_of(self.record).get("max_steps") or 0
        return int(steps) if steps > 0 else None

    @property
    def reached(self) -> int:
        """The last step that was logged."""
        return max((int(line["step"]) for line in self.metrics if "step" in line), default=0)


def training_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `training` section of the recipe in a record."""
    recipe = record.get("recipe")
    section = recipe.get("training") if isinstance(recipe, dict) else None
    return section if isinstance(section, dict) else {}


def read_facts(folder: Path) -> Facts:
    """Reads a run folder; nothing in it is changed."""
    state, record = _state(folder)
    process = writer_of(folder / LOG) if state == "interrupted" else None
    checkpoints = [read_checkpoint(path) for path in checkpoints_of(folder)] if folder.is_dir() else []
    return Facts(folder, "running" if process else state, record, checkpoints, read_lines(folder / METRICS), process)


def _state(folder: Path) -> tuple[State, Mapping[str, Any]]:
    if not folder.exists() or folder.is_dir() and {p.name for p in folder.iterdir()} <= {SOURCES}:
        return "never started", {}
    for name, state in ((MANIFEST, "complete"), (STARTED, "interrupted")):
        if (folder / name).is_file():
            try:
                record = read_json(folder / name)
            except InputError:
                return "damaged record", {}
            told = isinstance(record, dict) and isinstance(record.get("stage"), str)
            return (state, record) if told else ("damaged record", {})  # type: ignore[return-value]
    return "foreign", {}


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint; every byte of it is read."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return Checkpoint(
        path, step_of(path), path.stat().st_mtime, sum(p.stat().st_size for p in files),
        damage(path), _tree(path / "trainer_state.json"), _tree(path / RUN_STATE),
    )  # fmt: skip


def _tree(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty when there is none, for what is damaged is told elsewhere."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what is no JSON object is left out, such as a line that a crash cut."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def writer_of(log: Path) -> int | None:
    """The process of this machine that has the log open."""
    if not log.is_file():
        return None
    wanted = str(log.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == wanted and (process := int(link.parts[2])) != os.getpid():
                return process
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
    return None


def best_step(facts: Facts) -> tuple[int, float] | None:
    """The step with the best held-out loss so far, and the loss; from the metrics, which outlive checkpoints."""
    losses = [(float(m["eval_loss"]), int(m["step"])) for m in facts.metrics if _finite(m.get("eval_loss"))]
    return None if not losses else (min(losses)[1], min(losses)[0])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def non_finite_steps(facts: Facts) -> list[int]:
    """The steps whose loss or gradient norm was NaN or infinite."""
    keys = ("loss", "grad_norm", "eval_loss")
    return [int(m.get("step", -1)) for m in facts.metrics if any(k in m and not _finite(m[k]) for k in keys)]


def tokens_per_step(facts: Facts) -> float | None:
    """Tokens in a step: counted by TRL in the metrics, else what the recipe says."""
    counted = [(0, 0.0), *((int(m["step"]), float(m["num_tokens"])) for m in facts.metrics if "num_tokens" in m)]
    counted = counted[-2:]  # a continued run counts anew
    if counted[-1][0] > counted[0][0] and counted[-1][1] > counted[0][1]:
        return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
    recipe, training = facts.record.get("recipe") or {}, training_of(facts.record)
    length = (recipe.get("data") or {}).get("seq_length")
    rows = (facts.usable.launch.get("rows_per_step") if facts.usable else None) or (recipe.get("run") or {}).get(
        "global_batch_size"
    )
    if rows is None and "per_device_train_batch_size" in training:
        rows = training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)
    return float(length * rows) if length and rows else None


def seconds_left(facts: Facts, steps: int) -> float | None:
    """How long so many steps take at the speed of the last log events."""
    rates = [m["tokens_per_second"] for m in facts.metrics if _finite(m.get("tokens_per_second"))][-RATES:]
    tokens = tokens_per_step(facts)
    return steps * tokens / median(rates) if rates and tokens else None


def continue_command(facts: Facts) -> str:
    """What to type to go on, from the folder that the recipe's paths are relative to."""
    recipe = shlex.quote(str(facts.folder / RECIPE))
    launch = facts.usable.launch if facts.usable else {}
    processes, strategy = launch.get("num_processes") or 1, launch.get("strategy") or "ddp"
    words = f"--config {recipe}" + _moved(facts)
    if processes == 1:
        return f"ingot {facts.stage} {words}"
    config = f"accelerate_configs/{'cpu_ddp' if strategy == 'ddp' and _on_cpu() else strategy}.yaml"
    return f"accelerate launch --config_file {config} --num_processes {processes} scripts/{facts.stage}.py {words}"


def _on_cpu() -> bool:
    return not list(Path("/dev").glob("nvidia[0-9]*"))


def _moved(facts: Facts) -> str:
    """The override that a folder needs whose recipe names another one."""
    from ingot.recipe_yaml import read_yaml

    try:
        said = (read_yaml(facts.folder / RECIPE).get("run") or {}).get("dir")
    except InputError:
        return ""
    same = said is not None and Path(str(said)).resolve() == facts.folder.resolve()
    return "" if same else f" --run.dir {shlex.quote(str(facts.folder))}"


def runs_below(folder: Path, depth: int = 3) -> Iterator[Path]:
    """The run folders under a folder, in order of their names."""
    if any((folder / name).is_file() for name in (MANIFEST, STARTED)):
        yield folder
    elif depth and folder.is_dir():
        for child in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from runs_below(child, depth - 1)
