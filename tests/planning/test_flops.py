"""The FLOPs of a token, against published figures and against a count of the operations."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import forward_flops_by_part, forward_flops_per_token, training_flops_per_token
from ingot.planning.inspect_model import count
from modeling import IngotConfig, IngotForCausalLM

from .test_architecture import EXPERTS, FAMILIES, FLAGSHIP, HYBRIDS, SMALL


@pytest.mark.parametrize(
    ("convention", "gigaflop"), [("non_causal", 42.86), ("causal", 41.25), ("6n", 40.43), ("palm", 42.08)]
)
def test_llama_7b(convention: Any, gigaflop: float) -> None:
    llama = count(AutoConfig.for_model("llama"))
    assert round(training_flops_per_token(llama, 2048, convention) / 1e9, 2) == gigaflop


@pytest.mark.parametrize("tied", [False, True])
def test_the_convention_of_every_mfu(tied: bool) -> None:
    flagship = architecture_of_config(IngotConfig(**{**FLAGSHIP, "qk_norm": True, "tie_word_embeddings": tied}))
    counted = flagship.total - (0 if tied else 151_936 * 2048)  # a tied table is the head, too
    assert training_flops_per_token(flagship, 2048) == 6 * counted + 12 * 24 * 2048 * 2048
    assert forward_flops_per_token(flagship, 2048) * 3 == training_flops_per_token(flagship, 2048)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 32},
        {"attention_bias": True, "mlp_bias": True},
        {"mlp_gated": False, "norm_type": "layer_norm", "position_embedding_type": "learned"},
        EXPERTS,
        {**EXPERTS, "mlp_only_layers": [0], "shared_expert_intermediate_size": 48},
    ],
)
def test_forward_flops_are_those_that_are_counted(changes: dict[str, Any]) -> None:
    # plain matrix products, which the counter knows
    config = IngotConfig(**{**SMALL, **changes}, attn_implementation="eager", experts_implementation="eager")
    model = IngotForCausalLM(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(32).view(1, 32), use_cache=False)
    parts = forward_flops_by_part(architecture_of_config(config), 32, causal=False)
    assert sum(parts.values()) == pytest.approx(counter.get_total_flops() / 32, rel=0.001)


@pytest.mark.parametrize("part", ["attention_projections", "attention_scores", "feed_forward", "head"])
def test_every_part_is_what_its_module_is_counted_to_do(part: str) -> None:
    config = IngotConfig(**SMALL, attn_implementation="eager")
    model = IngotForCausalLM(config).eval()
    with FlopCounterMode(display=False, depth=6) as counter, torch.no_grad():
        model(torch.arange(32).view(1, 32), use_cache=False)
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    name = "IngotForCausalLM"
    attention = sum(counts[f"{name}.model.layers.{i}.self_attn"] for i in range(3))
    projections = sum(counts[f"{name}.model.layers.{i}.self_attn.{p}_proj"] for i in range(3) for p in "qkvo")
    measured = {
        "attention_projections": projections,
        "attention_scores": attention - projections,
        "feed_forward": sum(counts[f"{name}.model.layers.{i}.mlp"] for i in range(3)),
        "head": counts[f"{name}.lm_head"],
    }
    assert forward_flops_by_part(architecture_of_config(config), 32, causal=False)[part] * 32 == measured[part]


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_training_costs_three_forward_passes(changes: dict[str, Any]) -> None:
    config = IngotConfig(**{**SMALL, **changes}, attn_implementation="eager", loss_implementation="plain")
    model = IngotForCausalLM(config).train()
    ids = torch.arange(32).view(1, 32)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids, use_cache=False).loss.backward()
    expected = training_flops_per_token(architecture_of_config(config), 32, "non_causal")
    assert counter.get_total_flops() / 32 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma", "deepseek_v3"])
def test_models_of_transformers(family: str) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(32).view(1, 32), use_cache=False)
    expected = sum(forward_flops_by_part(count(config), 32, causal=False).values())
    assert counter.get_total_flops() / 32 == pytest.approx(expected, rel=0.01)


def test_a_window_bounds_what_a_token_sees() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    whole, window = (architecture_of_config(IngotConfig(**{**SMALL, **c})) for c in ({}, sliding))
    scores = "attention_scores"
    assert (
        forward_flops_by_part(window, 32, causal=False)[scores] * 4
        == forward_flops_by_part(whole, 32, causal=False)[scores]
    )
    # tokens 1 to 8 see 4 others on average, the other 24 see 8: 7 of the 16 of full attention
    assert forward_flops_by_part(window, 32)[scores] * 16 == forward_flops_by_part(whole, 32)[scores] * 7


@pytest.mark.parametrize("family", ["falcon", "lfm2"])
def test_multi_query_and_convolutional_layers(family: str) -> None:
    falcon = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **(falcon if family == "falcon" else HYBRIDS[family][0]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(32).view(1, 32), use_cache=False)
    expected = sum(forward_flops_by_part(count(config), 32, causal=False).values())
    assert counter.get_total_flops() / 32 == pytest.approx(expected, rel=0.01)


def test_scores_of_a_hybrid_are_those_of_its_attention_layers() -> None:
    found = count(AutoConfig.for_model("jamba", **HYBRIDS["jamba"][0]))
    assert forward_flops_by_part(found, 32, causal=False)["attention_scores"] == 4 * 64 * 32  # of one layer in four


def test_n_is_what_a_token_multiplies() -> None:
    gemma = count(AutoConfig.for_model("gemma3n_text"))
    tables = gemma.parameters["other_embeddings"]
    assert training_flops_per_token(gemma, 2048, "6n") == 6 * (gemma.total - tables)
