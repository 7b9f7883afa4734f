"""What a run is expected to be, before it starts: it is refused when it does not fit the GPU."""

from dataclasses import replace
from typing import Any

import torch
from transformers import TrainingArguments

from ingot.planning.architecture import Architecture, architecture_of_config
from ingot.planning.figures import doubts, losses, run_figures
from ingot.planning.flops import training_flops_per_token
from ingot.planning.hardware import gpu_of_device
from ingot.planning.held import LABELS, SHOWN
from ingot.planning.machine import Machine
from ingot.planning.memory import TrainingSetup, estimate_memory, settings_that_fit, setup_of_recipe
from ingot.planning.setups import Strategy
from ingot.planning.show import size
from ingot.recipe import InputError
from ingot.runs import get_logger, num_processes
from ingot.training.launch import uses_fsdp
from modeling.modeling_ingot import usable_memory

logger = get_logger(__name__)

TOLERANCE = 0.1  # of the memory estimate: a run is refused only when it would not fit with so much less


def strategy_of_run(arguments: TrainingArguments) -> Strategy:
    """How this launch shares the training state among its processes, by the planner's name."""
    if arguments.deepspeed_plugin is not None:
        zero = arguments.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        stages: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
        return "zero3_offload" if offload else stages.get(zero.get("stage", 0), "ddp")
    if uses_fsdp():
        return "fsdp2"
    return "ddp" if num_processes() > 1 else "single"


def check_memory(recipe: Any, config: Any, arguments: TrainingArguments, compiled: bool = False) -> int | None:
    """The peak of memory that is expected on each GPU, in bytes; None on a CPU, or where it cannot be told.

    Raises: InputError when it is more than this process may take, with the nearest settings that fit.
    """
    if arguments.device.type != "cuda":
        return None
    total = int(usable_memory(arguments.device))
    try:
        architecture = architecture_of_config(config)
        setup = setup_of_recipe(recipe, strategy=strategy_of_run(arguments), num_gpus=num_processes())
        setup = replace(setup, compiled=compiled)
    except InputError as error:
        logger.warning("memory: not estimated: %s", error)
        return None
    peak = estimate_memory(architecture, setup, total_memory=total).peak_bytes
    if peak * (1 - TOLERANCE) > total:
        raise InputError(_too_large(recipe.stage, peak, total, architecture, setup))
    if peak > total * (1 - TOLERANCE / 2):
        logger.warning("memory: about %s of the GPU's %s are expected; it may not fit", size(peak), size(total))
    return peak


def _too_large(stage: str, peak: int, total: int, architecture: Architecture, setup: TrainingSetup) -> str:
    fitting = settings_that_fit(architecture, setup, total)
    ways = [f"{change}: {size(estimate.peak_bytes)}" for _, estimate, change in fitting]
    return f"{stage}: needs about {size(peak)} of memory on each GPU, which has {size(total)}; " + (
        "it fits with " + "; or ".join(ways) if ways else "take a smaller model, or more or larger GPUs"
    )


def predict(
    recipe: Any, config: Any, arguments: TrainingArguments, tokens: int, compiled: bool = False
) -> dict[str, Any]:
    """Parameters, memory, rate, MFU, hours and loss that the recipe's `plan` section leads to on this machine.

    Raises: InputError when it does not fit the GPU.
    """
    memory = check_memory(recipe, config, arguments, compiled)
    architecture, section = architecture_of_config(config), recipe.plan
    gpu = gpu_of_device(torch.cuda.get_device_name(arguments.device)) if memory is not None else None
    strategy = strategy_of_run(arguments)
    machine = Machine(gpu, num_processes(), strategy, section.usd_per_gpu_hour)
    lengths = recipe.data.length_shares()
    flops = sum(share * training_flops_per_token(architecture, length) for length, share in lengths)
    figures = run_figures(architecture, flops, machine, tokens, section.mfu, section.tokens_per_second_per_gpu)
    loss = losses(architecture, tokens, [section.law])
    if doubts(architecture, None, loss, [section.law]):
        loss = {}  # a law that expects less than guessing says nothing of so small a run
    predicted = {
        "parameters": architecture.total,
        "peak_memory_bytes": memory,
        "tokens_per_second": figures["tokens_per_second"],
        "mfu": figures["mfu"],
        "hours": figures["hours"],
        "loss": next(iter(loss.values()), None),
        "usd": figures["usd"],
    }
    logger.info("plan: %s", "  ".join(f"{LABELS[k]} {SHOWN[k](v)}" for k, v in predicted.items() if v is not None))
    return predicted
