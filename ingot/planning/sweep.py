"""The runs that a scaling law is fitted to: several sizes of model at each of several budgets.

A template recipe gives the proportions. Width and depth change, and with them heads and feed-forward; the number of
steps makes 6 N D the budget; everything else stays. Each run is an ordinary recipe in OUT/recipes and an ordinary
`ingot pretrain` in a process of its own, so a sweep that was interrupted continues where it was.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ingot.planning.architecture import architecture_of_config
from ingot.planning.scaling import DEFAULT_LAW, FLOPS_PER_PARAMETER, Law, find_law
from ingot.recipe import InputError, Recipe, to_tree
from ingot.recipe_yaml import dump_yaml, read_yaml
from ingot.runs import get_logger, is_complete, write_text

logger = get_logger(__name__)

Loader = Callable[[Path, Sequence[str]], Recipe]  # (path, overrides) -> checked recipe

SHALLOWEST, DEEPEST = 0.6, 1.6  # layers, compared with those of the template's proportions
WIDEST = 64  # heads of the largest model that is considered, in units of the template's key/value groups
FEWEST_STEPS = 10
SHORT = 50  # steps below which a schedule is hardly one
STEPS_OF_SCHEDULE = ("num_decay_steps", "num_stable_steps")  # of warmup_stable_decay
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not end with the run


@dataclass(frozen=True)
class Shape:
    """A model of the template's proportions; the names are IngotConfig's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    parameters: int

    @property
    def keys(self) -> dict[str, int]:
        """What a recipe's model section says of it."""
        return {key: value for key, value in asdict(self).items() if key != "parameters"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    shape: Shape
    budget: float  # FLOP that were asked for
    steps: int
    tokens: int
    learning_rate: float
    recipe: Path
    folder: Path

    @property
    def flops(self) -> float:
        """6 N D of this run."""
        return FLOPS_PER_PARAMETER * self.shape.parameters * self.tokens

    def results(self, state: str) -> dict[str, Any]:
        """The run as plain values."""
        return {
            "name": self.name, "state": state, "budget": self.budget, "flops": self.flops, **asdict(self.shape),
            "tokens": self.tokens, "tokens_per_parameter": self.tokens / self.shape.parameters, "steps": self.steps,
            "learning_rate": self.learning_rate, "recipe": str(self.recipe), "run": str(self.folder),
        }  # fmt: skip


def sweep_command(
    config: Path,
    flops: Sequence[float],
    models: int,
    out: Path,
    load: Loader,
    *,
    dry_run: bool = False,
    law: str = DEFAULT_LAW,
    tokens_per_parameter: float | None = None,
    spacing: float = 2.0,
    rate_power: float = 0.0,
    start: Callable[[PlannedRun], int] | None = None,
) -> tuple[dict[str, Any], str]:
    """Plans the runs, writes their recipes, and runs those that are not finished; returns them as values and a page.

    Sizes lie around the optimum of `law` (or of D = tokens_per_parameter * N), each `spacing` times the last.
    The learning rate is the template's times (its width / width) ** rate_power. `load` reads a recipe; `start` runs
    one and returns its exit code. Raises: InputError for a template or numbers that give no such runs; SystemExit when
    a run failed.
    """
    check_numbers(flops, models, spacing, tokens_per_parameter)
    center = _center(find_law(law), tokens_per_parameter)
    template = read_template(config, load)
    planned = [
        run
        for budget in sorted(set(flops))
        for run in plan_budget(template, budget, center(budget), models, spacing, rate_power, out)
    ]
    for run in planned:
        write_recipe(template, run, config)
    page = f"{table(planned)}\n{explanation(template, config)}"
    states = {run.name: "planned" for run in planned}
    if not dry_run:
        logger.info("%s", page)
        states |= run_all(planned, load, start or start_process)
        done = list(states.values())
        page = f"{done.count('done')} runs done, {done.count('skipped')} were finished before"
        page += f"\nnext: ingot plan fit {out}/* --out {out}/law"
    total = sum(run.flops for run in planned)
    results = {"law": law, "total_flops": total, "runs": [run.results(states[run.name]) for run in planned]}
    return results, page


def read_template(config: Path, load: Loader) -> dict[str, Any]:
    """The template's sections as its file has them, found fit for a law.

    Raises: InputError that names the key.
    """
    recipe = load(config, [])
    if recipe.stage != "pretrain":
        raise InputError(f"{config}: a recipe of {recipe.stage}; a sweep starts from one of pretrain")
    resolved = to_tree(recipe)
    model, training = resolved["model"], resolved["training"]
    if model.get("num_experts"):
        raise InputError(f"{config}: model.num_experts: a law of N and D is for dense models; sweep a dense template")
    if (training.get("max_steps") or 0) <= 0:
        raise InputError(f"{config}: training.max_steps: missing; a sweep sets it, and no number of epochs beside it")
    if training.get("lr_scheduler_type", "linear") in ENDLESS:
        kind = training["lr_scheduler_type"]
        raise InputError(
            f"{config}: training.lr_scheduler_type: {kind} does not end with the run; take linear or cosine"
        )
    if (training.get("warmup_steps") or 0) >= 1:
        raise InputError(f"{config}: training.warmup_steps: write a share such as 0.05; the runs differ in length")
    return read_yaml(config)


def check_numbers(flops: Sequence[float], models: int, spacing: float, ratio: float | None) -> None:
    """Raises: InputError that names the number which makes no sense."""
    if not flops:
        raise InputError("--flops: give one budget or more, such as --flops 3e12 1e13 3e13")
    for value in flops:
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"--flops: expected numbers above 0, got {value!r}")
    if models < 1:
        raise InputError(f"--models: expected a whole number above 0, got {models!r}")
    if not (math.isfinite(spacing) and spacing > 1):
        raise InputError(f"--spacing: expected a factor above 1, got {spacing!r}")
    if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"--tokens-per-parameter: expected a number above 0, got {ratio!r}")


def _center(law: Law, tokens_per_parameter: float | None) -> Callable[[float], float]:
    """The size in the middle of a budget's models."""
    if tokens_per_parameter is not None:
        return lambda flops: math.sqrt(flops / FLOPS_PER_PARAMETER / tokens_per_parameter)
    if law.counts != "all":
        raise InputError(f"--law: {law.name} counts no embeddings and these models are counted whole; take another")
    return lambda flops: law.optimum(flops).parameters


def shapes(model: Mapping[str, Any]) -> list[Shape]:
    """Models of the template's proportions by size: whole heads, layers as its width per layer asks."""
    heads = model["num_attention_heads"]
    group = heads // (model.get("num_key_value_heads") or heads)  # query heads that share keys and values
    head_dim = model.get("head_dim") or model["hidden_size"] // heads
    per_head = model["hidden_size"] / heads
    found = {}
    for units in range(1, WIDEST + 1):
        num_heads = units * group
        width = round(per_head * num_heads)
        wanted = model["num_hidden_layers"] * width / model["hidden_size"]
        for layers in _depths(wanted):
            sizes = (width, _inside(model, width), layers, num_heads, units)
            shape = Shape(*sizes, parameters=count_parameters(model, sizes, head_dim))
            found[shape.parameters] = shape
    return [found[key] for key in sorted(found)]


def _depths(wanted: float) -> Iterator[int]:
    """Whole numbers of layers near the wanted one."""
    nearest = max(1, round(wanted))
    yield from (n for n in (nearest - 1, nearest, nearest + 1) if n == nearest or _fits(n, wanted))


def _fits(layers: int, wanted: float) -> bool:
    return layers >= 1 and SHALLOWEST <= layers / wanted <= DEEPEST


def _inside(model: Mapping[str, Any], width: int) -> int:
    """The feed-forward's width in proportion, rounded to the power of two that divides the template's (up to 128)."""
    size = model["intermediate_size"]
    multiple = math.gcd(size, 128)
    return max(multiple, round(width * size / model["hidden_size"] / multiple) * multiple)


def count_parameters(model: Mapping[str, Any], sizes: tuple[int, int, int, int, int], head_dim: int) -> int:
    """All parameters of the template with other sizes."""
    from modeling import IngotConfig

    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    values = {**model, **dict(zip(keys, sizes, strict=True)), "head_dim": head_dim}
    return architecture_of_config(IngotConfig(**{k: v for k, v in values.items() if k != "tokenizer"})).total


def plan_budget(
    template: Mapping[str, Any],
    budget: float,
    center: float,
    models: int,
    spacing: float,
    rate_power: float,
    out: Path,
) -> list[PlannedRun]:
    """The runs of one budget, smallest model first.

    Raises: InputError when the budget is too small for steps or the proportions give too few sizes.
    """
    free = shapes(template["model"])
    if len(free) < models:
        raise InputError(f"--models: the template's proportions give {len(free)} sizes, not {models}")
    targets = [center * spacing ** (i - (models - 1) / 2) for i in range(models)]
    chosen = []
    for target in targets:
        chosen.append(min(free, key=lambda shape: abs(math.log(shape.parameters / target))))
        free.remove(chosen[-1])
    ordered = sorted(chosen, key=lambda shape: shape.parameters)
    return [_planned(template, budget, shape, rate_power, out) for shape in ordered]


def _planned(template: Mapping[str, Any], budget: float, shape: Shape, rate_power: float, out: Path) -> PlannedRun:
    per_step = tokens_per_step(template)
    steps = round(budget / (FLOPS_PER_PARAMETER * shape.parameters * per_step))
    if steps < FEWEST_STEPS:
        raise InputError(
            f"--flops: {budget:g} is {steps} steps of {per_step:,} tokens for {shape.parameters:,} parameters; "
            "give more compute, or a template with a smaller batch"
        )
    rate = template["training"]["learning_rate"] * (template["model"]["hidden_size"] / shape.hidden_size) ** rate_power
    name = f"c{budget:.4g}".replace("e+", "e") + f"-n{shape.parameters}"
    return PlannedRun(
        name, shape, budget, steps, steps * per_step, float(f"{rate:.3g}"),
        recipe=out / "recipes" / f"pretrain_{name}.yaml", folder=out / name,
    )  # fmt: skip


def tokens_per_step(template: Mapping[str, Any]) -> int:
    """Tokens in one optimizer step of the template, on one process."""
    training, blocks = template["training"], template["run"].get("global_batch_size")
    if blocks is None:
        blocks = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return int(blocks * template["data"]["seq_length"])


def write_recipe(template: Mapping[str, Any], run: PlannedRun, config: Path) -> None:
    """Writes the run's recipe: the template with the run's sizes, steps, rate and folder."""
    changed: dict[str, dict[str, Any]] = {
        "model": run.shape.keys,
        "training": {"max_steps": run.steps, "learning_rate": run.learning_rate} | _schedule(template, run.steps),
        "run": {"dir": str(run.folder)},
    }
    tree = {name: dict(section) | changed.get(name, {}) for name, section in template.items()}
    run.recipe.parent.mkdir(parents=True, exist_ok=True)
    title = f"# {run.shape.parameters:,} parameters, {run.tokens:,} tokens, {run.flops:.3g} FLOP; from {config}\n"
    write_text(run.recipe, title + dump_yaml(tree))


def _schedule(template: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The template's steps of its schedule, in proportion: runs that decay for unlike shares do not compare."""
    training = template["training"]
    given = training.get("lr_scheduler_kwargs") or {}
    scaled = {k: max(1, round(v / training["max_steps"] * steps)) for k, v in given.items() if k in STEPS_OF_SCHEDULE}
    return {"lr_scheduler_kwargs": {**given, **scaled}} if scaled else {}


def table(planned: Sequence[PlannedRun]) -> str:
    """The runs, a line each, with what they cost."""
    lines = [
        f"{'budget':>8} {'width':>6} {'layers':>6} {'heads':>5} {'ffn':>6} {'parameters':>13} {'tokens':>15} "
        f"{'tokens/param':>12} {'steps':>8} {'rate':>9} {'FLOP':>9}"
    ]
    for run in planned:
        shape = run.shape
        lines.append(
            f"{run.budget:>8.2g} {shape.hidden_size:>6} {shape.num_hidden_layers:>6} {shape.num_attention_heads:>5} "
            f"{shape.intermediate_size:>6} {shape.parameters:>13,} {run.tokens:>15,} "
            f"{run.tokens / shape.parameters:>12.1f} {run.steps:>8,} {run.learning_rate:>9.2e} {run.flops:>9.3g}"
            + ("  few steps" if run.steps < SHORT else "")
        )
    lines.append(f"{len(planned)} runs, {sum(run.flops for run in planned):.3g} FLOP in all (6 N D)")
    return "\n".join(lines)


def explanation(template: Mapping[str, Any], config: Path) -> str:
    """What is kept from the template, in two lines."""
    model = template["model"]
    width, layers = model["hidden_size"], model["num_hidden_layers"]
    return (
        f"Shapes keep the proportions of {config}: about {width / layers:.0f} of width for a layer, feed-forward "
        f"{model['intermediate_size'] / width:.2f} times the width, whole heads.\n"
        f"Every run keeps its {tokens_per_step(template):,} tokens a step and its schedule, which ends with the run."
    )


def run_all(planned: Sequence[PlannedRun], load: Loader, start: Callable[[PlannedRun], int]) -> dict[str, str]:
    """Runs one after the other, with the time that is left; skips finished ones. Returns what became of each.

    Raises: SystemExit with the exit code of a run that failed.
    """
    states = {run.name: "skipped" for run in planned if is_complete(load(run.recipe, []))}
    missing = [run for run in planned if run.name not in states]
    seconds, done = 0.0, 0.0
    for i, run in enumerate(missing):
        left = sum(r.flops for r in missing[i:])
        eta = f", about {_duration(left * seconds / done)} left" if done else ""
        logger.info("\n== %s, %d of %d%s", run.name, len(states) + 1, len(planned), eta)
        began = time.monotonic()
        code = start(run)
        if code:
            logger.info("%s ended with exit code %d; run the same command again to continue from here", run.name, code)
            raise SystemExit(code)
        states[run.name] = "done"
        seconds, done = seconds + time.monotonic() - began, done + run.flops
    return states


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def start_process(run: PlannedRun) -> int:
    """`ingot pretrain` in a process of its own; returns its exit code."""
    words = [sys.executable, "-m", "ingot.cli", "pretrain", "--config", str(run.recipe)]
    child = subprocess.Popen(words, stdout=sys.stderr)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the run got the signal as well, and saves
            logger.info("interrupted; waiting for %s to end", run.name)
