"""Rate, time, money and loss of a run that is planned."""

import math
from collections.abc import Sequence
from typing import Any

from ingot.planning.architecture import Architecture
from ingot.planning.hardware import utilisation
from ingot.planning.machine import Machine
from ingot.planning.scaling import counted_parameters, find_laws
from ingot.recipe_yaml import InputError

DEFAULT_MFU = 0.4


def run_figures(
    architecture: Architecture,
    flops_per_token: float,
    machine: Machine,
    tokens: float | None,
    mfu: float | None = None,
    tokens_per_second_per_gpu: float | None = None,
) -> dict[str, Any]:
    """Rate, time and money: from a measured rate, else from an expected utilisation of a known peak."""
    rate, measured = tokens_per_second_per_gpu, tokens_per_second_per_gpu is not None
    if rate is None and machine.peak is not None:
        rate = (mfu or DEFAULT_MFU) * machine.peak / flops_per_token
    check_rate(rate, flops_per_token, machine)
    used = None if rate is None else utilisation(rate, flops_per_token, machine.peak)
    hours = tokens / rate / machine.num_gpus / 3600 if tokens and rate else None
    gpu_hours = None if hours is None else hours * machine.num_gpus
    price = machine.usd_per_gpu_hour
    return {
        "gpu": machine.gpu.name if machine.gpu else None, "num_gpus": machine.num_gpus,
        "tokens": tokens, "tokens_per_parameter": tokens / architecture.total if tokens else None,
        "flops": tokens * flops_per_token if tokens else None,
        "mfu": used,
        "mfu_source": "measured rate" if measured else "given" if mfu else "assumed",
        "tokens_per_second_per_gpu": rate, "tokens_per_second": rate * machine.num_gpus if rate else None,
        "hours": hours, "gpu_hours": gpu_hours,
        "usd": gpu_hours * price if gpu_hours is not None and price is not None else None,
    }  # fmt: skip


def check_rate(rate: float | None, flops_per_token: float, machine: Machine) -> None:
    """Raises: InputError for a rate in tokens/s that the GPU cannot reach."""
    used = None if rate is None else utilisation(rate, flops_per_token, machine.peak)
    if used is not None and used > 1:
        raise InputError(
            f"--tokens-per-second-per-gpu: {rate:,.0f} would be {used:.0%} of the GPU's dense bf16 peak; is it the "
            "rate of several GPUs, or of another model?"
        )


def losses(architecture: Architecture, tokens: float | None, laws: Sequence[str]) -> dict[str, float | None]:
    """Held-out loss in nats per token that each law expects of this model after so many tokens."""
    if not tokens:
        return {}
    return {name: law.loss(counted_parameters(law, architecture), tokens) for name, law in find_laws(laws).items()}


def doubts(
    architecture: Architecture, flops: float | None, losses: dict[str, float | None], laws: Sequence[str]
) -> dict[str, str]:
    """Why a law's loss should not be believed, for those of which that is known."""
    found, known = {}, find_laws(laws)
    for name, loss in losses.items():
        if loss is not None and loss > math.log(architecture.vocab_size):
            found[name] = "above the loss of guessing: so small a run is outside what the law was made for"
        elif flops is not None and known[name].extrapolates(flops):
            found[name] = "more than tenfold outside the budgets that the law was fitted to"
    return found
