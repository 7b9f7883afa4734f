"""What `ingot benchmark train_step` takes where nothing is said: by the planner's estimate of memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ingot.benchmark.train_step_cases import ROOT, Case, makes_a_step, own_micro_batch, recipe_tree
from ingot.recipe import build_recipe

FLAGSHIP, QUICK = "1b8", "quickstart"
ENOUGH = 80e9  # bytes of a GPU that trains the flagship
TIMES = (1, 2, 3)  # of the recipe's micro-batch
FEW = 2  # micro-batches to try


def standard_recipe(memory: int | None) -> str:
    """The recipe for a GPU with so many bytes; None: there is no GPU."""
    if memory is None:
        return _path(QUICK)
    if memory >= ENOUGH:
        return _path(FLAGSHIP)
    cases = [Case(str(path), "ingot", micro_batch=1) for path in sorted((ROOT / "recipes").glob("*/pretrain.yaml"))]
    named = [replace(case, micro_batch=own_micro_batch(case)) for case in cases]
    estimates = [(*size_and_peak(case, memory), case.recipe) for case in named]
    return max(((size, recipe) for size, peak, recipe in estimates if peak <= memory), default=(0, _path(QUICK)))[1]


def fitting_micro_batches(case: Case, own: int, memory: int | None) -> tuple[int, ...]:
    """The two largest of the recipe's micro-batch, twice and three times that which are expected to fit.

    On a CPU, or where none is, the recipe's alone.
    """
    if memory is None:
        return (own,)
    cases = [replace(case, micro_batch=times * own) for times in TIMES]
    fitting = [c.micro_batch for c in cases if makes_a_step(c) and size_and_peak(c, memory)[1] <= memory]
    return tuple(fitting[-FEW:]) or (own,)


def size_and_peak(case: Case, memory: int) -> tuple[int, int]:
    """Parameters, and the planner's peak in bytes on each GPU."""
    from ingot.planning.architecture import architecture_of_config
    from ingot.planning.memory import estimate_memory, setup_of_recipe, strategy_of
    from ingot.training.pretrain import PretrainRecipe
    from modeling import IngotConfig

    recipe: Any = build_recipe(PretrainRecipe, recipe_tree(case, Path("corpus"), Path("run")), case.recipe)
    shape = IngotConfig(**{"max_position_embeddings": recipe.data.seq_length, **recipe.model.upstream_values()})
    config = ROOT / "accelerate_configs" / f"{case.strategy}.yaml"
    strategy = "single" if case.strategy == "single" else strategy_of(config)
    setup = setup_of_recipe(recipe, strategy, case.num_processes)
    architecture = architecture_of_config(shape)
    return architecture.total, estimate_memory(architecture, setup, memory).peak_bytes


def _path(name: str) -> str:
    return str(ROOT / "recipes" / name / "pretrain.yaml")
