"""Budgets: compute from GPUs and hours, the best split of it, and what limits it."""

from argparse import Namespace
from typing import Any

import pytest

from ingot.planning.budget import budget_of, plan_budget
from ingot.planning.hardware import find_gpu
from ingot.planning.machine import Machine
from ingot.recipe import InputError


def words(**changes: Any) -> Namespace:
    return Namespace(**{"flops": None, "hours": 720.0, "gpus": 8, "mfu": 0.45, **changes})


MACHINE = Machine(find_gpu("h100"), 8, "ddp", usd_per_gpu_hour=2.0)


def test_a_month_of_eight_gpus() -> None:
    budget = budget_of(words(), MACHINE)
    assert budget["flops"] == pytest.approx(9.2286e21, rel=1e-5)
    assert (budget["hours"], budget["gpu_hours"], budget["usd"]) == pytest.approx((720.0, 5760.0, 11520.0))


def test_compute_that_is_given_becomes_hours_where_the_gpu_is_known() -> None:
    budget = budget_of(words(flops=9.2285568e21, hours=None), MACHINE)
    assert budget["hours"] == pytest.approx(720.0)
    assert budget_of(words(flops=1e21, hours=None), Machine(None))["hours"] is None


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({"flops": 1e21}, MACHINE, "--flops: also --hours"),
        ({"hours": None}, MACHINE, "--hours: missing"),
        ({}, Machine(None), "--gpu: missing"),
    ],
)
def test_half_a_budget_is_refused(changes: dict[str, Any], machine: Machine, message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget_of(words(**changes), machine)


def test_every_law_is_shown_with_the_spread_between_them() -> None:
    plan = plan_budget(budget_of(words(), MACHINE))
    assert list(plan["optimal"]) == ["besiroglu", "hoffmann", "hoffmann_rounded", "kaplan", "rule_of_thumb"]
    best = plan["optimal"]["besiroglu"]
    assert round(best["tokens_per_parameter"], 1) == 20.4
    assert 6 * best["parameters"] * best["tokens"] == pytest.approx(9.2286e21, rel=1e-4)
    sizes = [found["parameters"] for found in plan["optimal"].values()]
    assert plan["spread"]["parameters"] == pytest.approx(max(sizes) / min(sizes))


def test_text_that_runs_out_makes_the_model_larger_and_says_so() -> None:
    plan = plan_budget(budget_of(words(), MACHINE), ["besiroglu"], dataset_tokens=30e9, max_epochs=2)
    best = plan["optimal"]["besiroglu"]
    assert best["limited_by_text"] and best["tokens"] == 60e9
    assert best["parameters"] == pytest.approx(9.2286e21 / 6 / 60e9, rel=1e-4)


def test_a_fixed_model_reads_all_that_the_budget_buys() -> None:
    plan = plan_budget(budget_of(words(), MACHINE), ["besiroglu"], parameters=6_738_415_616)
    fixed = plan["fixed_model"]
    assert fixed["tokens"] == pytest.approx(228.3e9, rel=1e-3)
    assert plan_budget(budget_of(words(), MACHINE), None, 1e9, 1.0, 6.7e9)["fixed_model"]["tokens"] == 1e9
