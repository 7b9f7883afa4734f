"""The pictures of a fitted law: isoFLOP curves with their minima, and prediction against measurement."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ingot.planning.law_fitting import Fit, Point, budgets, parabola
from ingot.planning.scaling import FLOPS_PER_PARAMETER

GREY, ORANGE = "#4a5568", "#dd6b20"


def plot_isoflops(fit: Fit, path: Path, checks: Sequence[Point] = ()) -> None:
    """Left: loss by size for every budget, with the law's curve and its minimum; right: best size over compute."""
    figure, axes = _figure()
    groups = budgets([*fit.points, *checks])
    colors = [colormaps["viridis"](x) for x in np.linspace(0.05, 0.85, len(groups))]
    for group, color in zip(groups, colors, strict=True):
        _isoflop(axes[0], fit, group, color, checks)
    axes[0].set_xscale("log")
    _label(axes[0], "Loss by size at each budget", "parameters", "held-out loss, nats per token")
    axes[0].legend(title="FLOP", fontsize=8)
    _best_sizes(axes[1], fit, groups, colors)
    figure.savefig(path, format="png")


def _isoflop(axis: Axes, fit: Fit, group: Sequence[Point], color: object, checks: Sequence[Point]) -> None:
    flops = math.exp(float(np.mean([math.log(p.flops) for p in group])))
    best = fit.law.optimum(flops)
    sizes = [p.parameters for p in group] + [best.parameters]
    line = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 200)
    losses = [fit.law.loss(n, flops / FLOPS_PER_PARAMETER / n) for n in line.tolist()]
    axis.plot(line, losses, color=color, linewidth=1.3)
    for point in group:
        filled = color if point not in checks else "white"
        axis.plot(point.parameters, point.loss, "o", color=color, markerfacecolor=filled, markersize=5)
    axis.plot(
        best.parameters,
        fit.law.loss(best.parameters, best.tokens),
        "*",
        color=color,
        markersize=12,
        markeredgecolor="white",
    )
    axis.plot([], [], "o-", color=color, label=f"{flops:.2g}", markersize=5)


def _best_sizes(axis: Axes, fit: Fit, groups: Sequence[Sequence[Point]], colors: Sequence[object]) -> None:
    flops = [p.flops for group in groups for p in group]
    line = np.geomspace(min(flops) / 2, max(flops) * 10, 60).tolist()
    axis.plot(line, [fit.law.optimum(c).parameters for c in line], color=GREY, label="law")
    bands = [band for c in line if (band := fit.optimum_interval(c)) is not None]
    if bands:
        low, high = zip(*bands, strict=True)
        axis.fill_between(line, low, high, color=GREY, alpha=0.2, label="95% of resamples")
    for group, color in zip(groups, colors, strict=True):
        minimum = parabola(group)
        if minimum is not None:
            axis.plot(group[0].flops, minimum, "o", color=color, markersize=7)
    axis.plot([], [], "o", color=GREY, label="minimum of a parabola through the runs")
    axis.set(xscale="log", yscale="log")
    _label(axis, "Best size", "FLOP", "parameters")
    axis.legend(fontsize=8)


def plot_fit(fit: Fit, path: Path, checks: Sequence[Point] = ()) -> None:
    """Left: predicted against measured loss; right: what the law misses, in percent, over compute."""
    figure, axes = _figure()
    for points, style, name in ((fit.points, "o", "fitted"), (tuple(checks), "D", "kept out of the fit")):
        if not points:
            continue
        color = GREY if points is fit.points else ORANGE
        measured = np.array([p.loss for p in points])
        predicted = np.array([fit.law.loss(p.parameters, p.tokens) for p in points])
        axes[0].plot(predicted, measured, style, color=color, label=name)
        axes[1].plot([p.flops for p in points], 100 * (measured / predicted - 1), style, color=color, label=name)
    ends = axes[0].get_xlim()
    axes[0].plot(ends, ends, color=GREY, linewidth=0.8)
    _label(axes[0], "Held-out loss, nats per token", "predicted", "measured")
    axes[0].legend(fontsize=8)
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    axes[1].set_xscale("log")
    _label(axes[1], "Measured over predicted", "FLOP", "percent")
    figure.savefig(path, format="png")


def _figure() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11.0, 4.4), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, 2))


def _label(axis: Axes, title: str, horizontal: str, vertical: str) -> None:
    axis.set(title=title, xlabel=horizontal, ylabel=vertical)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    for side, name in ((axis.xaxis, horizontal), (axis.yaxis, vertical)):
        if name in ("parameters", "FLOP"):
            side.set_minor_formatter(NullFormatter())
        if name == "parameters":
            side.set_major_formatter(FuncFormatter(_amount))


def _amount(value: float, _: object = None) -> str:
    """1.2e6 as 1.2M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
