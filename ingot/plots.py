"""The plots that runs and reports show; matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#4a5568"


def plot_loss(metrics: Sequence[Mapping[str, Any]], path: Path, title: str = "Loss") -> None:
    """Draws the training and held-out loss (nats per token) over steps, and bits per byte beside it where logged.

    metrics: lines of metrics.jsonl: `step` with `loss`, or with `eval_loss` and perhaps `eval_bits_per_byte`.
    Raises: ValueError when no line has a loss.
    """
    if not _points(metrics, "loss") and not _points(metrics, "eval_loss"):
        raise ValueError(f"{path}: no line of the metrics has `step` with `loss` or `eval_loss`")
    panels = 2 if _points(metrics, "eval_bits_per_byte") else 1
    figure, axes = _figure(panels)
    _draw(axes[0], metrics, "loss", "training", BLUE, "-")
    _draw(axes[0], metrics, "eval_loss", "held out", ORANGE, "o-")
    _label(axes[0], title, "step", "nats per token")
    axes[0].legend()
    if panels == 2:
        _draw(axes[1], metrics, "eval_bits_per_byte", "held out", ORANGE, "o-")
        _label(axes[1], "Held-out text", "step", "bits per byte")
    _save(figure, path)


def plot_bars(
    values: Mapping[str, float],
    path: Path,
    title: str,
    unit: str,
    errors: Mapping[str, float] | None = None,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draws one bar for each name, with its number, error bars where given, and named dashed lines to compare with."""
    figure, (axis,) = _figure(1)
    heights = list(values.values())
    spread = [errors.get(name, 0.0) for name in values] if errors else None
    bars = axis.bar(list(values), heights, yerr=spread, color=BLUE, width=0.6, capsize=4)
    axis.bar_label(bars, [f"{height:.3f}" for height in heights], padding=3)
    for style, (name, height) in zip(cycle(("--", ":", "-.")), (lines or {}).items(), strict=False):
        axis.axhline(height, linestyle=style, color=GREY, label=f"{name} {height:.3f}")
    if lines:
        axis.legend()
    axis.set_ylim(0, 1.2 * max([*heights, *(lines or {}).values()]))
    _label(axis, title, "", unit)
    _save(figure, path)


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (line["step"], line[key]) for line in metrics if line.get("step") is not None and line.get(key) is not None
    ]


def _figure(panels: int) -> tuple["Figure", list["Axes"]]:
    """A figure that needs no display, with its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0 if panels == 1 else 11.0, 4.2), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _draw(axis: "Axes", metrics: Sequence[Mapping[str, Any]], key: str, label: str, color: str, style: str) -> None:
    points = _points(metrics, key)
    if points:
        axis.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4, linewidth=1.5)


def _label(axis: "Axes", title: str, horizontal: str, vertical: str) -> None:
    axis.set(title=title, xlabel=horizontal, ylabel=vertical)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, format="png")
