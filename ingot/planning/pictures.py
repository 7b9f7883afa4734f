"""Plans as pictures."""

from collections.abc import Mapping
from pathlib import Path

from ingot.planning.scaling import Law
from ingot.recipe_yaml import InputError


def plot_budget(flops: float, laws: Mapping[str, Law], path: Path) -> None:
    """Loss against model size at the budget, and at a tenth and ten times of it: a panel for each law.

    Raises: InputError when the file cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = {name: law for name, law in laws.items() if law.optimum(flops).loss is not None}
    if not drawn:
        raise InputError("--plot: none of these laws predicts a loss to draw")
    figure = Figure(figsize=(4.2 * len(drawn), 4.0), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (name, law) in zip(axes, drawn.items(), strict=True):
        for factor in (0.1, 1.0, 10.0):
            best = law.optimum(flops * factor)
            sizes = [best.parameters * 8 ** (i / 30 - 1) for i in range(61)]
            losses = [law.loss(n, flops * factor / 6 / n) for n in sizes]
            (line,) = axis.plot(sizes, losses, label=f"{flops * factor:.2g} FLOP")
            axis.plot([best.parameters], [best.loss], "o", color=line.get_color())
        axis.set(xscale="log", title=name, xlabel="parameters", ylabel="loss, nats per token")
        axis.grid(alpha=0.3)
        axis.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot: {path}: {error}") from None
