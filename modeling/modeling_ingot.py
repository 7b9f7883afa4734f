"""The Ingot model: a decoder-only transformer whose parts are chosen by IngotConfig.

Notable:
- with the default parts it is Qwen3 to the last parameter name (Llama without `qk_norm`, Qwen3-MoE with experts), and
  with learned positions, LayerNorm and ungated GELU it is GPT-2: a state dict moves between them unchanged;
- everything that all layers share (rotary angles, attention masks, ALiBi biases) is computed once per forward;
- packed documents need only restarting `position_ids` and no attention mask: every backend keeps them apart;
- the head never holds the float32 logits of a large vocabulary while training (see `IngotForCausalLM`).

Shapes in comments: B batch, T tokens, S cached and new tokens, D hidden, H query heads, K key/value heads, W head
width, V vocabulary, E experts, N = B * T.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_ingot import IngotConfig

CPU_CHUNK_BYTES = 8 * 2**20  # float32 logits made at a time while training: they stay in the cache
GPU_CHUNK_SHARE = 48  # on a GPU: 1/48 of its memory
MIN_CHUNK_ROWS = 128  # fewer tokens at a time would read the head's weight more often than it pays
FUSED_AVAILABLE = "linear_cross_entropy" in dir(F)  # torch 2.13

# ---------------------------------------------------------------------------------------------------------------------
# Norm


class IngotRMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type == "cuda":  # one fused kernel, float32 inside; autocast would copy its input
            with torch.autocast("cuda", enabled=False):
                return F.rms_norm(hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.eps)
        states = hidden_states.float()
        mean_square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
        return (states * ((mean_square + self.eps).rsqrt() * self.weight)).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def build_norm(config: IngotConfig, width: int) -> nn.Module:
    """Make the norm that the config names, for a last dimension of `width`."""
    if config.norm_type == "layer_norm":
        return nn.LayerNorm(width, eps=config.rms_norm_eps)
    return IngotRMSNorm(width, eps=config.rms_norm_eps)


# ---------------------------------------------------------------------------------------------------------------------
# Positions


class IngotRotaryEmbedding(nn.Module):
    """Cosines and sines of RoPE (Su et al. 2021) for given positions, with the library's scaling types."""

    def __init__(self, config: IngotConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        compute = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)  # (W / 2,)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: IngotConfig, device: torch.device | None = None, **_: Any
    ) -> tuple[torch.Tensor, float]:
        """Frequencies theta^(-2i / W), unscaled; the library's table holds only the scaled types."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin for `rotate`, (B, T, W) each."""
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq  # (B, T, W / 2)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        dtype = compute_dtype(hidden_states)
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + W / 2) of (B, T, heads, W) by their angles; the first half of `sin` is negative."""
    return states * cos[:, :, None] + states.roll(states.shape[-1] // 2, dims=-1) * sin[:, :, None]


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that matrix products with `tensor` come out in, under autocast or not."""
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def sinusoidal_positions(position_ids: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines (Vaswani et al. 2017) of positions (B, T), as (B, T, width) float32."""
    half = (width + 1) // 2
    exponents = torch.arange(half, dtype=torch.float, device=position_ids.device) / half
    angles = position_ids[..., None].float() * 10000.0**-exponents
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :width]


def positions_from(starts: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) that begin again at 0 in every document; `starts`: in the flattened batch, with its end."""
    batch, num_tokens = inputs_embeds.shape[:2]
    places = torch.arange(batch * num_tokens, device=inputs_embeds.device)
    begins = starts.to(places)[torch.searchsorted(starts.to(places), places, right=True) - 1]
    return (places - begins).view(batch, num_tokens)


def alibi_slopes(num_heads: int, device: torch.device) -> torch.Tensor:
    """One slope per head (Press et al. 2022): 2^(-8i / n) for a power of two, interleaved for other numbers."""
    power = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 / power * torch.arange(1, power + 1, device=device, dtype=torch.float))
    extra = 2.0 ** (-4.0 / power * torch.arange(1, 2 * power, 2, device=device, dtype=torch.float))
    return torch.cat((slopes, extra[: num_heads - power]))  # (H,)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def eager_attention(
    module: "IngotAttention",
    query: torch.Tensor,  # (B, H, T, W)
    key: torch.Tensor,  # (B, K, S, W)
    value: torch.Tensor,  # (B, K, S, W)
    attention_mask: torch.Tensor | None,  # (B, 1 or H, T, S), added to the scores
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: the only backend that returns its weights, (B, H, T, S)."""
    batch, num_heads, num_tokens, width = query.shape
    # the query heads that share a key/value head are stacked along T, so that keys and values are never repeated
    stacked = (batch, num_heads // module.num_key_value_groups, module.num_key_value_groups * num_tokens, -1)
    scores = (query * scaling).reshape(stacked) @ key.transpose(2, 3)
    scores = scores.view(batch, num_heads, num_tokens, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    output = (weights.view(stacked) @ value).view(batch, num_heads, num_tokens, width)
    return output.transpose(1, 2).contiguous(), weights


def prefers_eager(config: IngotConfig, hidden_states: torch.Tensor) -> bool:
    """Whether products beat SDPA: its CPU kernel takes three times as long for short bfloat16 sequences."""
    on_cpu = hidden_states.device.type == "cpu" and config._attn_implementation == "sdpa"
    return on_cpu and hidden_states.shape[1] <= 512 and compute_dtype(hidden_states) == torch.bfloat16


def additive_mask(mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor:
    """SDPA's mask (True where seen, None for causal) as numbers to add to the scores."""
    dtype, num_tokens = compute_dtype(hidden_states), hidden_states.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=hidden_states.device).tril()
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def find_flash_varlen() -> Callable[..., torch.Tensor] | None:
    """Torch's flash kernel for sequences that lie end to end, or None where this torch has none for causal ones."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    known = signature(varlen_attn).parameters
    shared_heads: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}  # older ones need no word
    attend: Any = partial(varlen_attn, **shared_heads)
    return attend if "window_size" in known else None


FLASH_VARLEN = find_flash_varlen()


def takes_beginnings(config: IngotConfig, device: torch.device, dtype: torch.dtype, training: bool) -> bool:
    """Whether a kernel can be told where documents begin, in place of SDPA with a mask."""
    on_gpu = config._attn_implementation == "sdpa" and device.type == "cuda" and FLASH_VARLEN is not None
    width = config.head_dim % 8 == 0 and config.head_dim <= 256 and dtype in (torch.bfloat16, torch.float16)
    plain = config.position_embedding_type != "alibi" and not (training and config.attention_dropout > 0)
    return on_gpu and width and plain


def varlen_attention(
    module: "IngotAttention",
    query: torch.Tensor,  # (B, H, T, W)
    key: torch.Tensor,  # (B, K, T, W)
    value: torch.Tensor,  # (B, K, T, W)
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside packed documents: the kernel is told where they begin in place of reading a mask.

    `cu_seq_lens_q`: their begins in the flattened batch and its end, int32; those of no length are passed over.
    """
    assert FLASH_VARLEN is not None and dropout == 0.0
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))  # (N, heads, W)
    output = FLASH_VARLEN(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
    )
    return output, None


class IngotAttention(nn.Module):
    """Causal self-attention with grouped key/value heads (MHA, GQA, MQA) and optional QK-norm."""

    def __init__(self, config: IngotConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        slides = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if slides else None

        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else None

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        past_key_values: Cache | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = hidden_states.to(compute_dtype(hidden_states))  # once, not once per projection
        batch_tokens = hidden_states.shape[:-1]
        heads = (*batch_tokens, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)  # (B, T, H, W)
        key = self.k_proj(hidden_states).view(heads)  # (B, T, K, W)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # (B, K, T, W)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        backend = attn_implementation or self.config._attn_implementation
        if backend == "varlen":
            attend = varlen_attention
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_tokens, -1)), weights


# ---------------------------------------------------------------------------------------------------------------------
# Feed-forward and experts


class IngotMLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, config: IngotConfig, intermediate_size: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, intermediate_size, bias=bias) if config.mlp_gated else None
        self.up_proj = nn.Linear(width, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, width, bias=bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states.to(compute_dtype(hidden_states))  # once, not once per projection
        up = self.up_proj(hidden_states)
        inner = self.act_fn(up) if self.gate_proj is None else self.act_fn(self.gate_proj(hidden_states)) * up
        return self.down_proj(inner)


class IngotTopKRouter(nn.Module):
    """Chooses the experts of each token: softmax over all experts, then the largest k."""

    def __init__(self, config: IngotConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (N, E), weights (N, k) and indices (N, k) of the chosen experts, for (N, D)."""
        router_logits = F.linear(hidden_states, self.weight)
        weights, chosen = router_logits.softmax(dim=-1, dtype=torch.float).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return router_logits, weights.to(router_logits.dtype), chosen


@use_experts_implementation
class IngotExperts(nn.Module):
    """All experts of a layer as two stacked weights; the library runs them grouped, batched or one by one."""

    def __init__(self, config: IngotConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, width, inner))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The `eager` implementation: (N, D) with k experts each to (N, D), one product per expert."""
        output = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            token, place = torch.where(chosen == expert)
            gate, up = F.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            result = F.linear(self.act_fn(gate) * up, self.down_proj[expert]) * weights[token, place, None]
            output.index_add_(0, token, result.to(output.dtype))
        return output


class IngotSparseMoeBlock(nn.Module):
    """A router and its experts, and an optional shared expert behind a sigmoid gate (as Qwen2-MoE)."""

    def __init__(self, config: IngotConfig) -> None:
        super().__init__()
        self.gate = IngotTopKRouter(config)
        self.experts = IngotExperts(config)
        self.shared_expert = None
        if config.shared_expert_intermediate_size:
            self.shared_expert = IngotMLP(config, config.shared_expert_intermediate_size)
            self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mixture, shaped as its input (B, T, D), and the router's logits (N, E)."""
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])  # (N, D)
        flat = flat.to(compute_dtype(flat))  # once, not once per product
        router_logits, weights, chosen = self.gate(flat)
        output = self._mix(flat, chosen, weights)
        if self.shared_expert is not None:
            output = output + self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        return output.view(hidden_states.shape), router_logits

    def _mix(self, flat: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Run the experts with weights in autocast's dtype: it does not cast for the library's grouped products."""
        if not torch.is_autocast_enabled(flat.device.type):
            return self.experts(flat, chosen, weights)
        cast = {name: weight.to(flat.dtype) for name, weight in self.experts.named_parameters()}
        return functional_call(self.experts, cast, (flat, chosen, weights))


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...], top_k: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """E * sum_e(share of choices on e * mean probability of e), 1 per chosen expert when even (Fedus et al. 2021).

    `router_logits` holds (N, E) per sparse layer; `mask` (B, T) leaves out padding.
    """
    device = router_logits[0].device
    logits = torch.stack([layer.to(device) for layer in router_logits])  # (layers, N, E)
    probabilities = logits.softmax(dim=-1, dtype=torch.float)
    chosen = torch.zeros_like(probabilities).scatter_(-1, probabilities.topk(top_k, dim=-1).indices, 1.0)
    if mask is None:
        share, mean = chosen.mean(dim=(0, 1)), probabilities.mean(dim=(0, 1))  # (E,) each
    else:
        rows = mask.reshape(1, -1, 1).to(device, torch.float)
        count = rows.sum() * len(router_logits)
        share, mean = (chosen * rows).sum(dim=(0, 1)) / count, (probabilities * rows).sum(dim=(0, 1)) / count
    return logits.shape[-1] * (share * mean).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Block


class IngotDecoderLayer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: IngotConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.pre_norm = config.norm_position == "pre"
        self.residual_dropout = config.residual_dropout
        self.self_attn = IngotAttention(config, layer_idx)
        self.is_sparse = config.is_sparse_layer(layer_idx)
        self.mlp = IngotSparseMoeBlock(config) if self.is_sparse else IngotMLP(config, config.intermediate_size)
        if self.pre_norm:
            self.input_layernorm = build_norm(config, width)
            self.post_attention_layernorm = build_norm(config, width)  # before the feed-forward: Qwen3's name
        else:
            self.post_attention_layernorm = build_norm(config, width)
            self.post_feedforward_layernorm = build_norm(config, width)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (B, T, D)
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return hidden states (B, T, D) and, of a sparse layer, the router's logits (N, E)."""
        attended = self.input_layernorm(hidden_states) if self.pre_norm else hidden_states
        attended, _ = self.self_attn(
            attended,
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self._drop(attended)
        if self.pre_norm:
            update, router_logits = self._feed_forward(self.post_attention_layernorm(hidden_states))
            hidden_states = hidden_states + self._drop(update)
        else:
            hidden_states = self.post_attention_layernorm(hidden_states)
            update, router_logits = self._feed_forward(hidden_states)
            hidden_states = self.post_feedforward_layernorm(hidden_states + self._drop(update))
        return hidden_states, router_logits

    def _feed_forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.mlp(hidden_states) if self.is_sparse else (self.mlp(hidden_states), None)

    def outputs(self) -> Iterator[nn.Linear]:
        """The dense projections whose results are added to the residual stream."""
        yield self.self_attn.o_proj
        dense = self.mlp.shared_expert if isinstance(self.mlp, IngotSparseMoeBlock) else self.mlp
        if dense is not None:
            yield dense.down_proj

    def _drop(self, update: torch.Tensor) -> torch.Tensor:
        return F.dropout(update, self.residual_dropout, self.training) if self.residual_dropout else update


# ---------------------------------------------------------------------------------------------------------------------
# Model


class IngotPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every Ingot model, and the initial weights."""

    config_class = IngotConfig
    config: IngotConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["IngotDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(IngotDecoderLayer, index=1),  # the layer's, so that its gradient survives
        "hidden_states": IngotDecoderLayer,
        "attentions": IngotAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module; the library calls this only for modules with parameters or buffers of their own."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self._initial_std(module, module.weight))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, IngotTopKRouter):
            init.normal_(module.weight, std=self._initial_std(module, module.weight))
        elif isinstance(module, IngotExperts):
            init.normal_(module.gate_up_proj, std=self._initial_std(module, module.gate_up_proj))
            init.normal_(module.down_proj, std=self._initial_std(module, module.down_proj, into_residual=True))
        else:
            super()._init_weights(module)  # embeddings, norms, RoPE's buffers

    def _initial_std(self, module: nn.Module, weight: torch.Tensor, into_residual: bool = False) -> float:
        """Standard deviation of a projection's weight (..., outputs, inputs) by `initializer_method`."""
        if self.config.initializer_method == "fan_in":
            return weight.shape[-1] ** -0.5
        if self.config.initializer_method == "scaled_normal" and into_residual:
            return self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
        return self.config.initializer_range


class IngotModel(IngotPreTrainedModel):
    """Tokens to hidden states: embedding, blocks, last norm."""

    def __init__(self, config: IngotConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([IngotDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        pre_norm = config.norm_position == "pre"
        self.norm = build_norm(config, config.hidden_size) if pre_norm else nn.Identity()
        self.rotary_emb = IngotRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.embed_tokens and self.config.embedding_initializer_range is not None:
            init.normal_(module.weight, std=self.config.embedding_initializer_range)

    def _initial_std(self, module: nn.Module, weight: torch.Tensor, into_residual: bool = False) -> float:
        layers = [layer for layer in self.layers if isinstance(layer, IngotDecoderLayer)]
        last = any(module is output for layer in layers for output in layer.outputs())
        return super()._initial_std(module, weight, into_residual or last)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, D)
        self._refuse_unsupported_backend()
        if past_key_values is None and position_ids is not None and _says_nothing(attention_mask):
            attention_mask = None  # the library looks for packed documents only where there is no mask ...
        # ... and no cache, not even an empty one: so the masks come first
        bare = past_key_values is None and attention_mask is None
        backend = self._backend(inputs_embeds, kwargs if bare else {})
        starts = kwargs.get("cu_seq_lens_q") if bare else None
        if starts is not None and position_ids is None:
            position_ids = positions_from(starts, inputs_embeds)
        told_apart = backend == "varlen" or (starts is not None and len(starts) == len(inputs_embeds) + 1)
        masks = self._attention_masks(
            inputs_embeds, attention_mask, None if told_apart else position_ids, past_key_values, backend
        )
        if bare and starts is None and position_ids is not None:
            kwargs = {**self._packed_lengths(position_ids), **kwargs}
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)

        hidden_states = self._enter(inputs_embeds, position_ids)
        position_embeddings = None if self.rotary_emb is None else self.rotary_emb(hidden_states, position_ids)
        if past_key_values is None and prefers_eager(self.config, hidden_states):
            backend, masks = "eager", {kind: additive_mask(mask, hidden_states) for kind, mask in masks.items()}
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states, _ = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                attn_implementation=backend,
                **kwargs,
            )
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _refuse_unsupported_backend(self) -> None:
        backend = self.config._attn_implementation
        if self.config.position_embedding_type == "alibi" and backend not in ("eager", "sdpa"):
            raise ValueError(
                f"position_embedding_type 'alibi' adds to the attention scores, which attn_implementation '{backend}' "
                "cannot: choose 'sdpa' or 'eager'"
            )

    def _backend(self, inputs_embeds: torch.Tensor, given: dict[str, Any]) -> str:
        """`attn_implementation`; in place of SDPA with a mask the kernel that takes the starts of packed documents.

        Those of one document a row need neither. `given`: `cu_seq_lens_q` and `max_length_q`, as a collator may make.
        """
        starts = given.get("cu_seq_lens_q")
        several = starts is not None and "max_length_q" in given and len(starts) > len(inputs_embeds) + 1
        if several and takes_beginnings(
            self.config, inputs_embeds.device, compute_dtype(inputs_embeds), self.training
        ):
            return "varlen"
        return self.config._attn_implementation

    def _packed_lengths(self, position_ids: torch.Tensor) -> dict[str, Any]:
        """Where documents start in the flattened batch, for flash kernels: they have no mask to tell them.

        The library finds the documents of a single row by itself and, with several rows, none.
        """
        if not is_flash_attention_requested(self.config):
            return {}
        starts = torch.ones_like(position_ids, dtype=torch.bool)
        starts[:, 1:] = position_ids.diff(dim=-1) != 1
        bounds = F.pad(starts.flatten().nonzero().flatten().int(), (0, 1), value=position_ids.numel())
        longest = int(bounds.diff().max())
        names = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        return {**names, "max_length_q": longest, "max_length_k": longest}

    def _enter(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """What the first block reads: scaled tokens, absolute positions added, dropout."""
        config, hidden_states = self.config, inputs_embeds
        if config.embedding_multiplier != 1.0:
            hidden_states = hidden_states * config.embedding_multiplier
        if config.position_embedding_type == "learned":
            can_look = position_ids.device.type == "cpu" and not torch.compiler.is_compiling()
            if can_look and position_ids.max() >= config.max_position_embeddings:
                raise ValueError(f"a position is beyond max_position_embeddings {config.max_position_embeddings}")
            hidden_states = hidden_states + self.embed_positions(position_ids)
        elif config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, config.hidden_size)
            hidden_states = hidden_states + positions.to(hidden_states.dtype)
        hidden_states = F.dropout(hidden_states, config.embedding_dropout, self.training)
        if compute_dtype(hidden_states) == torch.bfloat16:  # half the bytes in every layer; float16 could overflow
            hidden_states = hidden_states.to(torch.bfloat16)
        return hidden_states

    def _attention_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,  # (B, S), (B, 1, T, S), or what generate made: one per layer type
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        backend: str,
    ) -> dict[str, Any]:
        """One mask per layer type, made once; None where the backend's own causal mode is enough."""
        masks = attention_mask
        if backend == "varlen":
            return dict.fromkeys(self.config.layer_types)
        if not isinstance(masks, dict):
            make = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
            masks = {
                kind: make[kind](
                    config=self.config,
                    inputs_embeds=inputs_embeds,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    position_ids=position_ids,
                )
                for kind in dict.fromkeys(self.config.layer_types)
            }
        if self.config.position_embedding_type == "alibi":
            masks = {kind: self._add_alibi(mask, kind, inputs_embeds, past_key_values) for kind, mask in masks.items()}
        return masks

    def _add_alibi(
        self, mask: torch.Tensor | None, layer_type: str, inputs_embeds: torch.Tensor, past_key_values: Cache | None
    ) -> torch.Tensor:
        """Take slope * distance from the scores of visible tokens; (B or 1, H, T, S), float.

        Distances are between places in the batch row: left padding and packing shift both ends alike.
        """
        device, dtype, num_new = inputs_embeds.device, inputs_embeds.dtype, inputs_embeds.shape[1]
        num_keys, first_key, first_query = num_new, 0, 0
        if past_key_values is not None:
            layer_idx = self.config.layer_types.index(layer_type)
            num_keys, first_key = past_key_values.get_mask_sizes(num_new, layer_idx)
            first_query = past_key_values.get_query_offset(layer_idx)
        queries = torch.arange(num_new, device=device)[:, None] + first_query
        distance = queries - (torch.arange(num_keys, device=device) + first_key)  # (T, S)
        slopes = alibi_slopes(self.config.num_attention_heads, device)[None, :, None, None]
        bias = (-slopes * distance.abs()).to(dtype)  # (1, H, T, S)
        if mask is None:
            mask = distance >= 0
        return mask + bias if mask.is_floating_point() else bias.masked_fill(~mask, torch.finfo(dtype).min)


# ---------------------------------------------------------------------------------------------------------------------
# Head


def loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # of (rows, V), (rows, 1), (rows, 1)
    """Summed cross entropy of the valid rows, and the gradient of every row's own, in the dtype of the logits."""
    log_probs = F.log_softmax(logits.float(), dim=-1)
    loss = -(log_probs.gather(1, targets) * valid).sum()
    gradient = log_probs.exp_().scatter_add_(1, targets, torch.full_like(log_probs[:, :1], -1.0))
    return loss, gradient.to(logits.dtype)


def log_sums_and_loss(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For torch.compile, which reads the logits once for it: the rows' log-sum-exp, the loss, and p - 1 of targets."""
    states = logits.float()
    largest = states.amax(dim=-1, keepdim=True)
    log_sums = largest + (states - largest).exp().sum(dim=-1, keepdim=True).log()
    log_probs = states.gather(1, targets) - log_sums
    return log_sums, -(log_probs * valid).sum(), log_probs.exp() - 1


def put_probabilities(logits: torch.Tensor, log_sums: torch.Tensor) -> None:
    """For torch.compile: softmax of the logits in their place."""
    logits.copy_((logits.float() - log_sums).exp())


@cache
def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """A function, compiled when it first runs, and once more for any length when a second length comes."""
    return torch.compile(function, dynamic=dynamic)


def loss_and_gradient_by_kernels(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `loss_and_gradient` returns, the gradient in the place of the logits."""
    log_sums, loss, of_target = compiled(log_sums_and_loss)(logits, targets, valid)
    compiled(put_probabilities)(logits, log_sums)
    return loss, logits.scatter_(1, targets, of_target.to(logits.dtype))


def makes_kernels(device: torch.device) -> bool:
    """Whether torch.compile can make kernels for a device, and is not at it already."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and has_triton()


@cache
def has_triton() -> bool:
    """Whether there are triton, and a C compiler for its launcher."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return find_spec("triton") is not None and compiler is not None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of a linear head, some rows of logits at a time, with the gradients made on the way.

    After the forward pass only the gradients of the hidden states and of the weight are kept, so each chunk of logits
    is computed once and never stored. Backward scales them in place, which is why it can run only once. Products are
    in the dtype of the hidden states, the weight's gradient is added up in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int
    ) -> torch.Tensor:  # of (N, D), (V, D), (N,)
        needs_weight, table = ctx.needs_input_grad[1], weight.to(hidden_states.dtype)
        step = loss_and_gradient_by_kernels if makes_kernels(weight.device) else loss_and_gradient
        grad_hidden = torch.empty_like(hidden_states)
        grad_weight = torch.zeros(weight.shape if needs_weight else 0, dtype=torch.float, device=weight.device)
        total = torch.zeros((), dtype=torch.float, device=weight.device)
        for start in range(0, len(labels), rows):
            chunk, targets = hidden_states[start : start + rows], labels[start : start + rows, None]
            valid = targets != -100
            loss, grad_logits = step(chunk @ table.t(), targets.where(valid, 0), valid)
            total = total + loss  # not in place: torch.compile of torch 2.11 would lose its gradient
            grad_hidden[start : start + rows] = (grad_logits @ table) * valid
            if needs_weight:
                add_product(grad_weight, grad_logits.t(), chunk * valid)
            del grad_logits  # before the next chunk's
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.done = weight.dtype, False
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.done:
            raise RuntimeError("the chunked loss can run backward only once: set loss_implementation to 'plain'")
        ctx.done = True
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_weight = grad_weight.mul_(grad_total).to(ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        return grad_hidden.mul_(grad_total), grad_weight, None, None


def loss_alone(
    hidden_states: torch.Tensor, table: torch.Tensor, labels: torch.Tensor, rows: int
) -> torch.Tensor:  # of (N, D), (V, D), (N,)
    """Summed cross entropy by the kernel of training, for an evaluation on a GPU."""
    total = torch.zeros((), dtype=torch.float, device=table.device)
    for chunk, targets in zip(hidden_states.split(rows), labels[:, None].split(rows), strict=True):
        valid = targets != -100
        total += compiled(log_sums_and_loss)(chunk @ table.t(), targets.where(valid, 0), valid)[1]
    return total


def usable_memory(device: torch.device) -> float:
    """Bytes of a GPU that this process may take."""
    share = torch.cuda.get_per_process_memory_fraction(device)
    return torch.cuda.get_device_properties(device).total_memory * share


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to a float32 total; a GPU does it in the product's own kernel."""
    if total.device.type == "cuda" and left.dtype != torch.float and not torch.compiler.is_compiling():
        torch.addmm(total, left, right, out_dtype=torch.float, out=total)
    else:
        total += left @ right


def checkpointed_cross_entropy(
    project: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, labels: torch.Tensor, rows: int
) -> torch.Tensor:
    """The same for any head: `project` makes the logits of a chunk, and makes them again in backward."""

    def chunk_loss(chunk: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(project(chunk).float(), targets, reduction="sum")

    total = torch.zeros((), dtype=torch.float, device=hidden_states.device)
    for chunk, targets in zip(hidden_states.split(rows), labels.split(rows), strict=True):
        total = total + checkpoint(chunk_loss, chunk, targets, use_reentrant=False)
    return total


class IngotHead(nn.Linear):
    """Hidden states to logits; or the result of `function(hidden_states, weight)`.

    Strategies that share out the weights gather one while its module is called: whoever needs it has to be inside.
    """

    def forward(
        self, hidden_states: torch.Tensor, function: Callable[..., torch.Tensor | None] | None = None
    ) -> torch.Tensor:
        if function is None:
            return super().forward(hidden_states)
        result: Any = function(hidden_states, self.weight)
        return result


class IngotForCausalLM(IngotPreTrainedModel, GenerationMixin):
    """Tokens to logits and, with labels, the loss of the next token.

    In training mode with labels the logits of a large vocabulary are never held at once, and `logits` is None; ask
    with `skip_logits=False` to have them. In evaluation mode they are returned unless `skip_logits=True`.
    """

    # an autograd function of hidden states, head, labels and rows; training may put another in its place
    chunked_cross_entropy: type[torch.autograd.Function] = ChunkedCrossEntropy
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # as every model upstream
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: IngotConfig) -> None:
        super().__init__(config)
        self.model = IngotModel(config)
        self.lm_head = IngotHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _initial_std(self, module: nn.Module, weight: torch.Tensor, into_residual: bool = False) -> float:
        own = self.config.lm_head_initializer_range if module is self.lm_head else None
        return super()._initial_std(module, weight, into_residual) if own is None else own

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Run the model; with `labels` (B, T), -100 where there is none, also the loss.

        `num_items_in_batch` is the number of labels of the whole optimizer step: the loss is then the sum over this
        batch divided by it, so that the losses of all micro-batches add up to the mean. The keyword `shift_labels`
        takes labels already moved by one place.
        """
        # not in the signature: Trainer takes every parameter named *labels for one that each batch must have
        shift_labels: Any = _shifted(labels, kwargs.pop("shift_labels", None))
        if shift_labels is not None and use_cache is None:
            use_cache = False
        balance = self._wants_balance(output_router_logits, shift_labels)
        if self.config.num_experts > 0:
            kwargs["output_router_logits"] = balance
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states, logits, loss, aux_loss = outputs.last_hidden_state, None, None, None
        if shift_labels is None:
            logits = self._logits(_keep(hidden_states, logits_to_keep))
        else:
            shift_labels = shift_labels.to(hidden_states.device)
            loss, logits = self._loss(hidden_states, shift_labels, num_items_in_batch, skip_logits)
            logits = None if logits is None else _keep(logits, logits_to_keep)
        if balance:
            aux_loss = self._balance_loss(outputs.router_logits, attention_mask, hidden_states.shape[1])
        if aux_loss is not None and loss is not None:
            # a micro-batch adds its share of the labels, so that a whole optimizer step adds the coefficient once
            share = 1.0 if num_items_in_batch is None else (shift_labels != -100).sum() / num_items_in_batch
            loss = loss + self.config.router_aux_loss_coef * share * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = self.lm_head(hidden_states)  # (..., V)
        return logits if self.config.logit_scale == 1.0 else logits * self.config.logit_scale

    def _loss(
        self,
        hidden_states: torch.Tensor,
        shift_labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
        skip_logits: bool | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and the logits (B, T, V) where they are wanted or were needed anyway."""
        implementation = self._loss_implementation(shift_labels.numel())
        if skip_logits is None:
            skip_logits = self.training and implementation != "plain"
        if not skip_logits or implementation == "plain":
            logits = self._logits(hidden_states)
            loss = self.loss_function(
                logits=logits,
                labels=None,
                shift_labels=shift_labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
            return loss, None if skip_logits else logits
        total = self._summed_loss(hidden_states.flatten(0, 1), shift_labels.flatten(), implementation)
        count = (shift_labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return total / count, None

    def _summed_loss(self, hidden_states: torch.Tensor, labels: torch.Tensor, implementation: str) -> torch.Tensor:
        """Cross entropy of (N, D) against (N,), added up, without holding (N, V)."""
        rows = self._chunk_rows()
        make, total = partial(self._loss_of_weight, labels=labels, rows=rows, implementation=implementation), None
        if isinstance(self.lm_head, IngotHead):
            total = self.lm_head(hidden_states, make)
        elif type(self.lm_head) is nn.Linear:  # the library's, for a vocabulary of another size
            total = make(hidden_states, self.lm_head.weight)
        if total is not None:
            return total
        if implementation == "fused" and torch.is_grad_enabled():
            raise ValueError("loss_implementation 'fused' needs torch 2.13 and a plain lm_head: choose 'chunked'")
        return checkpointed_cross_entropy(self._logits, hidden_states, labels, rows)

    def _loss_of_weight(
        self, hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int, implementation: str
    ) -> torch.Tensor | None:
        """The same from the head's weight; None where it is in parts, so that the head has to be called."""
        whole = type(weight) is nn.Parameter and len(weight) == self.config.vocab_size
        trains, kernels = torch.is_grad_enabled(), makes_kernels(weight.device)
        if not whole or (implementation == "fused" and not FUSED_AVAILABLE) or not (trains or kernels):
            return None
        if self.config.logit_scale != 1.0:
            hidden_states = hidden_states * self.config.logit_scale
        dtype = compute_dtype(hidden_states)  # neither of the two is an operator that autocast casts for
        hidden_states = hidden_states.to(dtype)
        if not trains:
            return loss_alone(hidden_states, weight.to(dtype), labels, rows)
        if implementation == "chunked":
            return self.chunked_cross_entropy.apply(hidden_states, weight, labels, rows)
        options = nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(hidden_states, weight.to(dtype), labels, reduction="sum", options=options)

    def _loss_implementation(self, num_tokens: int) -> str:
        wanted = self.config.loss_implementation
        if wanted != "auto":
            return wanted
        on_gpu = self.lm_head.weight.device.type == "cuda"
        return "plain" if not on_gpu and num_tokens <= self._chunk_rows() else "chunked"

    def _chunk_rows(self) -> int:
        """Tokens whose logits are made at a time: a CPU's cache full of float32 ones; on a GPU a power of two."""
        device = self.lm_head.weight.device
        if device.type != "cuda":
            return max(MIN_CHUNK_ROWS, CPU_CHUNK_BYTES // (4 * self.config.vocab_size))
        rows = int(usable_memory(device)) // GPU_CHUNK_SHARE // (2 * self.config.vocab_size)
        return 2 ** int(math.log2(max(MIN_CHUNK_ROWS, rows)))

    def _wants_balance(self, asked: bool | None, shift_labels: torch.Tensor | None) -> bool:
        """Router logits are wanted when asked for, and for the load-balancing loss of a training step."""
        if asked is not None or self.config.num_experts == 0:
            return bool(asked) and self.config.num_experts > 0
        training_step = self.training and shift_labels is not None and self.config.router_aux_loss_coef > 0
        return self.config.output_router_logits or training_step

    def _balance_loss(self, router_logits: tuple[torch.Tensor, ...], mask: Any, num_tokens: int) -> torch.Tensor:
        """The load-balancing loss of new tokens; with a cache the mask (B, S) covers earlier ones too."""
        rows = mask[:, -num_tokens:] if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
        return load_balancing_loss(router_logits, self.config.num_experts_per_tok, rows)


def _shifted(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> torch.Tensor | None:
    """Labels moved by one place, so that position t predicts token t + 1, unless they are given so."""
    if labels is None or shift_labels is not None:
        return shift_labels
    return F.pad(labels[..., 1:], (0, 1), value=-100)


def _says_nothing(mask: Any) -> bool:
    """Whether a mask (B, S) is all ones; not looked at while compiling, where values are not known."""
    return (
        isinstance(mask, torch.Tensor) and mask.dim() == 2 and not torch.compiler.is_compiling() and bool(mask.all())
    )


def _keep(states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last so many places of (B, T, ...), or the named ones; 0 keeps all."""
    if isinstance(logits_to_keep, int) and logits_to_keep == 0:
        return states
    return states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


__all__ = ["IngotForCausalLM", "IngotModel", "IngotPreTrainedModel"]
