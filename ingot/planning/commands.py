"""`ingot plan`: from the words of the command line to a plan, as text or JSON."""

import json
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from ingot.planning import show
from ingot.planning.arguments import parse
from ingot.planning.machine import Machine, machine_of
from ingot.recipe_yaml import InputError

Loader = Callable[..., Any]  # (path, overrides) -> checked recipe


def plan_command(arguments: Sequence[str], load: Loader) -> None:
    """Does what the words after `ingot plan` say; `load` reads a recipe of any stage.

    Raises: InputError in one line that names the word, key or file.
    """
    words, overrides = parse(arguments)
    name = arguments[0]
    if name in _RECIPE_COMMANDS:
        plan, page = _RECIPE_COMMANDS[name](words, overrides, load)
    else:
        plan, page = _COMMANDS[name](words)
    print(json.dumps(plan, indent=2, allow_nan=False) if words.json else page)


def _model(words: Namespace, overrides: Sequence[str], load: Loader) -> tuple[dict[str, Any], str]:
    from ingot.planning.plan import plan_model

    machine = machine_of(words)
    if words.precision == "fp8" and machine.gpu is not None and machine.gpu.fp8_flops is None and words.gpu:
        raise InputError(f"--precision: a {machine.gpu.name} has no fp8; choose bf16")
    subject = _subject(words, overrides, load, machine)
    laws = words.law or ["besiroglu"]
    mfu = words.mfu or subject.mfu
    plan = plan_model(subject, machine, words.convention, mfu, words.tokens_per_second_per_gpu, laws)
    return plan, show.model_page(plan)


def _subject(words: Namespace, overrides: Sequence[str], load: Loader, machine: Machine) -> Any:
    from ingot.planning.plan import subject_of_hf, subject_of_recipe

    if words.hf is not None:
        return subject_of_hf(words.hf, words)
    return subject_of_recipe(words.config, overrides, words, load, machine)


def _mfu(words: Namespace, overrides: Sequence[str], load: Loader) -> tuple[dict[str, Any], str]:
    from ingot.planning.figures import check_rate
    from ingot.planning.flops import training_flops_per_token
    from ingot.planning.hardware import utilisation

    machine = machine_of(Namespace(**vars(words), gpus=1, strategy=None, memory_gb=None, usd_per_gpu_hour=None))
    if machine.peak is None:
        raise InputError("--gpu: missing; name the GPU (h200, rtx4090, ...) or give --peak-tflops")
    defaults = {"tokens": None, "micro_batch": None, "precision": None, "optimizer": None, "gpus": 1}
    asked = Namespace(**vars(words), **defaults, gradient_checkpointing=None)
    subject = _subject(asked, overrides, load, Machine(machine.gpu))
    flops = training_flops_per_token(subject.architecture, subject.setup.seq_length)
    rate = words.tokens_per_second_per_gpu
    check_rate(rate, flops, machine)
    plan = {
        "mfu": utilisation(rate, flops, machine.peak), "tokens_per_second_per_gpu": rate, "flops_per_token": flops,
        "gpu": machine.gpu.name if machine.gpu else None, "peak_flops": machine.peak, "convention": "mfu",
    }  # fmt: skip
    page = (
        f"{show.percent(plan['mfu'])} MFU: {rate:,.0f} tokens/s x {show.amount(flops, 'FLOP', 4)} a token over the "
        f"dense bf16 peak of {show.amount(machine.peak, 'FLOP/s', 4)}"
    )
    return plan, page


def _budget(words: Namespace) -> tuple[dict[str, Any], str]:
    from ingot.planning.budget import budget_of, plan_budget
    from ingot.planning.scaling import LAWS, find_law, find_laws

    budget = budget_of(words, machine_of(words))
    if words.max_epochs is not None and words.dataset_tokens is None:
        raise InputError("--max-epochs: of which text? give --dataset-tokens, too")
    plan = plan_budget(budget, words.law, words.dataset_tokens, words.max_epochs or 1.0, words.parameters)
    law = find_law((words.law or ["besiroglu"])[0])
    page = show.budget_page(plan)
    points = _isoflop(budget["flops"], law, plan["max_tokens"])
    if points:
        best = law.optimum(budget["flops"], plan["max_tokens"]).parameters
        page += "\n\n" + show.loss_curve(points, f"Loss by {law.name} at this budget, by size of model", best)
    if words.plot is not None:
        from ingot.planning.pictures import plot_budget

        plot_budget(budget["flops"], find_laws(words.law or list(LAWS)), words.plot)
        page += f"\n\npicture: {words.plot}"
    return plan, page


def _isoflop(flops: float, law: Any, max_tokens: float | None, num_points: int = 60) -> list[tuple[float, float]]:
    """Loss against parameters at one budget, a factor of eight to both sides of the best; empty without losses."""
    best = law.optimum(flops, max_tokens).parameters
    sizes = [best * 8 ** (2 * i / (num_points - 1) - 1) for i in range(num_points)]
    points = [(n, law.loss(n, min(flops / 6 / n, max_tokens or math.inf))) for n in sizes]
    return [] if points[0][1] is None else points


def _grid(words: Namespace) -> tuple[dict[str, Any], str]:
    from ingot.planning.grid import plan_grid

    plan = plan_grid(words, machine_of(words))
    return plan, show.grid_page(plan)


def _sweep(words: Namespace, _: Sequence[str], load: Loader) -> tuple[dict[str, Any], str]:
    from ingot.planning.sweep import sweep_command

    return sweep_command(
        words.config, words.flops, words.models, words.out, load, dry_run=words.dry_run, law=words.law,
        tokens_per_parameter=words.tokens_per_parameter, spacing=words.spacing, rate_power=words.rate_power,
    )  # fmt: skip


def _fit(words: Namespace) -> tuple[dict[str, Any], str]:
    from ingot.planning.fit import fit_command

    plan = fit_command(words.runs, words.out, bootstrap=words.bootstrap, seed=words.seed, check=words.check)
    return plan, (words.out / "report.md").read_text(encoding="utf-8")


def _write(words: Namespace) -> tuple[dict[str, Any], str]:
    from ingot.planning.write import write_recipes

    return write_recipes(words, machine_of(words))


_RECIPE_COMMANDS = {"model": _model, "mfu": _mfu, "sweep": _sweep}
_COMMANDS = {"budget": _budget, "grid": _grid, "fit": _fit, "write": _write}
