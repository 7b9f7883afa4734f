"""The pictures of the studies of losses: optimizers by tokens, time and learning rate; variants beside a reference."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#4a5568", "#c53030")


def plot_optimizers(results: Mapping[str, Any], path: Path) -> None:
    """Held-out loss over tokens, over seconds of training, and by learning rate, in one color an optimizer."""
    figure, axes = _figure(3)
    for color, (name, one) in zip(COLORS * 9, results["optimizers"].items(), strict=False):
        for row in results["runs"]:
            if row["optimizer"] == name and row["kind"] != "timing" and "error" not in row:
                _optimizer_curves(axes, row, one, color)
        rates = sorted((float(rate), loss) for rate, loss in one["heldout_loss"].items())
        if rates:
            axes[2].plot(*zip(*rates, strict=True), "o-", color=color, label=name)
            axes[2].plot(one["best"], one["best_loss"], "*", color=color, markersize=13, markeredgecolor="white")
    tried = sorted({float(rate) for one in results["optimizers"].values() for rate in one["heldout_loss"]})
    axes[2].set_xscale("log")
    axes[2].set_xticks(tried, [f"{rate:g}" for rate in tried], rotation=45)
    axes[2].set_xticks([], minor=True)
    _label(axes[0], "Equal tokens, best learning rates", "tokens", "held-out loss, nats per token")
    _label(axes[1], "Equal time", "seconds of training", "held-out loss, nats per token")
    _label(axes[2], "By learning rate", "learning rate", "held-out loss at the end, nats per token")
    figure.savefig(path, format="png")


def _optimizer_curves(axes: Sequence["Axes"], row: Mapping[str, Any], one: Mapping[str, Any], color: str) -> None:
    """A run's curve, bold for the best learning rate and thin for others; dashed when it is shorter for equal time."""
    best, equal = row["learning_rate"] == one.get("best"), row["kind"] == "in equal time"
    style: dict[str, Any] = {"color": color, "linestyle": "--" if equal else "-", "marker": "o", "markersize": 3}
    style |= {"linewidth": 1.6, "alpha": 1.0} if best else {"linewidth": 0.7, "alpha": 0.3}
    steps, losses = zip(*row["heldout"], strict=True)
    tokens = [step * row["tokens_per_step"] for step in steps]
    label = f"{row['optimizer']} {row['learning_rate']:g}" if best else None
    if not equal:
        axes[0].plot(tokens, losses, label=label, **style)
    if best and one["tokens_per_second"]:
        name = f"{label}, {row['steps']} steps"
        axes[1].plot([t / one["tokens_per_second"] for t in tokens], losses, label=name, **style)


def plot_variants(runs: Sequence[Mapping[str, Any]], against: str, path: Path, window: int) -> None:
    """Left: training and held-out losses; right: differences of training losses from the reference's, in percent.

    window: logged losses that a mean is taken of, for the differences.
    """
    figure, axes = _figure(2)
    reference = next((dict(run["train"]) for run in runs if run["name"] == against), {})
    for color, run in zip(COLORS * 9, runs, strict=False):
        if run["train"]:
            axes[0].plot(*zip(*run["train"], strict=True), color=color, linewidth=0.8, alpha=0.6)
        if run["heldout"]:
            axes[0].plot(*zip(*run["heldout"], strict=True), "o-", color=color, markersize=4, label=run["name"])
        both = [(step, 100 * (loss / reference[step] - 1)) for step, loss in run["train"] if step in reference]
        if run["name"] != against and len(both) >= window:
            axes[1].plot(*zip(*_means(both, window), strict=True), color=color, label=run["name"])
    begun = [loss for run in runs for step, loss in run["train"] if step > 0.04 * run["steps"]]
    if begun:
        axes[0].set_ylim(min(begun) - 0.1, max(begun) + 0.1)  # the first steps fall further than all others
    axes[1].axhline(0, color="black", linewidth=0.8)
    _label(axes[0], "Loss: lines training, dots held out", "step", "nats per token")
    _label(axes[1], f"Training loss beside '{against}', mean of {window} logged", "step", "difference, %")
    figure.savefig(path, format="png")


def _means(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """The mean of every so many points in a row, at the last one's place."""
    values = [value for _, value in points]
    return [(points[i][0], sum(values[i + 1 - window : i + 1]) / window) for i in range(window - 1, len(points))]


def _figure(panels: int) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 4.4), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _label(axis: "Axes", title: str, horizontal: str, vertical: str) -> None:
    axis.set(title=title, xlabel=horizontal, ylabel=vertical)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
