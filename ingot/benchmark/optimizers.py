"""Optimizers on one recipe, each at several learning rates: held-out loss at equal tokens and in equal time.

Runs of the sweep may share a GPU, for only their losses count; tokens per second come from a short run of each
optimizer alone. "In equal time": the best learning rate again, with as many steps (and a schedule as long) as fit in
the time of the fastest optimizer. The learning rate warms up over the first tenth of the steps; evaluation is not
counted as time.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from ingot.benchmark.curve_plots import plot_optimizers
from ingot.benchmark.training_runs import (
    Row,
    Run,
    Study,
    earlier_rows,
    new_results,
    open_study,
    study_parser,
    take_overrides,
    train_all,
)
from ingot.planning.arguments import count
from ingot.recipe import InputError
from ingot.runs import write_json

PROG = "ingot benchmark optimizers"
RATES = "3e-4,6e-4,1.2e-3,2.4e-3,4.8e-3"
OF_RUN = ("muon", "lion")  # keys of run.optimizer; other names are training.optim's

Sweep = dict[str, list[float]]  # learning rates by optimizer


def optimizers_command(argv: Sequence[str]) -> None:
    """`ingot benchmark optimizers --config RECIPE --out FOLDER`: optimizers.json, optimizers.png and a table.

    Raises: InputError for words or recipes that are wrong.
    """
    words, rest = _parser().parse_known_args(list(argv))
    sweep = _sweep(words.sweep or [f"adamw={RATES}", f"muon={RATES}"])
    overrides = take_overrides(rest, PROG)
    with open_study(words, overrides) as study:
        results = _measure(study, sweep, words)
    print(json.dumps(results, indent=1) if words.json else table(results))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(PROG, __doc__, "optimizers", steps=500, evaluations=8)
    parser.add_argument(
        "--sweep", action="append", metavar="NAME=LR,LR,...",
        help="an optimizer (muon, lion, adamw or a value of training.optim) and its learning rates, repeatable; "
        f"default: adamw and muon, each at {RATES}",
    )  # fmt: skip
    parser.add_argument("--timing-steps", type=count, default=60, help="of the runs alone; default %(default)s")
    return parser


def _sweep(texts: Sequence[str]) -> Sweep:
    found: Sweep = {}
    for text in texts:
        name, _, rates = text.partition("=")
        try:
            found.setdefault(name, []).extend(float(rate) for rate in rates.split(","))
        except ValueError:
            raise InputError(f"--sweep: '{text}': write an optimizer and its rates: muon=6e-4,1.2e-3") from None
    return {name: sorted(set(rates)) for name, rates in found.items()}


def keys_of(optimizer: str) -> tuple[str, ...]:
    """The overrides that choose an optimizer."""
    if optimizer in OF_RUN:
        return (f"--run.optimizer={optimizer}",)
    name = "adamw_torch_fused" if optimizer == "adamw" else optimizer
    return ("--run.optimizer=null", f"--training.optim={name}")


def _run(kind: str, optimizer: str, rate: float, steps: int | None = None) -> Run:
    name = f"{optimizer} {rate:g}" + {"sweep": "", "timing": " alone"}.get(kind, f" {kind}")
    keys = (*keys_of(optimizer), f"--training.learning_rate={rate:g}")
    keys += ("--training.eval_strategy=no",) if kind == "timing" else ()
    return Run(name, keys, steps, about={"optimizer": optimizer, "learning_rate": rate, "kind": kind})


def _measure(study: Study, sweep: Sweep, words: argparse.Namespace) -> dict[str, Any]:
    """The timing, the sweep, then equal time; the results are written anew after every run."""
    rows = earlier_rows(words)
    results = new_results(study, rows)

    def keep(row: Row) -> None:
        rows.append(row)
        results["optimizers"] = summary(rows)
        write_json(words.out / "optimizers.json", results)

    timed = {row["optimizer"] for row in rows if row["kind"] == "timing"}  # two GPUs would not compare
    alone = [_run("timing", name, rates[0], words.timing_steps) for name, rates in sweep.items() if name not in timed]
    train_all(study, alone, 1, keep)
    train_all(study, [_run("sweep", n, rate) for n, rates in sweep.items() for rate in rates], words.jobs, keep)
    fewer = equal_time_steps(summary(rows), study.steps)
    equal = [_run("in equal time", name, rate, steps) for name, (rate, steps) in fewer.items()]
    train_all(study, equal, words.jobs, keep)
    plot_optimizers(results, words.out / "optimizers.png")
    return results


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By optimizer: tokens per second alone, the best learning rate of the sweep, and the losses.

    `best_is_at_the_edge`: no lower, or no higher, learning rate was tried, so that a better one may lie beyond.
    """
    return {name: _of_optimizer([r for r in rows if r["optimizer"] == name]) for name in _names(rows)}


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["optimizer"] for row in rows))


def _of_optimizer(rows: Sequence[Row]) -> dict[str, Any]:
    rate = next((row["tokens_per_second"] for row in rows if row["kind"] == "timing"), None)
    losses = {row["learning_rate"]: row["heldout"][-1][1] for row in rows if row["kind"] == "sweep" and _ended(row)}
    found: dict[str, Any] = {"tokens_per_second": rate, "heldout_loss": {f"{k:g}": v for k, v in losses.items()}}
    if losses:
        best = min(losses, key=lambda key: losses[key])
        tried = [row["learning_rate"] for row in rows if row["kind"] == "sweep"]
        found |= {"best": best, "best_loss": losses[best], "best_is_at_the_edge": best in (min(tried), max(tried))}
        equal = [
            row for row in rows if row["kind"] == "in equal time" and row["learning_rate"] == best and _ended(row)
        ]
        found |= (
            {"equal_time_loss": equal[-1]["heldout"][-1][1], "equal_time_steps": equal[-1]["steps"]} if equal else {}
        )
    return found


def _ended(row: Row) -> bool:
    return "error" not in row and bool(row["heldout"])


def equal_time_steps(found: dict[str, dict[str, Any]], steps: int) -> dict[str, tuple[float, int]]:
    """(best learning rate, steps) for the time of the fastest optimizer, of every other that has not run so yet."""
    timed = {name: one for name, one in found.items() if one["tokens_per_second"] and "best" in one}
    fastest = max((one["tokens_per_second"] for one in timed.values()), default=None)
    fewer = {name: int(steps * one["tokens_per_second"] / (fastest or math.inf)) for name, one in timed.items()}
    return {
        name: (timed[name]["best"], number)
        for name, number in fewer.items()
        if 0 < number < steps and "equal_time_loss" not in timed[name]
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown tables: the optimizers, then every learning rate."""
    found = results["optimizers"]
    rates = sorted({rate for one in found.values() for rate in one["heldout_loss"]}, key=float)
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['steps']} steps",
        "",
        "| optimizer | tokens/s | best learning rate | held-out loss | in equal time |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        edge = " (edge of the sweep)" if one.get("best_is_at_the_edge") else ""
        best = f"{one['best']:g}{edge} | {one['best_loss']:.4f}" if "best" in one else " | "
        equal = f"{one.get('equal_time_loss', one.get('best_loss', math.nan)):.4f}"
        steps = f" ({one['equal_time_steps']} steps)" if "equal_time_steps" in one else ""
        lines.append(f"| {name} | {one['tokens_per_second'] or 0:,.0f} | {best} | {equal}{steps} |")
    lines += ["", f"| held-out loss at | {' | '.join(rates)} |", "|---|" + "---:|" * len(rates)]
    for name, one in found.items():
        cells = [f"{one['heldout_loss'][rate]:.4f}" if rate in one["heldout_loss"] else "" for rate in rates]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    failed = [f"- {row['name']}: {row['error']}" for row in results["runs"] if "error" in row]
    return "\n".join([*lines, *(["", *failed] if failed else [])])
