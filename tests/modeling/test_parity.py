"""The default parts are Qwen3, and others Llama, GPT-2 and Qwen3-MoE: equal logits and text after copying weights."""

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from modeling import IngotConfig, IngotForCausalLM

SIZE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}


def assert_same(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Logits within 1e-5, the loss, and the same greedy text."""
    ours, theirs = ours.eval(), theirs.eval()
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mine, other = ours(ids, labels=ids), theirs(ids, labels=ids)
    assert (mine.logits - other.logits).abs().max() < 1e-5
    assert other.logits.std() > 0.1
    torch.testing.assert_close(mine.loss, other.loss, rtol=0, atol=1e-5)
    text = ours.generate(ids[:, :6], min_new_tokens=20, max_new_tokens=20)
    assert torch.equal(text, theirs.generate(ids[:, :6], min_new_tokens=20, max_new_tokens=20))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("changes", [{}, {"head_dim": 16}, {"attention_bias": True}, SLIDING])
def test_qwen3(changes: dict[str, Any], tied: bool) -> None:
    torch.manual_seed(0)
    size = {"head_dim": 8, **SIZE, **changes, "tie_word_embeddings": tied}
    theirs = Qwen3ForCausalLM(Qwen3Config(**size))
    ours = IngotForCausalLM(IngotConfig(**size))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs)


def test_default_configuration_is_qwen3() -> None:
    ours, theirs = IngotConfig().to_dict(), Qwen3Config().to_dict()
    same_name = set(ours) & set(theirs) - {"model_type"}
    assert {name: ours[name] for name in same_name} == {name: theirs[name] for name in same_name}
    assert set(theirs) <= set(ours)


@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "yarn", "llama3", "longrope"])
def test_llama(rope_type: str) -> None:
    extra = {
        "default": {},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16},
    }[rope_type]
    torch.manual_seed(0)
    size = {**SIZE, "rope_parameters": {"rope_type": rope_type, "rope_theta": 5e5, **extra}, "rms_norm_eps": 1e-5}
    theirs = LlamaForCausalLM(LlamaConfig(**size))
    ours = IngotForCausalLM(IngotConfig(**size, qk_norm=False))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "changes", [{}, {"norm_topk_prob": True}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}]
)
def test_qwen3_moe(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    size = {**SIZE, **EXPERTS, **changes}
    theirs = Qwen3MoeForCausalLM(Qwen3MoeConfig(**size, head_dim=8))
    ours = IngotForCausalLM(IngotConfig(**size))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs)
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(2))
    mine, other = (model(ids, labels=ids, output_router_logits=True) for model in (ours, theirs))
    torch.testing.assert_close(mine.loss, other.loss)
    torch.testing.assert_close(mine.aux_loss, other.aux_loss)


def test_shared_expert_is_qwen2_moe() -> None:
    torch.manual_seed(0)
    size = {**SIZE, **EXPERTS, "shared_expert_intermediate_size": 40}
    theirs = Qwen2MoeForCausalLM(Qwen2MoeConfig(**size, qkv_bias=False))
    ours = IngotForCausalLM(IngotConfig(**size, qk_norm=False))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same(ours, theirs)


def gpt2_weights(theirs: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """GPT-2's state dict under Ingot's names: fused projections split, transposed weights turned."""
    weights = {}
    names = {"transformer.h.": "model.layers.", "transformer.ln_f": "model.norm"}
    names |= {"transformer.wte": "model.embed_tokens", "transformer.wpe": "model.embed_positions"}
    names |= {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
    names |= {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    for name, weight in theirs.state_dict().items():
        for theirs_name, our_name in names.items():
            name = name.replace(theirs_name, our_name)
        if weight.dim() == 2 and (".attn." in name or "self_attn" in name or ".mlp." in name):
            weight = weight.t()
        if "attn.c_attn" in name:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                weights[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = piece
            continue
        weights[name] = weight
    return weights


def test_gpt2() -> None:
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    without_rope = {name: value for name, value in SIZE.items() if name != "rope_parameters"}
    config = IngotConfig(
        **{**without_rope, "intermediate_size": 128, "num_key_value_heads": 4},
        **{"position_embedding_type": "learned", "norm_type": "layer_norm", "rms_norm_eps": 1e-5, "qk_norm": False},
        **{"hidden_act": "gelu_new", "mlp_gated": False, "mlp_bias": True, "attention_bias": True},
        tie_word_embeddings=True,
    )
    ours = IngotForCausalLM(config)
    ours.load_state_dict(gpt2_weights(theirs), strict=True)
    theirs.generation_config = ours.generation_config
    assert_same(ours, theirs)
