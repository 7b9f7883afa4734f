"""Scaling laws: the loss that N parameters reach after D tokens, and how best to split a budget of C = 6 N D.

The laws of the papers disagree, so a plan shows all of them and the spread between them. Their losses are nats per
token of the paper's own tokenizer and text: only differences within one law mean something for other data.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ingot.planning.architecture import Architecture
from ingot.recipe import InputError, nearest
from ingot.runs import read_json

FLOPS_PER_PARAMETER = 6.0  # of a training token: 2 forward, 4 backward
Counts = Literal["all", "non_embedding"]
USUAL_FLOPS = (1e15, 1e26)  # budgets for which a law must have an answer
COEFFICIENTS = ("E", "A", "alpha", "B", "beta")
OPTIONAL = ("name", "form", "source", "unit", "counts", "note", "intervals", "fitted_flops")
FORM = "E + A / N^alpha + B / D^beta"


@dataclass(frozen=True)
class Optimum:
    """The best split of a budget; `limited` says that there was no text for a better one."""

    parameters: float
    tokens: float
    loss: float | None  # nats per token, in the law's unit
    limited: bool = False

    @property
    def tokens_per_parameter(self) -> float:
        """D / N."""
        return self.tokens / self.parameters

    @property
    def flops(self) -> float:
        """6 N D."""
        return FLOPS_PER_PARAMETER * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """What every law says of itself; `counts` tells which parameters its N is about."""

    name: str
    source: str
    unit: str
    form: str
    counts: Counts = "all"
    note: str = ""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # 95%, by coefficient
    fitted_flops: tuple[float, float] | None = None  # compute of the smallest and largest run behind it

    @abstractmethod
    def loss(self, parameters: float, tokens: float) -> float | None:
        """The loss in nats per token, or None when the law has none."""

    @abstractmethod
    def best_parameters(self, flops: float) -> float:
        """N of the lowest loss at 6 N D = flops, with as much text as that takes."""

    def optimum(self, flops: float, max_tokens: float | None = None) -> Optimum:
        """The best N and D at 6 N D = flops; with at most `max_tokens` tokens, if given.

        Along a budget the loss has one minimum, so that with too little text the best is to use all of it.
        Raises: InputError for a budget or limit that is not a number above 0.
        """
        _positive("flops", flops)
        if max_tokens is not None:
            _positive("max_tokens", max_tokens)
        parameters = self.best_parameters(flops)
        tokens = flops / FLOPS_PER_PARAMETER / parameters
        limited = max_tokens is not None and tokens > max_tokens
        if max_tokens is not None and limited:
            tokens, parameters = max_tokens, flops / FLOPS_PER_PARAMETER / max_tokens
        return Optimum(parameters, tokens, self.loss(parameters, tokens), limited)

    def extrapolates(self, flops: float) -> bool:
        """Whether the budget lies more than tenfold outside the runs that the law was fitted to."""
        return self.fitted_flops is not None and not self.fitted_flops[0] / 10 <= flops <= self.fitted_flops[1] * 10


@dataclass(frozen=True, kw_only=True)
class ParametricLaw(Law):
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al., 2022, arXiv 2203.15556, equation 2)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    form: str = FORM

    def loss(self, parameters: float, tokens: float) -> float:
        """E is what no model goes below, then what the size and what the text leave over."""
        _positive("parameters", parameters)
        _positive("tokens", tokens)
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def best_parameters(self, flops: float) -> float:
        """G (C/6)^(beta / (alpha + beta)) with G = (alpha A / beta B)^(1 / (alpha + beta)), their equation 4."""
        both = self.alpha + self.beta
        ratio = self.alpha * self.A / (self.beta * self.B)
        return float(ratio ** (1 / both) * (flops / FLOPS_PER_PARAMETER) ** (self.beta / both))


@dataclass(frozen=True, kw_only=True)
class KaplanLaw(Law):
    """L = [(Nc / N)^(alpha_N / alpha_D) + Dc / D]^alpha_D (Kaplan et al., 2020, arXiv 2001.08361, equation 1.5)."""

    alpha_n: float
    alpha_d: float
    n_c: float
    d_c: float
    form: str = "[(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D"

    def loss(self, parameters: float, tokens: float) -> float:
        """N counts the parameters without embeddings."""
        _positive("parameters", parameters)
        _positive("tokens", tokens)
        size = (self.n_c / parameters) ** (self.alpha_n / self.alpha_d)
        return float((size + self.d_c / tokens) ** self.alpha_d)

    def best_parameters(self, flops: float) -> float:
        """Where the derivative of the bracket with D = C / 6N is zero."""
        ratio = self.alpha_n / self.alpha_d
        text = FLOPS_PER_PARAMETER * self.d_c / flops  # Dc / D = text * N
        return float((ratio * self.n_c**ratio / text) ** (1 / (1 + ratio)))


@dataclass(frozen=True, kw_only=True)
class RatioLaw(Law):
    """D = ratio * N, with no loss."""

    ratio: float
    unit: str = "none"
    form: str = "D = ratio * N"

    def loss(self, parameters: float, tokens: float) -> None:
        """A rule of thumb predicts none."""

    def best_parameters(self, flops: float) -> float:
        """sqrt(C / (6 ratio))."""
        return math.sqrt(flops / (FLOPS_PER_PARAMETER * self.ratio))


_CHINCHILLA_FLOPS = (6e18, 3e21)  # smallest and largest budget of the isoFLOP runs of Hoffmann et al. 2022
_MASSIVE_TEXT = "nats per token of MassiveText, SentencePiece 32,000"
LAWS: dict[str, Law] = {
    "besiroglu": ParametricLaw(
        name="besiroglu", E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658, unit=_MASSIVE_TEXT,
        fitted_flops=_CHINCHILLA_FLOPS,
        source="Besiroglu et al. 2024, arXiv 2404.10102: Hoffmann's runs, read off their plot and fitted again",
        note="standard errors: E 0.03, A 124.58, alpha 0.02, B 1293.23, beta 0.02; agrees with Hoffmann's approaches "
        "1 and 2, about 20 tokens per parameter",
    ),
    "hoffmann": ParametricLaw(
        name="hoffmann", E=1.6934, A=406.4, alpha=0.3392, B=410.7, beta=0.2849, unit=_MASSIVE_TEXT,
        fitted_flops=_CHINCHILLA_FLOPS,
        source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3, with the digits of the TeX source",
        note="digits as Besiroglu et al. give them, who also found that the optimizer had stopped early",
    ),
    "hoffmann_rounded": ParametricLaw(
        name="hoffmann_rounded", E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28, unit=_MASSIVE_TEXT,
        fitted_flops=_CHINCHILLA_FLOPS,
        source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3 as printed",
        note="the rounding alone moves the optimum: 93 tokens per parameter at Chinchilla's own budget",
    ),
    "kaplan": KaplanLaw(
        name="kaplan", alpha_n=0.076, alpha_d=0.103, n_c=6.4e13, d_c=1.8e13, counts="non_embedding",
        source="Kaplan et al. 2020, arXiv 2001.08361, joint fit (table 2)",
        unit="nats per token of WebText2, GPT-2 tokenizer, context 1,024",
        note="historical only; the optimum is that of the joint fit at 6 N D = C; the paper's own frontier, from "
        "learning curves, is N ~ C^0.73",
    ),
    "rule_of_thumb": RatioLaw(
        name="rule_of_thumb", ratio=20.0, source="20 tokens per parameter, after Hoffmann et al. 2022",
        note="nanochat takes 12 tokens for each parameter of the matrices and the head instead, from its own runs",
    ),
}  # fmt: skip
DEFAULT_LAW = "besiroglu"


def budget_flops(gpus: float, flops_per_second: float, hours: float, mfu: float) -> float:
    """Useful FLOP of so many GPUs with this dense peak (FLOP/s each), hours of wall time and utilisation (0 to 1]."""
    for name, value in {"gpus": gpus, "flops_per_second": flops_per_second, "hours": hours, "mfu": mfu}.items():
        _positive(name, value)
    if mfu > 1:
        raise InputError(f"mfu: {mfu:g} is more than the whole GPU; give a share such as 0.45")
    return gpus * flops_per_second * hours * 3600 * mfu


def token_limit(dataset_tokens: float, max_epochs: float = 1.0) -> float:
    """Tokens that may be read: those of the dataset, as often as allowed. Laws take a token read again for a new one.

    Muennighoff et al. 2023 (arXiv 2305.16264) found that to hold for about four epochs.
    """
    _positive("dataset_tokens", dataset_tokens)
    _positive("max_epochs", max_epochs)
    return dataset_tokens * max_epochs


def best_tokens(flops: float, flops_per_token: float, max_tokens: float | None = None) -> float:
    """Tokens for a model that is fixed: more are always better, so all that the compute or the text allows.

    flops_per_token: of training; 6 N, or the exact count of `ingot.planning.flops`.
    """
    _positive("flops", flops)
    _positive("flops_per_token", flops_per_token)
    tokens = flops / flops_per_token
    if max_tokens is None:
        return tokens
    _positive("max_tokens", max_tokens)
    return min(tokens, max_tokens)


def counted_parameters(law: Law, architecture: Architecture) -> int:
    """The parameters of a model that the law's N is about; of experts those that a token meets."""
    tables = architecture.input_embedding + architecture.head
    return architecture.active - (tables if law.counts == "non_embedding" else 0)


def optima(flops: float, max_tokens: float | None = None, laws: Mapping[str, Law] = LAWS) -> dict[str, Optimum]:
    """The best split of a budget under every law, by name."""
    return {name: law.optimum(flops, max_tokens) for name, law in laws.items()}


def spread(found: Mapping[str, Optimum]) -> dict[str, float]:
    """How far the laws are apart: largest over smallest N, D and D / N; 1 is agreement."""
    columns = {
        "parameters": [o.parameters for o in found.values()],
        "tokens": [o.tokens for o in found.values()],
        "tokens_per_parameter": [o.tokens_per_parameter for o in found.values()],
    }
    return {name: max(values) / min(values) for name, values in columns.items()}


def find_law(name_or_path: str | Path) -> Law:
    """A law by its name, or from a law file or the folder that `ingot plan fit` wrote.

    Raises: InputError for a name that there is not (with the nearest one) and for a bad file.
    """
    text = str(name_or_path)
    if text in LAWS:
        return LAWS[text]
    path = Path(text) / "law.json" if Path(text).is_dir() else Path(text)
    if path.is_file():
        return read_law(path)
    if path.suffix == ".json" or "/" in text:
        raise InputError(f"{path}: no such law file; make one with: ingot plan fit runs/* --out DIR")
    near = nearest(text, set(LAWS))
    hint = f"did you mean '{near}'? " if near else ""
    raise InputError(f"law: '{text}' is not known; {hint}there are {', '.join(LAWS)}, or the path of a law file")


def find_laws(names: Sequence[str]) -> dict[str, Law]:
    """Laws by the names that tables show; two files whose laws are called alike go by their paths."""
    found = {text: find_law(text) for text in names}
    known = [law.name for law in found.values()]
    return {law.name if known.count(law.name) == 1 else text: law for text, law in found.items()}


def read_law(path: Path) -> ParametricLaw:
    """The law in a JSON file: E, A, alpha, B, beta, and if given name, source, unit, counts, intervals, ...

    Raises: InputError in one line that names the file and the key.
    """
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected an object with {', '.join(COEFFICIENTS)}, got {type(tree).__name__}")
    for key in tree:
        if key not in COEFFICIENTS + OPTIONAL:
            near = nearest(key, set(COEFFICIENTS + OPTIONAL))
            raise InputError(f"{path}: {key}: no such key of a law" + (f"; did you mean '{near}'?" if near else ""))
    numbers = {key: _coefficient(path, tree, key) for key in COEFFICIENTS}
    if tree.get("form", FORM) != FORM:
        raise InputError(f"{path}: form: only '{FORM}' can be read, got {tree['form']!r}")
    if tree.get("counts", "all") not in ("all", "non_embedding"):
        raise InputError(f"{path}: counts: expected 'all' or 'non_embedding', got {tree['counts']!r}")
    law = ParametricLaw(
        E=numbers["E"], A=numbers["A"], alpha=numbers["alpha"], B=numbers["B"], beta=numbers["beta"],
        name=str(tree.get("name", path.stem)), source=str(tree.get("source", path)), note=str(tree.get("note", "")),
        unit=str(tree.get("unit", "nats per token")), counts=tree.get("counts", "all"),
        intervals=_intervals(path, tree), fitted_flops=_fitted_flops(path, tree),
    )  # fmt: skip
    _check_usable(path, law)
    return law


def _check_usable(path: Path, law: ParametricLaw) -> None:
    """Raises: InputError for coefficients that are numbers but no law: its optimum has no size."""
    try:
        found = [law.optimum(flops) for flops in USUAL_FLOPS]
        usable = all(best.parameters >= 1 and best.tokens >= 1 and law.loss(1e3, 1e16) < math.inf for best in found)
    except ArithmeticError:
        usable = False
    if not usable:
        raise InputError(
            f"{path}: alpha {law.alpha:g}, beta {law.beta:g}, A {law.A:g}, B {law.B:g}: from {USUAL_FLOPS[0]:.0e} to "
            f"{USUAL_FLOPS[-1]:.0e} FLOP this law has no optimum of a parameter and a token or more; check the numbers"
        )


def _coefficient(path: Path, tree: Mapping[str, object], key: str) -> float:
    if key not in tree:
        raise InputError(f"{path}: {key}: missing; a law has {', '.join(COEFFICIENTS)}")
    value = tree[key]
    least = 0.0 if key == "E" else math.ulp(0.0)
    if not _is_number(value) or not value >= least:  # type: ignore[operator]
        raise InputError(f"{path}: {key}: expected a number {'from 0' if key == 'E' else 'above 0'}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def _intervals(path: Path, tree: Mapping[str, object]) -> dict[str, tuple[float, float]]:
    found = tree.get("intervals") or {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: intervals: expected an object of [low, high] pairs, got {found!r}")
    return {key: _pair(path, f"intervals.{key}", value) for key, value in found.items()}


def _fitted_flops(path: Path, tree: Mapping[str, object]) -> tuple[float, float] | None:
    found = tree.get("fitted_flops")
    return None if found is None else _pair(path, "fitted_flops", found)


def _pair(path: Path, key: str, value: object) -> tuple[float, float]:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]):
        raise InputError(f"{path}: {key}: expected [low, high], got {value!r}")
    return float(value[0]), float(value[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(name: str, value: float) -> None:
    if not _is_number(value) or value <= 0:
        raise InputError(f"{name}: expected a number above 0, got {value!r}")
