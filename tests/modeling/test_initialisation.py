"""Initial weights have the standard deviations that the configuration asks for."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]
BIG = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def deviations(model: Any) -> dict[str, float]:
    """Standard deviation by the last part of a weight's name, over all layers."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, weight in model.named_parameters():
        groups.setdefault(name.removesuffix(".weight").split(".")[-1], []).append(weight.detach().flatten())
    return {name: torch.cat(weights).std(correction=0).item() for name, weights in groups.items()}


def close(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=0.03)


def test_normal(tiny: Make) -> None:
    found = deviations(tiny(**BIG, initializer_range=0.02))
    for name in (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
        "embed_tokens",
    ):
        assert close(found[name], 0.02), (name, found[name])
    assert found["input_layernorm"] == 0.0


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
def test_scaled_normal_shrinks_what_enters_the_residual_stream(tiny: Make, experts: dict[str, Any]) -> None:
    found = deviations(tiny(**BIG, **experts, initializer_range=0.02, initializer_method="scaled_normal"))
    assert close(found["o_proj"], 0.02 / 4) and close(found["down_proj"], 0.02 / 4)  # sqrt(2 * 8 layers) = 4
    assert close(found["q_proj"], 0.02) and close(found["gate_up_proj" if experts else "up_proj"], 0.02)


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
def test_fan_in(tiny: Make, experts: dict[str, Any]) -> None:
    found = deviations(tiny(**BIG, **experts, initializer_range=0.02, initializer_method="fan_in"))
    inner = 64 if experts else 256
    assert close(found["q_proj"], 128**-0.5) and close(found["down_proj"], inner**-0.5)
    assert close(found["embed_tokens"], 0.02)


def test_embedding_and_untied_head(tiny: Make) -> None:
    found = deviations(tiny(**BIG, embedding_initializer_range=1.0, lm_head_initializer_range=0.003))
    assert close(found["embed_tokens"], 1.0) and close(found["lm_head"], 0.003)
    assert close(found["q_proj"], 0.2)


def test_small_tied_embedding_keeps_unit_inputs_and_small_logits(tiny: Make, tokens: Make) -> None:
    width = BIG["hidden_size"]
    model = tiny(
        **BIG,
        initializer_range=0.02,
        tie_word_embeddings=True,
        embedding_initializer_range=width**-0.5,
        embedding_multiplier=width**0.5,
        logit_scale=0.5,
    )
    ids = tokens(2, 16)
    hidden = model.model(ids, output_hidden_states=True).hidden_states
    assert close(hidden[0].std().item(), 1.0)
    plain = model.lm_head(hidden[-1])
    torch.testing.assert_close(model(ids).logits, 0.5 * plain)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [False, True])
def test_the_padding_row_starts_and_learns_like_every_other(tied: bool, tiny: Make, tokens: Make) -> None:
    # with Qwen3's tokenizer the padding token also ends documents
    model = tiny(pad_token_id=3, tie_word_embeddings=tied).train()
    table = model.model.embed_tokens.weight
    assert 0.5 < float(table[3].std() / table.std()) < 2
    ids = tokens(2, 16)
    ids[:, 4] = 3
    model(ids, labels=ids).loss.backward()
    assert table.grad[3].abs().max() > 0


def test_dropout_acts_in_training_only(tiny: Make, tokens: Make) -> None:
    ids = tokens(2, 16)
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        model = tiny(**{name: 0.5})
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits), name


def test_norm_positions_differ_in_norms_and_in_output(tiny: Make, tokens: Make) -> None:
    pre, post = tiny(norm_position="pre"), tiny(norm_position="post")
    assert "model.norm.weight" in pre.state_dict() and "model.norm.weight" not in post.state_dict()
    hidden = post.model(tokens(2, 9)).last_hidden_state
    torch.testing.assert_close(hidden.square().mean(-1), torch.ones(2, 9), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu2"])
def test_ungated_feed_forward(tiny: Make, tokens: Make, act: str) -> None:
    mlp = tiny(hidden_act=act, mlp_gated=False).model.layers[0].mlp
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    up = hidden @ mlp.up_proj.weight.t()
    inner = {
        "gelu": torch.nn.functional.gelu(up),
        "gelu_new": torch.nn.functional.gelu(up, approximate="tanh"),
        "relu2": up.relu().square(),
    }[act]
    torch.testing.assert_close(mlp(hidden), inner @ mlp.down_proj.weight.t())
    assert mlp.gate_proj is None


def test_heads_may_be_shared_by_all_queries(tiny: Make, tokens: Make) -> None:
    for kv_heads in (1, 2, 4):
        model = tiny(num_key_value_heads=kv_heads)
        assert model.model.layers[0].self_attn.k_proj.weight.shape == (8 * kv_heads, 32)
        assert model(tokens(1, 5)).logits.shape == (1, 5, 96)
