"""Tensor- and pipeline-parallel plans name modules that exist, and leave none of the projections out."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modeling

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


TWO_PROCESSES = """
import sys
import modeling, torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

dist.init_process_group("gloo")
ids = torch.randint(3, 96, (2, 300), generator=torch.Generator().manual_seed(1))
for folder in sys.argv[1:]:
    whole = AutoModelForCausalLM.from_pretrained(folder).train()
    split = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").train()
    assert isinstance(split.model.layers[0].self_attn.q_proj.weight, DTensor)
    for implementation in ("plain", "chunked"):
        for model in (whole, split):
            model.config.loss_implementation = implementation
            model.zero_grad()
        expected, found = (model(ids, labels=ids).loss for model in (whole, split))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        expected.backward()
        found.backward()
        for (name, a), (_, b) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
            if name.endswith("experts.gate_up_proj"):
                continue  # gates and ups are split one by one, which torch 2.11 cannot gather
            gradient = b.grad.full_tensor() if isinstance(b.grad, DTensor) else b.grad
            torch.testing.assert_close(gradient, a.grad, rtol=1e-3, atol=1e-5, msg=lambda text: name + text)
    print("equal", folder)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tiny: Make, tmp_path: Path) -> None:
    variants = {"dense": {"intermediate_size": 64}, "experts": {**EXPERTS, "shared_expert_intermediate_size": 16}}
    for name, changes in variants.items():
        tiny(**changes).save_pretrained(tmp_path / name)
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(tmp_path / "run.py"), *(str(tmp_path / name) for name in variants)],
        cwd=Path(modeling.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("equal") == 2 * len(variants)
