"""`ingot plan fit`: from finished runs to a law of their own, with a report, pictures and a file for `--law`."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.planning.law_fitting import Fit, Point, budgets, fit_law, parabola
from ingot.planning.law_runs import Runs, read_runs
from ingot.planning.scaling import COEFFICIENTS, ParametricLaw
from ingot.recipe import InputError
from ingot.runs import get_logger, write_json, write_text

__all__ = ["Fit", "Point", "fit_command", "fit_law", "read_runs"]

logger = get_logger(__name__)


def fit_command(
    runs: Sequence[Path], out: Path, *, bootstrap: int = 200, seed: int = 0, check: Sequence[Path] = ()
) -> dict[str, Any]:
    """Fits a law to the finished runs and writes law.json, points.csv, report.md, isoflop.png and fit.png to `out`.

    `check` names runs that are kept out of the fit and held against it. Returns the law, its optima, what it misses
    and the warnings. Raises: InputError in one line that names the run which cannot be used.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; choose a folder")
    apart = {path.resolve() for path in check}
    found = read_runs([path for path in runs if path.resolve() not in apart])
    checks = read_runs(check, like=found.folders[0]).points if check else ()
    for line in found.left_out:
        logger.info("left out: %s", line)
    fit = fit_law(found.points, bootstrap=bootstrap, seed=seed, name=out.name, unit=found.unit)
    results = describe(fit, found, checks)
    for line in results["warnings"]:
        logger.warning("warning: %s", line)
    out.mkdir(parents=True, exist_ok=True)
    write_all(fit, checks, results, out)
    return results


def describe(fit: Fit, found: Runs, checks: Sequence[Point]) -> dict[str, Any]:
    """Everything that the report says, as plain values."""
    misses = [abs(float(r)) for r in fit.residuals]
    return {
        "law": law_tree(fit.law),
        "runs": len(fit.points),
        "resamples": len(fit.samples),
        "starts": fit.starts,
        "bits_per_byte_per_nat": found.bits_per_byte,
        "mean_miss": sum(misses) / len(misses),
        "largest_miss": max(misses),
        "budgets": [_budget(fit, group) for group in budgets(fit.points)],
        "outlook": [_outlook(fit, factor * max(p.flops for p in fit.points)) for factor in (1, 10, 100)],
        "check": [_check(fit, point) for point in checks],
        "left_out": list(found.left_out),
        "warnings": [*found.warnings, *fit.warnings],
    }


def law_tree(law: ParametricLaw) -> dict[str, Any]:
    """The law as a law file holds it."""
    return {
        "name": law.name, "form": law.form, **{key: getattr(law, key) for key in COEFFICIENTS},
        "counts": law.counts, "unit": law.unit, "source": law.source, "note": law.note,
        "intervals": {key: list(pair) for key, pair in law.intervals.items()},
        "fitted_flops": list(law.fitted_flops or ()),
    }  # fmt: skip


def _budget(fit: Fit, group: Sequence[Point]) -> dict[str, Any]:
    """A budget's best run, and where the law and a parabola see the best size."""
    best = min(group, key=lambda point: point.loss)
    flops = math.exp(sum(math.log(point.flops) for point in group) / len(group))
    return {
        "runs": len(group), "best_parameters": best.parameters, "best_tokens": best.tokens, "best_loss": best.loss,
        "parabola_parameters": parabola(group), **_outlook(fit, flops),
    }  # fmt: skip


def _outlook(fit: Fit, flops: float) -> dict[str, Any]:
    """The law's best split of a budget with the intervals of its size and loss."""
    best = fit.law.optimum(flops)
    interval, losses = fit.optimum_interval(flops), fit.loss_interval(best.parameters, best.tokens)
    return {
        "flops": flops, "parameters": best.parameters, "parameters_interval": list(interval) if interval else None,
        "tokens": best.tokens, "tokens_per_parameter": best.tokens_per_parameter,
        "loss": fit.law.loss(best.parameters, best.tokens), "loss_interval": list(losses) if losses else None,
    }  # fmt: skip


def _check(fit: Fit, point: Point) -> dict[str, Any]:
    """What the law says of a run that it has not seen."""
    predicted = fit.law.loss(point.parameters, point.tokens)
    interval = fit.loss_interval(point.parameters, point.tokens)
    return {
        "run": point.name, "parameters": point.parameters, "tokens": point.tokens, "flops": point.flops,
        "measured": point.loss, "predicted": predicted, "interval": list(interval) if interval else None,
        "miss": point.loss / predicted - 1,
    }  # fmt: skip


def write_all(fit: Fit, checks: Sequence[Point], results: dict[str, Any], out: Path) -> None:
    """Writes the files of a fit."""
    from ingot.planning.law_plots import plot_fit, plot_isoflops

    write_json(out / "law.json", results["law"])
    write_json(out / "fit.json", results)
    write_text(out / "points.csv", _csv(fit, checks))
    plot_isoflops(fit, out / "isoflop.png", checks)
    plot_fit(fit, out / "fit.png", checks)
    write_text(out / "report.md", report(fit, results, out))


def _csv(fit: Fit, checks: Sequence[Point]) -> str:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["run", "parameters", "tokens", "flops", "loss", "predicted", "fitted"])
    for points, fitted in ((fit.points, 1), (checks, 0)):
        for p in points:
            predicted = fit.law.loss(p.parameters, p.tokens)
            rows.writerow([p.name, p.parameters, p.tokens, f"{p.flops:.6g}", p.loss, f"{predicted:.6f}", fitted])
    return stream.getvalue()


def report(fit: Fit, results: dict[str, Any], out: Path) -> str:
    """The fit as a page of Markdown."""
    law, lines = fit.law, ["# A scaling law of own runs\n"]
    lines.append(f"L(N, D) = {law.form}, in {law.unit}; N counts all parameters, C = 6 N D.\n")
    lines += ["| coefficient | value | 95% interval |", "|---|---:|---:|"]
    for key in COEFFICIENTS:
        pair = law.intervals.get(key)
        lines.append(f"| {key} | {getattr(law, key):.4g} | {_span(pair)} |")
    lines.append(
        f"\n{results['runs']} runs, Huber loss on log L, {results['starts']} starts, {results['resamples']} resamples "
        f"of the runs. The law misses a run by {results['mean_miss']:.2%} on average and "
        f"{results['largest_miss']:.2%} at most."
    )
    lines += [f"\n**Warning**: {text}." for text in results["warnings"]]
    lines += ["\n## Best size at each budget\n", *_budget_table(results["budgets"])]
    lines += ["\n![isoFLOP curves](isoflop.png)\n", "## Outlook\n", *_outlook_table(results["outlook"])]
    if results["check"]:
        lines += ["\n## Runs kept out of the fit\n", *_check_table(results["check"])]
    lines += ["\n## Runs\n", *_run_table(fit), "\n![predicted and measured](fit.png)\n"]
    lines += [f"Left out: {text}\n" for text in results["left_out"]]
    lines.append(f"Use it: `ingot plan budget ... --law {out / 'law.json'}`\n")
    return "\n".join(lines)


def _budget_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| FLOP | runs | best run: size | loss | law: best size | 95% | tokens per parameter | loss | parabola |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        minimum = row["parabola_parameters"]
        lines.append(
            f"| {row['flops']:.3g} | {row['runs']} | {row['best_parameters']:,.0f} | {row['best_loss']:.4f} | "
            f"{row['parameters']:,.0f} | {_span(row['parameters_interval'], 3)} | {row['tokens_per_parameter']:.1f} | "
            f"{row['loss']:.4f} | {'-' if minimum is None else format(minimum, ',.0f')} |"
        )
    return lines


def _outlook_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| FLOP | parameters | 95% | tokens | tokens per parameter | loss | 95% |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['flops']:.3g} | {row['parameters']:.3g} | {_span(row['parameters_interval'], 3)} | "
            f"{row['tokens']:.3g} | {row['tokens_per_parameter']:.1f} | {row['loss']:.4f} | "
            f"{_span(row['loss_interval'])} |"
        )
    return [
        *lines,
        "\nThe intervals hold what other draws of the runs would change, not what the form of the law leaves out.",
    ]


def _check_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | parameters | tokens | FLOP | predicted | 95% | measured | miss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['run']} | {row['parameters']:,.0f} | {row['tokens']:,.0f} | {row['flops']:.3g} | "
            f"{row['predicted']:.4f} | {_span(row['interval'])} | {row['measured']:.4f} | {row['miss']:+.2%} |"
        )
    return lines


def _run_table(fit: Fit) -> list[str]:
    lines = ["| run | parameters | tokens | FLOP | loss | predicted | miss |", "|---|---:|---:|---:|---:|---:|---:|"]
    misses = dict(zip(fit.points, fit.residuals, strict=True))
    ordered = [p for group in budgets(fit.points) for p in sorted(group, key=lambda p: p.parameters)]
    for p in ordered:
        lines.append(
            f"| {p.name} | {p.parameters:,.0f} | {p.tokens:,.0f} | {p.flops:.3g} | {p.loss:.4f} | "
            f"{fit.law.loss(p.parameters, p.tokens):.4f} | {float(misses[p]):+.2%} |"
        )
    return lines


def _span(pair: Sequence[float] | None, digits: int = 4) -> str:
    return "-" if pair is None else f"{pair[0]:.{digits}g} to {pair[1]:.{digits}g}"
