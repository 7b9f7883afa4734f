"""Parameters by component equal those of the real model, for Ingot's configurations and for models of transformers."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ingot.planning.architecture import Architecture, architecture_of_config
from ingot.planning.inspect_model import LATENT, RECURRENT, REPEATED, TOWERS, count, read_config
from ingot.planning.plan import kv_cache_bytes_per_token
from ingot.recipe import InputError
from modeling import IngotConfig, IngotForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 32,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
INGOT = {
    "dense": {},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 32},
    "llama": {"qk_norm": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gpt2": {"position_embedding_type": "learned", "norm_type": "layer_norm", "mlp_gated": False, "qk_norm": False},
    "post": {"norm_position": "post"},
    "experts": EXPERTS,
    "some experts": {**EXPERTS, "mlp_only_layers": [0], "shared_expert_intermediate_size": 48},
    "every second": {**EXPERTS, "decoder_sparse_step": 2},
    "sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
}
# model type -> sizes small enough to build whole
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 96},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 96, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 24},
    "qwen3_moe": {"num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mixtral": {"num_key_value_heads": 2, "intermediate_size": 96, "num_local_experts": 4},
    "gpt2": {"n_positions": 64},
    "gemma": {"num_key_value_heads": 1, "intermediate_size": 96, "head_dim": 24},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 24},
    "gemma3_text": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 24},
    "gpt_oss": {"num_key_value_heads": 2, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4, "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    },
}  # fmt: skip


TINY: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
# model type -> sizes, and the key/value heads that each layer caches (0: it has no attention scores)
HYBRIDS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "lfm2": ({**TINY, "num_hidden_layers": 3, "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False}, [0, 2, 0]),
    "granitemoehybrid": (
        {
            **TINY, **MAMBA, "num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 64,
        },
        [0, 2],
    ),
    "bamba": ({**TINY, **MAMBA, "num_hidden_layers": 2, "attn_layer_indices": [1]}, [0, 2]),
    "falcon_h1": ({**TINY, **MAMBA, "num_hidden_layers": 2, "mamba_d_ssm": 128, "head_dim": 16}, [2, 2]),
    "qwen3_next": (
        {
            **TINY, "num_hidden_layers": 4, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
            "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        },
        [0, 0, 0, 2],
    ),
    "jamba": (
        {
            **TINY, "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 8,
        },
        [0, 0, 2, 0],
    ),
}  # fmt: skip


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("changes", INGOT.values(), ids=INGOT.keys())
def test_the_closed_form_counts_what_the_model_has(changes: dict[str, Any]) -> None:
    config = IngotConfig(**{**SMALL, **changes})
    found = architecture_of_config(config)
    with torch.device("meta"):
        model = IngotForCausalLM(config)
    assert found.total == sum(found.parameters.values()) == model.num_parameters()
    assert found.parameters["attention"] == sum(
        p.numel() for n, p in model.named_parameters() if "self_attn" in n and "norm" not in n
    )
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert found.parameters.get("experts", 0) == experts
    assert found.total - found.active == experts * 6 // 8


@pytest.mark.parametrize("changes", INGOT.values(), ids=INGOT.keys())
def test_reading_the_modules_describes_an_ingot_model_as_the_closed_form_does(changes: dict[str, Any]) -> None:
    config = IngotConfig(**{**SMALL, **changes})
    closed, read = architecture_of_config(config), count(config)
    assert closed.parameters == read.parameters and closed.active == read.active
    for one, other in zip(closed.layers, read.layers, strict=True):
        for name in ("vector_parameters", "num_key_value_heads", "ffn_width", "gated", "window", "qk_norm", "kind"):
            assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_transformers_are_counted(family: str) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES[family]})
    found, model = count(config), on_meta(config)
    assert found.total == sum(found.parameters.values()) == model.num_parameters()
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    inner = FAMILIES[family].get("intermediate_size", 0)
    width = {"gpt2": 256, "qwen3_moe": 64, "mixtral": 192, "gpt_oss": 128, "deepseek_v3": 96}.get(family, inner)
    assert found.layers[-1].ffn_width == width
    assert found.layers[0].gated == (family != "gpt2")


def of(family: str, **values: Any) -> Architecture:
    return count(AutoConfig.for_model(family, **values))


def test_published_sizes() -> None:
    assert of("llama").total == 6_738_415_616
    qwen = of(
        "qwen3", vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    assert qwen.total == 1_720_574_976
    qwen15 = of(
        "qwen2", vocab_size=151_936, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=16,
    )  # fmt: skip
    assert qwen15.total == 1_836_828_672


def test_deepseek_v3() -> None:
    found = of("deepseek_v3")
    assert found.total == 671_026_404_352
    assert found.buffers == 14_848 and found.total + found.buffers == 671_026_419_200
    assert found.active + found.buffers == 37_552_297_472
    assert found.active - found.input_embedding == pytest.approx(36.63e9, abs=0.005e9)


FLAGSHIP: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "qk_norm": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"vocab_size": 151_643}, 1_829_189_632),
        ({}, 1_830_389_760),
        ({"vocab_size": 151_643, "qk_norm": True}, 1_829_195_776),
        ({"qk_norm": True}, 1_830_395_904),
        ({"vocab_size": 151_643, "tie_word_embeddings": True}, 1_518_624_768),
        ({"tie_word_embeddings": True}, 1_519_224_832),
        ({"tie_word_embeddings": True, "qk_norm": True}, 1_519_230_976),
    ],
)
def test_the_flagship(changes: dict[str, Any], parameters: int) -> None:
    assert architecture_of_config(IngotConfig(**{**FLAGSHIP, **changes})).total == parameters


@pytest.mark.parametrize(
    ("family", "message"),
    [("t5", "encoder and decoder"), ("mamba", "no attention heads"), ("vit", "not a causal language model")],
)
def test_other_kinds_of_model_are_refused(family: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of(family)


def test_a_config_file_is_read_or_refused_by_name(tmp_path: Any) -> None:
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    assert count(read_config(tmp_path)).total == count(read_config(tmp_path / "config.json")).total == 124_439_808
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: .*gpt9"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_layer_without_scores_caches_nothing(family: str) -> None:
    sizes, groups = HYBRIDS[family]
    config = AutoConfig.for_model(family, **sizes)
    found = count(config)
    assert found.total == on_meta(config).num_parameters()
    assert [layer.num_key_value_heads for layer in found.layers] == groups
    assert [layer.num_heads for layer in found.layers] == [4 if n else 0 for n in groups]
    assert kv_cache_bytes_per_token(found) == 2 * 2 * 16 * sum(groups)
    assert found.parameters["recurrent"] > 0
    assert (RECURRENT in found.notes) == (family != "lfm2")  # its convolutions are counted


def test_multi_query_attention_has_one_head_of_keys() -> None:
    falcon = of("falcon")  # 7B
    assert {layer.num_key_value_heads for layer in falcon.layers} == {1}
    assert kv_cache_bytes_per_token(falcon) == 8192
    grouped = of("falcon", new_decoder_architecture=True, num_attention_heads=8, num_kv_heads=2, hidden_size=64)
    assert {layer.num_key_value_heads for layer in grouped.layers} == {2}


def test_a_shared_block_is_counted_once() -> None:
    zamba = of("zamba2")
    assert zamba.total == 2_481_848_336
    assert sum(layer.num_heads > 0 for layer in zamba.layers) == 9
    assert zamba.multiplied > zamba.active and REPEATED in zamba.notes


def test_other_tables_and_towers_are_components_of_their_own() -> None:
    gemma = of("gemma3n_text")
    assert gemma.parameters["other_embeddings"] == 262_144 * 35 * 256
    assert [layer.num_key_value_heads for layer in gemma.layers] == [2] * 20 + [0] * 15  # the last use earlier keys
    assert gemma.multiplied == gemma.active - gemma.other_embeddings
    sighted = of("gemma3")
    text = count(AutoConfig.for_model("gemma3").get_text_config())
    assert sighted.towers == sighted.parameters["other"] > 0.9 * (sighted.total - text.total)
    assert sighted.multiplied == text.multiplied and sighted.active == text.active and TOWERS in sighted.notes
    ant = of("cpmant")  # its head has fewer rows than its table
    assert min(ant.parameters.values()) > 0 and ant.head < ant.input_embedding


def test_the_cache_of_latent_attention() -> None:
    deepseek = of("deepseek_v3")
    assert kv_cache_bytes_per_token(deepseek) == 61 * 128 * (192 + 128) * 2  # as transformers keeps it
    assert kv_cache_bytes_per_token(deepseek, latent=True) == 61 * (512 + 64) * 2
    assert LATENT in deepseek.notes


def test_heads_of_different_width_in_one_model() -> None:
    gemma = of("gemma4_text", num_hidden_layers=6)
    assert [layer.qk_head_dim for layer in gemma.layers] == [256] * 5 + [512]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llava", "a multimodal model; name its text configuration"),
        ("qwen2_5_vl", "a multimodal model; name its text configuration"),
        ("nemotron", "cannot build this model"),
        ("ministral", "cannot build this model"),
        ("longcat_flash", "no list of 56 layers"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(family: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        of(family)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
