"""Arithmetic of a model, from its configuration and parameter count."""

from typing import Any


def training_flops_per_token(num_parameters: int, config: Any, seq_length: int) -> float:
    """FLOPs of one training token: 6 (N - input embedding) + 12 L H S, the convention of every MFU figure in Ingot.

    N is all parameters that a token meets (of the experts only those it is sent to), L layers, H heads times head
    width, S the sequence length; attention is counted as non-causal (Chowdhery et al., 2022, "PaLM", appendix B). A
    tied table is also the head, so it stays counted.
    """
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seq_length
    return 6.0 * (num_parameters - embedding - _idle_expert_parameters(config)) + attention


def _idle_expert_parameters(config: Any) -> int:
    """Parameters of the experts that a token is not sent to: three matrices each."""
    if not config.num_experts:
        return 0
    sparse_layers = sum(config.is_sparse_layer(i) for i in range(config.num_hidden_layers))
    idle = config.num_experts - config.num_experts_per_tok
    return int(sparse_layers * idle * 3 * config.hidden_size * config.moe_intermediate_size)
