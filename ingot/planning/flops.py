"""Arithmetic of one token, under a named convention and by part of the model.

QK^T and AV over all heads together cost 4 S^2 (heads x head width) FLOPs a layer and sequence when every token sees
every other, half of that when it sees only earlier ones: the number of heads is in the width, not a factor beside it.
"""

from typing import Literal

from ingot.planning.architecture import Architecture, Layer

Convention = Literal["mfu", "palm", "6n", "non_causal", "causal"]
CONVENTIONS: dict[Convention, str] = {
    "mfu": "6 (N - input embedding) + 12 L H S: every MFU in Ingot; the head counts, tied or not",
    "palm": "6 (N - embeddings) + 12 L H S: without the input embedding and an untied head (Chowdhery et al. 2022)",
    "6n": "6 N: no attention scores (Kaplan et al. 2020)",
    "non_causal": "three times the matrix products of the forward pass, attention scores in full",
    "causal": "three times the matrix products of the forward pass, attention scores of earlier tokens only",
}


def training_flops_per_token(architecture: Architecture, seq_length: int, convention: Convention = "mfu") -> float:
    """FLOPs of one training token: forward and twice that for backward; nothing computed twice is counted.

    N counts what a token multiplies (`Architecture.multiplied`): of experts those that it meets, no tables but the
    token table and positions, no vision tower; L layers with scores, H heads times head width, S `seq_length` tokens.
    """
    if convention in ("non_causal", "causal"):
        return 3.0 * sum(forward_flops_by_part(architecture, seq_length, convention == "causal").values())
    if convention == "6n":
        return 6.0 * architecture.multiplied
    left_out = architecture.input_embedding + (architecture.head if convention == "palm" else 0)
    if architecture.tied and convention == "mfu":
        left_out = 0  # the table is the head, too
    return 6.0 * (architecture.multiplied - left_out) + 3 * attention_flops(architecture, seq_length)


def forward_flops_per_token(architecture: Architecture, seq_length: int, convention: Convention = "mfu") -> float:
    """FLOPs of one token in the forward pass: a third of its training."""
    return training_flops_per_token(architecture, seq_length, convention) / 3


def attention_flops(architecture: Architecture, seq_length: int) -> float:
    """4 L H S: scores and weighted values of one token that sees `seq_length` others in every layer."""
    return float(sum(times * _scores(layer, seq_length) for layer, times in architecture.kinds))


def forward_flops_by_part(architecture: Architecture, seq_length: int, causal: bool = True) -> dict[str, float]:
    """FLOPs of one token in the forward pass by part of the model; norms and activations, below 1%, are left out.

    A sliding layer sees at most its window; with `causal` a token sees half the sequence (or window) on average.
    """
    names = {"attention": "attention_projections", "router": "router", "recurrent": "recurrent"}
    parts = dict.fromkeys(("attention_projections", "attention_scores", "recurrent", "feed_forward", "router"), 0.0)
    for layer, times in architecture.kinds:
        seen = min(seq_length, layer.window or seq_length)
        parts["attention_scores"] += times * _scores(layer, _seen_on_average(seq_length, seen) if causal else seen)
        parts["recurrent"] += 2.0 * times * layer.convolutions
        for matrix in layer.matrices:
            parts[names.get(matrix.component, "feed_forward")] += 2.0 * times * matrix.products
    parts["head"] = 2.0 * (architecture.head or architecture.input_embedding)
    parts["other"] = 2.0 * architecture.outside_projections
    return {name: flops for name, flops in parts.items() if flops}


def _scores(layer: Layer, seen: float) -> float:
    """QK^T and AV of one token with `seen` others: 2 FLOPs for each number of queries' and values' width."""
    return 2.0 * layer.num_heads * (layer.qk_head_dim + layer.v_head_dim) * seen


def _seen_on_average(seq_length: int, window: int) -> float:
    """Earlier tokens that one sees on average: half the sequence, or the window after a start in which it fills."""
    return window - window * window / (2 * seq_length)
