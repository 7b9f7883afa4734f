"""Wrong hyperparameters are refused by name; saved ones load, also from a newer library."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as library_logging

from modeling import IngotConfig

Make = Callable[..., IngotConfig]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_hiden_layers": 3}, "num_hiden_layers: no such field of IngotConfig; did you mean 'num_hidden_layers'"),
        ({"qk_nrom": True}, "did you mean 'qk_norm'"),
        ({"temperature": 0.5}, "temperature: no such field"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({"num_key_value_heads": 8}, "num_key_value_heads 8 does not divide num_attention_heads 4"),
        ({"head_dim": 7}, "head_dim is 7; RoPE turns pairs"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1"),
        ({"pad_token_id": 96}, "pad_token_id is 96, outside a vocabulary of 96"),
        ({"eos_token_id": [2, 100]}, "eos_token_id is 100, outside"),
        ({"sliding_window": 8}, "sliding_window is 8 but use_sliding_window is false"),
        ({"use_sliding_window": True, "max_window_layers": 0}, "use_sliding_window needs sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 8}, "no layer slides: lower max_window_layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window is false"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for num_hidden_layers 2"),
        ({"layer_types": ["full_attention", "slide_attention"]}, "'slide_attention' is not one of"),
        ({"rope_parameters": {"rope_type": "yam"}}, "rope_type is 'yam'; there are default, linear"),
        (
            {"rope_parameters": {"rope_tehta": 1e4}},
            "rope_parameters.rope_tehta: no such key; did you mean 'rope_theta'",
        ),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta is 1000000.0 but rope_parameters"),
        ({"rope_theta": 1e6, "position_embedding_type": "none"}, "rope_theta: position_embedding_type is 'none'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "sillu"}, "hidden_act is 'sillu'; did you mean 'silu'"),
        ({"num_experts_per_tok": 2}, "num_experts_per_tok is 2 but num_experts is 0"),
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8 but num_experts is 0"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef and output_router_logits need num_experts"),
        ({"num_experts": 4}, "num_experts_per_tok must be given"),
        ({**EXPERTS, "decoder_sparse_step": 0}, "decoder_sparse_step is 0; it must be at least 1"),
        ({**EXPERTS, "num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than num_experts 4"),
        ({**EXPERTS, "mlp_gated": False}, "num_experts needs mlp_gated true"),
        ({**EXPERTS, "mlp_only_layers": [2]}, "there is no layer 2, only 0 to 1"),
        ({**EXPERTS, "mlp_only_layers": [0, 1]}, "leave no sparse layer"),
        ({"residual_dropout": 1.0}, "residual_dropout is 1.0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0; it must be above 0"),
        ({"tie_word_embeddings": True, "lm_head_initializer_range": 0.1}, "set embedding_initializer_range instead"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused_by_name(config: Make, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        config(**wrong)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": "32"}, {"norm_type": "rmsnorm"}, {"qk_norm": "no"}, {"position_embedding_type": "rotary"}],
)
def test_wrong_types_are_refused_by_name(config: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{next(iter(wrong))}'"):
        config(**wrong)


def test_all_problems_come_at_once(config: Make) -> None:
    with pytest.raises(ValueError, match="sliding_window is 8.*num_attention_heads 5.*hidden_act is 'sillu'"):
        config(num_attention_heads=5, num_key_value_heads=None, sliding_window=8, hidden_act="sillu")


def test_a_config_changed_for_the_worse_is_not_saved(config: Make, tmp_path: Path) -> None:
    changed = config()
    changed.num_key_value_heads = 3
    with pytest.raises(Exception, match="num_key_value_heads 3 does not divide"):
        changed.save_pretrained(tmp_path)


def test_defaults_that_depend_on_others(config: Make) -> None:
    made = config(num_key_value_heads=None)
    assert (made.head_dim, made.num_key_value_heads, made.layer_types) == (8, 4, ["full_attention"] * 2)
    assert made.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config(rope_theta=1e6).rope_parameters["rope_theta"] == 1e6
    assert config(position_embedding_type="alibi").rope_parameters is None
    assert config().router_aux_loss_coef == 0.0 and config(**EXPERTS).router_aux_loss_coef == 0.001
    sliding = config(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert sliding.layer_types == ["full_attention", "sliding_attention"]


def test_survives_saving(config: Make, kind: dict[str, Any], tmp_path: Path) -> None:
    saved = config(**kind)
    saved.save_pretrained(tmp_path)
    for loaded in (IngotConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        loaded.name_or_path = ""
        assert isinstance(loaded, IngotConfig)
        assert loaded.to_dict() == saved.to_dict()


def test_a_file_of_a_newer_library_loads_and_says_what_it_did_not_know(
    config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text()) | {"transformers_version": "9.0.0", "attribute_of_9": 1}
    file.write_text(json.dumps(content))
    library_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        loaded = IngotConfig.from_pretrained(tmp_path)
    library_logging.disable_propagation()
    assert loaded.hidden_size == 32 and loaded.attribute_of_9 == 1
    assert "attribute_of_9: no such field" in caplog.text


def test_common_keywords_are_known(config: Make) -> None:
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    made = config(output_hidden_states=True, num_labels=3, attn_implementation="eager", name_or_path="x")
    assert made.output_hidden_states and made.num_labels == 3 and made._attn_implementation == "eager"
    assert common < {field.name for field in dataclasses.fields(IngotConfig)}


def test_every_field_says_what_it_means() -> None:
    own = {field.name: field for field in dataclasses.fields(IngotConfig)}
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    silent = [name for name, field in own.items() if name not in inherited and not field.metadata.get("help")]
    assert not silent
