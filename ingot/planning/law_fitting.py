"""Fits L = E + A / N^alpha + B / D^beta to measured runs, as Besiroglu et al. (2024) did.

log L = logsumexp(log E, log A - alpha log N, log B - beta log D); Huber loss on the residuals of log L, from many
starts, with L-BFGS-B; intervals from a bootstrap over the runs. N and D are taken relative to their geometric means
while fitting, so that A and alpha (B and beta) do not move together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ingot.planning.scaling import COEFFICIENTS, FLOPS_PER_PARAMETER, ParametricLaw
from ingot.recipe import InputError
from ingot.runs import progress

Vector = NDArray[np.float64]

HUBER_DELTA = 1e-3
FEWEST_RUNS = 6  # one more than there are coefficients
ENOUGH_RUNS = 12
EXPONENTS = (0.02, 3.0)  # bounds of alpha and beta
LEAST_E = 1e-3  # nats; a fit that goes there has no floor
STARTS_PER_EXPONENT = 16  # the grid of starts is this squared
REFINED = 12  # starts of the grid that L-BFGS goes on from
SAME_BUDGET = 1.25  # runs within this factor of compute belong to one budget
WIDE = {"alpha": 0.5, "beta": 0.5, "E": 0.5}  # half an interval, as a share of the value, that is told


@dataclass(frozen=True)
class Point:
    """A finished run: parameters, tokens, and held-out loss in nats per token."""

    name: str
    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_PARAMETER * self.parameters * self.tokens


@dataclass(frozen=True)
class Fit:
    """A fitted law, the same for every resample of the runs, and what to be wary of."""

    law: ParametricLaw
    points: tuple[Point, ...]
    samples: Vector  # (resamples, 5): E, A, alpha, B, beta
    warnings: tuple[str, ...] = ()
    starts: int = 0
    residuals: Vector = field(default_factory=lambda: np.zeros(0))  # (runs,) measured over predicted, less 1

    def loss_interval(self, parameters: float, tokens: float) -> tuple[float, float] | None:
        """95% of the resamples' predictions lie between these; None without a bootstrap."""
        if not len(self.samples):
            return None
        e, a, alpha, b, beta = self.samples.T
        low, high = np.percentile(e + a / parameters**alpha + b / tokens**beta, [2.5, 97.5])
        return float(low), float(high)

    def optimum_interval(self, flops: float) -> tuple[float, float] | None:
        """95% of the resamples' best sizes N at 6 N D = flops lie between these; None without a bootstrap."""
        if not len(self.samples):
            return None
        _, a, alpha, b, beta = self.samples.T
        ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        best = ratio * (flops / FLOPS_PER_PARAMETER) ** (beta / (alpha + beta))
        low, high = np.percentile(best, [2.5, 97.5])
        return float(low), float(high)


def fit_law(
    points: Sequence[Point],
    *,
    bootstrap: int = 200,
    seed: int = 0,
    name: str = "own",
    unit: str = "nats per token",
) -> Fit:
    """Fits the five coefficients and their 95% intervals.

    Raises: InputError for a point that is no number, or too few of them.
    """
    check_points(points)
    sizes, texts, losses = (np.array([getattr(p, key) for p in points]) for key in ("parameters", "tokens", "loss"))
    scales = float(np.exp(np.log(sizes).mean())), float(np.exp(np.log(texts).mean()))
    problem = np.log(sizes / scales[0]), np.log(texts / scales[1]), np.log(losses)
    grid = _grid()
    found = _solve(problem, grid, REFINED)
    best = found[0]
    samples = _bootstrap(problem, grid, found[:3], bootstrap, seed)
    coefficients = [_unscale(theta, scales) for theta in (best, *samples)]
    e, a, alpha, b, beta = coefficients[0]
    table = np.array(coefficients[1:]).reshape(-1, len(COEFFICIENTS))
    intervals = _intervals(table)
    flops = [p.flops for p in points]
    law = ParametricLaw(
        E=e, A=a, alpha=alpha, B=b, beta=beta, name=name, unit=unit,
        source=f"fitted to {len(points)} runs, {len(samples)} resamples", intervals=intervals,
        fitted_flops=(min(flops), max(flops)),
    )  # fmt: skip
    residuals = np.exp(problem[2] - _predict(best, problem)) - 1
    warnings = tuple(_warnings(points, law, residuals))
    return Fit(law, tuple(points), table, warnings, len(grid), residuals)


def check_points(points: Sequence[Point]) -> None:
    """Raises: InputError that names the run whose numbers make no sense, or says how many are missing."""
    for point in points:
        for key in ("parameters", "tokens", "loss"):
            value = getattr(point, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{point.name}: {key} is {value!r}; a fit needs a number above 0")
    different = {(p.parameters, p.tokens) for p in points}
    if len(different) < FEWEST_RUNS:
        raise InputError(
            f"{len(different)} runs that differ in size or tokens: five coefficients need at least {FEWEST_RUNS}, "
            f"and {ENOUGH_RUNS} or more at three budgets to mean something; make them with: ingot plan sweep"
        )


def _grid() -> list[tuple[float, float]]:
    """The starts: pairs of exponents; the rest follows from them."""
    values = np.geomspace(0.05, 2.0, STARTS_PER_EXPONENT)
    return [(float(a), float(b)) for a in values for b in values]


def _solve(problem: tuple[Vector, ...], grid: Sequence[tuple[float, float]], refined: int) -> list[Vector]:
    """The refined starts, best first: each (log E, log A, log B, alpha, beta)."""
    starts = [_linear_start(problem, alpha, beta) for alpha, beta in grid]
    starts.sort(key=lambda theta: _objective(theta, *problem)[0])
    return _refine(problem, starts[:refined])


def _linear_start(problem: tuple[Vector, ...], alpha: float, beta: float) -> Vector:
    """The best E, A, B from 0 for given exponents, in the sense of least squares of the relative error."""
    from scipy.optimize import nnls

    size, text, log_loss = problem
    loss = np.exp(log_loss)
    columns = np.stack([np.ones_like(loss), np.exp(-alpha * size), np.exp(-beta * text)], axis=1)
    factors, _ = nnls(columns / loss[:, None], np.ones_like(loss))
    logs = np.log(np.maximum(factors, LEAST_E))
    return np.array([*logs, alpha, beta])


def _refine(problem: tuple[Vector, ...], starts: Sequence[Vector]) -> list[Vector]:
    """L-BFGS-B from every start; the results, best first."""
    from scipy.optimize import minimize

    most = float(problem[2].min())
    bounds = [(math.log(LEAST_E), most), (-20.0, 20.0), (-20.0, 20.0), EXPONENTS, EXPONENTS]
    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9}
    ends = [minimize(_objective, s, problem, "L-BFGS-B", jac=True, bounds=bounds, options=options) for s in starts]
    return [end.x for end in sorted(ends, key=lambda end: float(end.fun))]


def _predict(theta: Vector, problem: tuple[Vector, ...]) -> Vector:
    """log L of every run."""
    log_e, log_a, log_b, alpha, beta = theta
    size, text, _ = problem
    return np.logaddexp(np.logaddexp(log_e, log_a - alpha * size), log_b - beta * text)


def _objective(theta: Vector, size: Vector, text: Vector, log_loss: Vector) -> tuple[float, Vector]:
    """The mean Huber loss in units of delta squared, and its gradient.

    The scale matters: with the bare loss, of the order of 1e-6, L-BFGS believes at once that it has arrived.
    """
    log_e, log_a, log_b, alpha, beta = theta
    parts = np.stack([np.full_like(size, log_e), log_a - alpha * size, log_b - beta * text])
    total = np.logaddexp(np.logaddexp(parts[0], parts[1]), parts[2])
    shares = np.exp(parts - total)
    residuals = (total - log_loss) / HUBER_DELTA
    clipped = np.clip(residuals, -1, 1)
    value = np.where(np.abs(residuals) <= 1, residuals**2 / 2, np.abs(residuals) - 0.5).mean()
    slope = shares * clipped / (HUBER_DELTA * len(size))
    e, a, b = slope.sum(axis=1)
    return float(value), np.array([e, a, b, -(slope[1] * size).sum(), -(slope[2] * text).sum()])


def _bootstrap(
    problem: tuple[Vector, ...], grid: Sequence[tuple[float, float]], best: Sequence[Vector], number: int, seed: int
) -> list[Vector]:
    """The fit of `number` resamples of the runs, drawn with replacement; each has enough different runs."""
    generator = np.random.default_rng(seed)
    runs, found = len(problem[0]), []
    coarse = grid[::5]
    for _ in progress(range(number), number, "bootstrap"):
        chosen = generator.integers(runs, size=runs)
        while len(set(chosen.tolist())) < FEWEST_RUNS - 1:
            chosen = generator.integers(runs, size=runs)
        resampled = tuple(column[chosen] for column in problem)
        starts = sorted(
            (_linear_start(resampled, *pair) for pair in coarse), key=lambda s: _objective(s, *resampled)[0]
        )
        found.append(_refine(resampled, [*best, *starts[:3]])[0])
    return found


def _unscale(theta: Vector, scales: tuple[float, float]) -> list[float]:
    """E, A, alpha, B, beta for plain N and D."""
    log_e, log_a, log_b, alpha, beta = theta.tolist()
    a, b = log_a + alpha * math.log(scales[0]), log_b + beta * math.log(scales[1])
    return [math.exp(log_e), math.exp(a), alpha, math.exp(b), beta]


def _intervals(samples: Vector) -> dict[str, tuple[float, float]]:
    if not len(samples):
        return {}
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(COEFFICIENTS)}


def budgets(points: Sequence[Point]) -> list[list[Point]]:
    """The runs grouped by compute, smallest first; within a group each is near the one before."""
    ordered = sorted(points, key=lambda p: p.flops)
    groups: list[list[Point]] = []
    for point in ordered:
        if groups and point.flops <= groups[-1][0].flops * SAME_BUDGET:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def parabola(group: Sequence[Point]) -> float | None:
    """The size at the minimum of a parabola through a budget's losses over log N (Hoffmann's approach 2).

    None with fewer than three sizes, or when the minimum is not among them.
    """
    sizes, losses = np.log([p.parameters for p in group]), np.array([p.loss for p in group])
    if len(set(sizes.tolist())) < 3:
        return None
    curvature, slope, _ = np.polyfit(sizes - sizes.mean(), losses, 2)
    if curvature <= 0:
        return None
    lowest = float(sizes.mean() - slope / (2 * curvature))
    return math.exp(lowest) if sizes.min() <= lowest <= sizes.max() else None


def _warnings(points: Sequence[Point], law: ParametricLaw, residuals: Vector) -> list[str]:
    """What the data cannot tell, or may tell wrongly; a sentence each."""
    found = []
    groups = [group for group in budgets(points) if len(group) >= 3]
    if len(points) < ENOUGH_RUNS:
        found.append(f"only {len(points)} runs: {ENOUGH_RUNS} or more make the intervals mean something")
    if len(budgets(points)) == 1:
        found.append("all runs have the same compute: the law says nothing about larger budgets")
    elif len(groups) < 3:
        found.append(f"three sizes or more at {len(groups)} budgets only: three budgets show how the optimum moves")
    found += [text for group in groups if (text := _unbracketed(group))]
    for name, value in {"alpha": law.alpha, "beta": law.beta}.items():
        if not EXPONENTS[0] * 1.01 < value < EXPONENTS[1] * 0.99:
            found.append(f"{name} = {value:.3g} is at the bound of the fit: these runs do not determine it")
    if law.E <= LEAST_E * 1.01:
        found.append("E is 0: the runs are too far from any floor to show one; do not extrapolate far")
    found += _wide(law)
    worst = int(np.abs(residuals).argmax())
    if abs(residuals[worst]) > 0.02 and abs(residuals[worst]) > 4 * float(np.median(np.abs(residuals))):
        found.append(f"{points[worst].name} is {residuals[worst]:+.1%} off the fit: look at its loss curve")
    return found


def _unbracketed(group: Sequence[Point]) -> str | None:
    """Says so when the best run of a budget is its smallest or largest model."""
    ordered = sorted(group, key=lambda p: p.parameters)
    best = min(ordered, key=lambda p: p.loss)
    if best not in (ordered[0], ordered[-1]):
        return None
    side = "smallest" if best is ordered[0] else "largest"
    return (
        f"at {best.flops:.2g} FLOP the {side} model is the best: add {side[:-3]}er ones, so that the optimum is inside"
    )


def _wide(law: ParametricLaw) -> list[str]:
    found = []
    for name, share in WIDE.items():
        if name in law.intervals:
            low, high = law.intervals[name]
            value = float(getattr(law, name))
            if (high - low) / 2 > share * value:
                found.append(f"{name} = {value:.3g} is poorly determined: 95% interval {low:.3g} to {high:.3g}")
    return found
