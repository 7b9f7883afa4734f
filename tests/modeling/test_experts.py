"""Mixture of experts: routing, shared expert and load-balancing loss against the plainest code for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from modeling.modeling_ingot import IngotSparseMoeBlock, load_balancing_loss

Make = Callable[..., Any]
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def token_by_token(block: IngotSparseMoeBlock, hidden_states: torch.Tensor, normalise: bool) -> torch.Tensor:
    """One token and one expert at a time."""
    rows = []
    for token in hidden_states.flatten(0, 1):
        probabilities = (block.gate.weight @ token).softmax(0)
        weights, chosen = probabilities.topk(2)
        weights = weights / weights.sum() if normalise else weights
        row = torch.zeros_like(token)
        for weight, expert in zip(weights, chosen, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ token).chunk(2)
            row = row + weight * (block.experts.down_proj[expert] @ (F.silu(gate) * up))
        if block.shared_expert is not None:
            row = row + torch.sigmoid(block.shared_expert_gate.weight @ token) * block.shared_expert(token)
        rows.append(row)
    return torch.stack(rows).view_as(hidden_states)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize("changes", [{}, {"norm_topk_prob": True}, {"shared_expert_intermediate_size": 16}], ids=str)
def test_equals_a_loop_over_tokens(tiny: Make, implementation: str, changes: dict[str, Any]) -> None:
    model = tiny(**EXPERTS, **changes, experts_implementation=implementation)
    block = model.model.layers[0].mlp
    hidden_states = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    expected = token_by_token(block, hidden_states, changes.get("norm_topk_prob", False))
    torch.testing.assert_close(block(hidden_states)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_gradients_in_bfloat16(tiny: Make, tokens: Make, implementation: str) -> None:
    ids, gradients = tokens(2, 9), {}
    for autocast in (False, True):
        model = tiny(**EXPERTS, experts_implementation=implementation).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            model(ids, labels=ids).loss.backward()
        gradients[autocast] = model.model.layers[1].mlp.experts.gate_up_proj.grad
    assert gradients[True].dtype == torch.float32
    assert F.cosine_similarity(gradients[True].flatten(), gradients[False].flatten(), dim=0) > 0.97


def test_load_balancing_loss(tiny: Make, tokens: Make) -> None:
    even = torch.zeros(6, 3)
    even[range(6), [0, 1, 2, 0, 1, 2]] = 50.0
    torch.testing.assert_close(load_balancing_loss((even, even), 1, None), torch.tensor(1.0))
    crowded = torch.zeros(6, 3)
    crowded[:, 1] = 50.0
    torch.testing.assert_close(load_balancing_loss((crowded,), 1, None), torch.tensor(3.0))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(load_balancing_loss((torch.cat([even[:3], crowded[:3]]),), 1, mask), torch.tensor(1.0))


def test_load_balancing_loss_equals_the_library(tiny: Make) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    generator = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(12, 5, generator=generator) for _ in range(3))
    mask = (torch.rand(2, 6, generator=generator) > 0.3).long()
    for rows in (None, mask):
        expected = load_balancing_loss_func(logits, 5, 2, rows)
        torch.testing.assert_close(load_balancing_loss(logits, 2, rows), expected)


def test_training_balances_and_evaluation_does_not(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(**EXPERTS, router_aux_loss_coef=0.5), tokens(2, 9)
    evaluated, asked = model(ids, labels=ids), model(ids, labels=ids, output_router_logits=True)
    assert evaluated.aux_loss is None
    torch.testing.assert_close(asked.loss, evaluated.loss + 0.5 * asked.aux_loss)
    assert len(asked.router_logits) == 2 and asked.router_logits[0].shape == (18, 5)
    model.train()
    torch.testing.assert_close(model(ids, labels=ids).loss, asked.loss)
    model.config.router_aux_loss_coef = 0.0
    torch.testing.assert_close(model(ids, labels=ids).loss, evaluated.loss)


def test_which_layers_are_sparse(tiny: Make) -> None:
    model = tiny(**EXPERTS, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[1])
    assert [isinstance(layer.mlp, IngotSparseMoeBlock) for layer in model.model.layers] == [False, False, False, True]
