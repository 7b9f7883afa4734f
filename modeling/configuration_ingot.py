"""Every hyperparameter of the Ingot architecture, one line of meaning each, and the checks that refuse wrong ones.

Notable:
- field names are Qwen3Config's (Qwen3MoeConfig's, Qwen2MoeConfig's for the shared expert) wherever the thing exists
  there, and the defaults are Qwen3's: `IngotConfig()` and `Qwen3Config()` describe the same network;
- transformers accepts any keyword and drops a misspelt one; `IngotConfig(num_hiden_layers=2)` is an error that names
  the nearest field. A config.json that another version of transformers wrote may carry more, and still loads;
- all contradictions are reported in one ValueError;
- the meaning of a field is readable by programs: `dataclasses.fields(IngotConfig)[i].metadata["help"]`.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

T = TypeVar("T")
if TYPE_CHECKING:
    Filled = Annotated[T, "None may be given; a finished config holds a value"]
else:
    Filled = Optional

# Keywords that PreTrainedConfig takes beside its declared fields.
_COMMON_KEYWORDS = {
    *("attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels"),
    *("output_attentions", "partial_rotary_factor", "per_layer_config", "quantization_config", "rope_scaling"),
    *("rope_theta", "tie_last_hidden_states", "torch_dtype", "_name_or_path", "_commit_hash"),
    *("_attn_implementation_internal", "_experts_implementation_internal"),
}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),  # yarn
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),  # longrope, llama3
}
_AT_LEAST_ONE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "decoder_sparse_step"),
)
_ABOVE_ZERO = (
    *("initializer_range", "embedding_initializer_range", "lm_head_initializer_range"),
    *("embedding_multiplier", "logit_scale", "rms_norm_eps"),
)
_LAYER_TYPES = ("full_attention", "sliding_attention")
_AUTO_MAP = {
    "AutoConfig": "configuration_ingot.IngotConfig",
    "AutoModel": "modeling_ingot.IngotModel",
    "AutoModelForCausalLM": "modeling_ingot.IngotForCausalLM",
}


def _field(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


@strict
class IngotConfig(PreTrainedConfig):
    """The hyperparameters of an Ingot model; raises ValueError for unknown names and contradictory values."""

    model_type = "ingot"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    # Size
    vocab_size: int = _field(151936, "rows of the embedding and of the head")
    hidden_size: int = _field(4096, "width of the residual stream")
    intermediate_size: int = _field(22016, "width inside a dense feed-forward layer")
    num_hidden_layers: int = _field(32, "number of blocks")
    tie_word_embeddings: bool = _field(False, "the head shares the weights of the token embedding")

    # Attention
    num_attention_heads: int = _field(32, "number of query heads")
    num_key_value_heads: Filled[int] = _field(
        None, "number of key/value heads: as many as query heads (MHA, the default), fewer (GQA) or one (MQA)"
    )
    head_dim: Filled[int] = _field(None, "width of one head; default hidden_size / num_attention_heads")
    qk_norm: bool = _field(True, "normalise queries and keys of each head before attention (Qwen3: yes; Llama: no)")
    attention_bias: bool = _field(False, "biases in the four attention projections")
    use_sliding_window: bool = _field(False, "some layers see only the last sliding_window tokens")
    sliding_window: int | None = _field(None, "tokens a sliding layer sees, itself included")
    max_window_layers: int = _field(28, "with use_sliding_window and no layer_types: the first layer that slides")
    layer_types: Filled[list[str]] = _field(None, "per layer 'full_attention' or 'sliding_attention'")

    # Positions
    position_embedding_type: Literal["rope", "learned", "sinusoidal", "alibi", "none"] = _field(
        "rope", "how a token knows its place"
    )
    max_position_embeddings: int = _field(32768, "longest sequence; the number of rows for learned positions")
    rope_parameters: Filled[dict[str, Any]] = _field(
        None, "rope_type (default, linear, dynamic, yarn, longrope, llama3), rope_theta and the type's own numbers"
    )

    # Normalisation
    norm_type: Literal["rms_norm", "layer_norm"] = _field("rms_norm", "RMSNorm, or LayerNorm with bias")
    norm_position: Literal["pre", "post"] = _field(
        "pre", "pre: x + f(norm(x)), one more norm after the last block; post: norm(x + f(x)), none after the last"
    )
    rms_norm_eps: float = _field(1e-6, "epsilon of every norm, LayerNorm too")

    # Feed-forward
    hidden_act: str = _field("silu", "activation: silu, gelu, gelu_new (GPT-2), relu2 (squared ReLU), ...")
    mlp_gated: bool = _field(
        True, "down(act(gate(x)) * up(x)), SwiGLU with silu; false: down(act(up(x))), for GELU and squared ReLU"
    )
    mlp_bias: bool = _field(False, "biases in the feed-forward projections")

    # Mixture of experts
    num_experts: int = _field(0, "experts in a sparse layer; 0 makes every layer dense")
    num_experts_per_tok: Filled[int] = _field(None, "experts that each token is sent to")
    moe_intermediate_size: Filled[int] = _field(None, "width inside one expert")
    norm_topk_prob: bool = _field(False, "scale the weights of a token's experts to sum to one")
    shared_expert_intermediate_size: int = _field(0, "width of an expert that sees every token; 0 for none")
    decoder_sparse_step: int = _field(1, "every how many layers one is sparse")
    mlp_only_layers: Filled[list[int]] = _field(None, "layers that stay dense, counted from 0")
    router_aux_loss_coef: Filled[float] = _field(
        None, "weight of the load-balancing loss that training adds; default 0.001 with experts"
    )
    output_router_logits: bool = _field(
        False, "return router logits and add the load-balancing loss in evaluation too"
    )

    # Dropout
    attention_dropout: float | int = _field(0.0, "dropout on attention weights")
    residual_dropout: float | int = _field(0.0, "dropout on what a layer adds to the residual stream")
    embedding_dropout: float | int = _field(0.0, "dropout on the input of the first block")

    # Initialisation and scale
    initializer_range: float = _field(0.02, "standard deviation of the initial weights")
    initializer_method: Literal["normal", "scaled_normal", "fan_in"] = _field(
        "normal",
        "normal: initializer_range everywhere; scaled_normal: o_proj and down_proj over sqrt(2 layers), as GPT-2; "
        "fan_in: every projection 1/sqrt(inputs), initializer_range for the embeddings",
    )
    embedding_initializer_range: float | None = _field(
        None, "standard deviation of the token embedding, and of a tied head; default initializer_range"
    )
    lm_head_initializer_range: float | None = _field(
        None, "standard deviation of an untied head; default as the other weights"
    )
    embedding_multiplier: float = _field(
        1.0, "factor on the embedded tokens, such as sqrt(hidden_size) with a small tied embedding"
    )
    logit_scale: float = _field(1.0, "factor on the logits, such as 1/sqrt(hidden_size) with a large tied embedding")

    # Loss and the rest
    loss_implementation: Literal["auto", "plain", "chunked", "fused"] = _field(
        "auto",
        "plain: logits, then cross entropy; chunked: never all logits at once, any torch; fused: the same through "
        "torch's linear_cross_entropy; auto: plain while the float32 logits of a step are small",
    )
    use_cache: bool = _field(True, "keep keys and values between calls")
    pad_token_id: int | None = _field(None, "padding token")
    bos_token_id: int | None = _field(None, "first token of a text")
    eos_token_id: int | list[int] | None = _field(None, "last token of a text, or several")

    def __post_init__(self, **kwargs: Any) -> None:
        doubts = [*self._unknown(kwargs), *self._ignored()]
        problems = [*self._unreadable(kwargs)]
        self._fill_defaults()
        doubts += [*_unused_window(self)]
        problems += [*self._problems()]
        if self.transformers_version is not None and doubts:
            # A saved file: another version may have written more, and Qwen3's files name windows that are off.
            logger.warning(f"{'; '.join(doubts)} (accepted: the file is of transformers {self.transformers_version})")
            doubts = []
        if doubts + problems:
            raise ValueError("; ".join(doubts + problems))
        if not self.use_sliding_window:
            self.sliding_window = None
        # the library may add to the plan; to a type checker it is a class variable
        setattr(self, "base_model_tp_plan", _tensor_parallel_plan(self))  # noqa: B010
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None  # type: ignore[assignment]  # upstream fills it for every model
        self.auto_map = dict(_AUTO_MAP)

    def is_sparse_layer(self, layer_idx: int) -> bool:
        """Whether the feed-forward of this layer is a mixture of experts."""
        listed_dense = layer_idx in (self.mlp_only_layers or [])
        return self.num_experts > 0 and not listed_dense and (layer_idx + 1) % self.decoder_sparse_step == 0

    def validate_ingot(self) -> None:
        """Repeat the checks when a config that was changed after construction is saved."""
        problems = [*self._problems()]
        if problems:
            raise ValueError("; ".join(problems))

    def _unknown(self, kwargs: dict[str, Any]) -> Iterator[str]:
        """Misspelt keywords, which transformers would keep as attributes that nothing reads."""
        declared = {field.name for field in dataclasses.fields(self)}
        for name in sorted(set(kwargs) - _COMMON_KEYWORDS - declared):
            near = difflib.get_close_matches(name, declared | _COMMON_KEYWORDS, n=1)
            yield f"{name}: no such field of IngotConfig" + (f"; did you mean '{near[0]}'?" if near else "")

    def _ignored(self) -> Iterator[str]:
        """Values that say nothing while another field is as it is; to be read before the defaults are filled in."""
        if self.sliding_window is not None and not self.use_sliding_window:
            yield f"sliding_window is {self.sliding_window} but use_sliding_window is false: set it to true"
        for name in ("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"):
            if getattr(self, name) and self.num_experts == 0:
                yield f"{name} is {getattr(self, name)} but num_experts is 0"

    def _unreadable(self, kwargs: dict[str, Any]) -> Iterator[str]:
        """Widths and rotary parameters that cannot be made sense of; to be read before the defaults are filled in."""
        heads, width = self.num_attention_heads, self.hidden_size
        if self.head_dim is None and heads > 0 and width % heads:
            yield f"num_attention_heads {heads} does not divide hidden_size {width}: change one, or set head_dim"
        rope = {key: kwargs[key] for key in ("rope_theta", "rope_scaling") if kwargs.get(key) is not None}
        if self.rope_parameters:
            rope["rope_parameters"] = self.rope_parameters
        if rope and self.position_embedding_type != "rope":
            yield f"{', '.join(rope)}: position_embedding_type is '{self.position_embedding_type}', which has no RoPE"
        inside = {**(kwargs.get("rope_scaling") or {}), **(self.rope_parameters or {})}
        if "rope_theta" in rope and inside.get("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
            yield f"rope_theta is {rope['rope_theta']} but rope_parameters says {inside['rope_theta']}: give one"
        if kwargs.get("partial_rotary_factor") is not None:
            yield "partial_rotary_factor: Ingot rotates whole heads; leave it out"
        yield from _rope_problems(inside)

    def _fill_defaults(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None:
            slides = self.max_window_layers if self.use_sliding_window else self.num_hidden_layers
            self.layer_types = [_LAYER_TYPES[i >= slides] for i in range(self.num_hidden_layers)]
        if self.mlp_only_layers is None:
            self.mlp_only_layers = []
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.001 if self.num_experts else 0.0

    def _problems(self) -> Iterator[str]:
        yield from _size_problems(self)
        yield from _attention_problems(self)
        yield from _feed_forward_problems(self)
        yield from _scale_problems(self)


def _tensor_parallel_plan(config: IngotConfig) -> dict[str, str] | None:
    """Split heads and feed-forward widths over devices; only names that this configuration has."""
    if config.position_embedding_type == "alibi":
        return None  # its bias is made for all heads at once
    attention = "layers.*.self_attn."
    plan = {f"{attention}{name}_proj": "colwise" for name in "qkv"} | {f"{attention}o_proj": "rowwise"}
    if config.qk_norm:
        plan |= {f"{attention}{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
    sparse = [config.is_sparse_layer(i) for i in range(config.num_hidden_layers)]
    feed_forwards = [] if all(sparse) else ["layers.*.mlp."]
    if any(sparse):
        plan |= {
            "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
            "layers.*.mlp.experts.down_proj": "rowwise",
            "layers.*.mlp.experts": "moe_tp_experts",
        }
        if config.shared_expert_intermediate_size:
            feed_forwards.append("layers.*.mlp.shared_expert.")
    for prefix in feed_forwards:
        if config.mlp_gated:
            plan[f"{prefix}gate_proj"] = "colwise"
        plan |= {f"{prefix}up_proj": "colwise", f"{prefix}down_proj": "rowwise"}
    return plan


def _rope_problems(parameters: dict[str, Any]) -> Iterator[str]:
    for key in sorted(set(parameters) - _ROPE_KEYS):
        near = difflib.get_close_matches(key, _ROPE_KEYS, n=1)
        yield f"rope_parameters.{key}: no such key" + (f"; did you mean '{near[0]}'?" if near else "")
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        yield f"rope_parameters.rope_type is '{rope_type}'; there are {', '.join(_ROPE_TYPES)}"
    if parameters.get("rope_theta", 1.0) <= 0:
        yield f"rope_parameters.rope_theta is {parameters['rope_theta']}; it must be above 0"


def _size_problems(config: IngotConfig) -> Iterator[str]:
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{name} is {value}; it must be at least 1"
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is not None and not 0 <= token_id < config.vocab_size:
                yield f"{name} is {token_id}, outside a vocabulary of {config.vocab_size}"


def _attention_problems(config: IngotConfig) -> Iterator[str]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads < 1 or not kv_heads or kv_heads < 1:
        return
    if heads % kv_heads:
        yield f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
    if config.position_embedding_type == "rope" and config.head_dim and config.head_dim % 2:
        yield f"head_dim is {config.head_dim}; RoPE turns pairs, so it must be even"
    yield from _sliding_problems(config, config.layer_types or [])


def _sliding_problems(config: IngotConfig, layer_types: list[str]) -> Iterator[str]:
    for name in sorted(set(layer_types) - set(_LAYER_TYPES)):
        yield f"layer_types: '{name}' is not one of {', '.join(_LAYER_TYPES)}"
    if len(layer_types) != config.num_hidden_layers:
        yield f"layer_types has {len(layer_types)} entries for num_hidden_layers {config.num_hidden_layers}"
    slides = "sliding_attention" in layer_types
    if slides and not config.use_sliding_window:
        yield "layer_types has 'sliding_attention' but use_sliding_window is false"
    if config.use_sliding_window and (config.sliding_window is None or config.sliding_window < 1):
        yield "use_sliding_window needs sliding_window, the number of tokens a sliding layer sees"


def _unused_window(config: IngotConfig) -> Iterator[str]:
    if config.use_sliding_window and "sliding_attention" not in config.layer_types:
        yield (
            f"use_sliding_window is true but no layer slides: lower max_window_layers ({config.max_window_layers}) "
            "or name them in layer_types"
        )


def _feed_forward_problems(config: IngotConfig) -> Iterator[str]:
    if config.hidden_act not in ACT2FN:
        near = difflib.get_close_matches(config.hidden_act, ACT2FN, n=1)
        yield f"hidden_act is '{config.hidden_act}'" + (f"; did you mean '{near[0]}'?" if near else "; no such one")
    if config.router_aux_loss_coef < 0:
        yield f"router_aux_loss_coef is {config.router_aux_loss_coef}; 0 or more"
    if config.num_experts < 0:
        yield f"num_experts is {config.num_experts}; 0 means a dense model"
    if config.num_experts <= 0:
        if config.router_aux_loss_coef or config.output_router_logits:
            yield "router_aux_loss_coef and output_router_logits need num_experts"
        return
    for name in ("num_experts_per_tok", "moe_intermediate_size"):
        if (getattr(config, name) or 0) < 1:
            yield f"num_experts is {config.num_experts}: {name} must be given, and at least 1"
    if (config.num_experts_per_tok or 0) > config.num_experts:
        yield f"num_experts_per_tok {config.num_experts_per_tok} is more than num_experts {config.num_experts}"
    if not config.mlp_gated or config.mlp_bias:
        yield "experts are gated and have no biases: num_experts needs mlp_gated true and mlp_bias false"
    for layer_idx in config.mlp_only_layers or []:
        if not 0 <= layer_idx < config.num_hidden_layers:
            yield f"mlp_only_layers: there is no layer {layer_idx}, only 0 to {config.num_hidden_layers - 1}"
    if config.decoder_sparse_step > 0 and not any(map(config.is_sparse_layer, range(config.num_hidden_layers))):
        yield "num_experts is given but decoder_sparse_step and mlp_only_layers leave no sparse layer"


def _scale_problems(config: IngotConfig) -> Iterator[str]:
    for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        if not 0 <= getattr(config, name) < 1:
            yield f"{name} is {getattr(config, name)}; it must be at least 0 and below 1"
    for name in _ABOVE_ZERO:
        value = getattr(config, name)
        if value is not None and value <= 0:
            yield f"{name} is {value}; it must be above 0"
    if config.tie_word_embeddings and config.lm_head_initializer_range is not None:
        yield "lm_head_initializer_range: the head is tied; set embedding_initializer_range instead"


__all__ = ["IngotConfig"]
