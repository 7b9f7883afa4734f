"""Tensor- and pipeline-parallel plans name modules that exist, and leave none of the projections out."""

import re
from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"mlp_gated": False, "hidden_act": "gelu"},
        EXPERTS,
        {**EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
        {"position_embedding_type": "learned", "norm_position": "post"},
    ],
    ids=str,
)
def test_tensor_parallel_plan(tiny: Make, changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    patterns = {rule: re.escape(rule).replace(r"\*", r"\d+") for rule in model.tp_plan}
    for rule, pattern in patterns.items():
        assert any(re.fullmatch(pattern, name) for name in names), f"{rule} names nothing"
    projections = {name for name in names if re.search(r"(proj|q_norm|k_norm|lm_head)$", name)}
    uncovered = [name for name in projections if not any(re.fullmatch(p, name) for p in patterns.values())]
    assert not uncovered
    styles = {rule.split(".")[-1]: style for rule, style in model.tp_plan.items()}
    assert styles["q_proj"] == "colwise" and styles["o_proj"] == styles["down_proj"] == "rowwise"


def test_alibi_has_no_tensor_parallel_plan(tiny: Make) -> None:
    assert not tiny(position_embedding_type="alibi").model.tp_plan


def test_pipeline_plan(tiny: Make) -> None:
    model = tiny()
    plan = {name.removeprefix("model.") for name in model.pp_plan}
    assert plan == {"embed_tokens", "layers", "norm", "lm_head"}
    for name in plan - {"lm_head"}:
        model.model.get_submodule(name)


def test_what_must_stay_whole_on_a_device(tiny: Make) -> None:
    model = tiny()
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names
