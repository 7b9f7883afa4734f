"""The backward plan: what size of model, and how many tokens, a budget of compute is best spent on."""

from collections.abc import Mapping, Sequence
from typing import Any

from ingot.planning.machine import Machine
from ingot.planning.scaling import (
    LAWS,
    Law,
    Optimum,
    best_tokens,
    budget_flops,
    find_laws,
    optima,
    spread,
    token_limit,
)
from ingot.recipe_yaml import InputError


def budget_of(words: Any, machine: Machine) -> dict[str, Any]:
    """Compute in FLOP, with what it is made of, and hours and money where they follow.

    Raises: InputError when the options do not make a budget.
    """
    given = getattr(words, "flops", None)
    if given is not None and words.hours is not None:
        raise InputError("--flops: also --hours is given; keep one of them")
    if given is None and words.hours is None:
        raise InputError("--hours: missing; give --gpu, --gpus and --hours, or --flops")
    if given is None and machine.peak is None:
        raise InputError("--gpu: missing; name the GPU (h200, rtx4090, ...) or give --peak-tflops")
    flops = given if given is not None else budget_flops(words.gpus, machine.peak or 0.0, words.hours, words.mfu)
    per_hour = machine.num_gpus * machine.peak * 3600 * words.mfu if machine.peak else None
    hours = flops / per_hour if per_hour else None
    gpu_hours = None if hours is None else hours * machine.num_gpus
    return {
        "flops": flops,
        "gpu": machine.gpu.name if machine.gpu else None,
        "num_gpus": machine.num_gpus,
        "mfu": words.mfu if per_hour else None,
        "hours": hours,
        "gpu_hours": gpu_hours,
        "usd": gpu_hours * machine.usd_per_gpu_hour if gpu_hours and machine.usd_per_gpu_hour else None,
    }


def plan_budget(
    budget: dict[str, Any],
    laws: Sequence[str] | None = None,
    dataset_tokens: float | None = None,
    max_epochs: float = 1.0,
    parameters: float | None = None,
) -> dict[str, Any]:
    """The best N and D of a budget under every law (or those named), and how far the laws are apart.

    With `parameters` also what that fixed model makes of it: all the tokens that the compute, or the text, allows.
    """
    chosen = LAWS if not laws else find_laws(laws)
    limit = None if dataset_tokens is None else token_limit(dataset_tokens, max_epochs)
    found = optima(budget["flops"], limit, chosen)
    losses = [o.loss for name, o in found.items() if o.loss is not None and chosen[name].counts == "all"]
    plan: dict[str, Any] = {
        "budget": budget,
        "max_tokens": limit,
        "max_epochs": max_epochs if limit else None,
        "optimal": {name: _optimum(o, chosen[name], budget["flops"]) for name, o in found.items()},
        "passes": _passes(found, dataset_tokens),
        "spread": {**spread(found), "loss_nats": max(losses) - min(losses) if losses else None},
    }
    if parameters is not None:
        plan["fixed_model"] = _fixed(parameters, budget["flops"], limit, chosen)
    return plan


def _passes(found: Mapping[str, Optimum], dataset_tokens: float | None) -> float | None:
    """How often the most tokens of any law read the text; None when its size is not given."""
    return None if dataset_tokens is None else max(o.tokens for o in found.values()) / dataset_tokens


def _optimum(optimum: Optimum, law: Law, flops: float) -> dict[str, Any]:
    return {
        "parameters": optimum.parameters,
        "tokens": optimum.tokens,
        "loss": optimum.loss,
        "tokens_per_parameter": optimum.tokens_per_parameter,
        "limited_by_text": optimum.limited,
        "extrapolates": law.extrapolates(flops),
        "counts": law.counts,
        "unit": law.unit,
        "source": law.source,
        "note": law.note,
    }


def _fixed(parameters: float, flops: float, limit: float | None, laws: dict[str, Law] | Any) -> dict[str, Any]:
    tokens = best_tokens(flops, 6.0 * parameters, limit)
    return {
        "parameters": parameters,
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters,
        "flops_used": 6.0 * parameters * tokens,
        "loss": {name: law.loss(parameters, tokens) for name, law in laws.items()},
    }
