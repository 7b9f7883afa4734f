"""The FLOPs of a training token, against published figures and against a count of the operations."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ingot.planning.flops import training_flops_per_token
from modeling import IngotConfig, IngotForCausalLM

FLAGSHIP: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "qk_norm": False,
}  # fmt: skip
LLAMA_7B: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "qk_norm": False,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip


def num_parameters(config: IngotConfig) -> int:
    with torch.device("meta"):
        return IngotForCausalLM(config).num_parameters()


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 1_830_389_760),
        ({"qk_norm": True}, 1_830_395_904),
        ({"tie_word_embeddings": True}, 1_519_224_832),
        ({"vocab_size": 151_643}, 1_829_189_632),
    ],
)
def test_flagship(changes: dict[str, Any], parameters: int) -> None:
    config = IngotConfig(**{**FLAGSHIP, **changes})
    assert num_parameters(config) == parameters
    table = 0 if config.tie_word_embeddings else config.vocab_size * 2048
    expected = 6 * (parameters - table) + 12 * 24 * 2048 * 2048
    assert training_flops_per_token(parameters, config, 2048) == expected


def test_llama_7b_in_the_palm_convention() -> None:
    config = IngotConfig(**LLAMA_7B)
    parameters = num_parameters(config)
    assert parameters == 6_738_415_616
    flops = training_flops_per_token(parameters, config, 2048)
    assert flops == 6 * (6_738_415_616 - 32_000 * 4096) + 12 * 32 * 4096 * 2048
    assert flops / 1e9 == pytest.approx(42.86, abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48, "mlp_only_layers": [0]},
    ],
)
def test_the_formula_is_three_times_the_counted_forward_pass(changes: dict[str, Any]) -> None:
    # plain matrix products, which the counter knows
    config = IngotConfig(**{**SMALL, **changes}, attn_implementation="eager", experts_implementation="eager")
    model = IngotForCausalLM(config).eval()
    ids = torch.arange(32).view(1, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    expected = training_flops_per_token(model.num_parameters(), config, 32)
    assert 3 * counter.get_total_flops() / 32 == pytest.approx(expected, rel=0.02)  # the formula counts norms, too
