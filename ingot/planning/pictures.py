"""Plans as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.planning.scaling import find_law
from ingot.recipe_yaml import InputError


def plot_budget(flops: float, plan: Mapping[str, Any], path: Path) -> None:
    """Loss against model size at the budget, and at a tenth and ten times of it: a panel for each law.

    Raises: InputError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    laws = [find_law(name) for name, found in plan["optimal"].items() if found["loss"] is not None]
    if not laws:
        raise InputError("--plot: none of these laws predicts a loss to draw")
    figure = Figure(figsize=(4.2 * len(laws), 4.0), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(laws), squeeze=False)[0]
    for axis, law in zip(axes, laws, strict=True):
        for factor in (0.1, 1.0, 10.0):
            best = law.optimum(flops * factor)
            sizes = [best.parameters * 8 ** (i / 30 - 1) for i in range(61)]
            losses = [law.loss(n, flops * factor / 6 / n) for n in sizes]
            (line,) = axis.plot(sizes, losses, label=f"{flops * factor:.2g} FLOP")
            axis.plot([best.parameters], [best.loss], "o", color=line.get_color())
        axis.set(xscale="log", title=law.name, xlabel="parameters", ylabel="loss, nats per token")
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot: {path}: {error}") from None
