"""Tiny models for the architecture's tests: two layers, made in milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling import IngotConfig, IngotForCausalLM

VOCABULARY = 96
KINDS: dict[str, dict[str, Any]] = {
    "rope": {},
    "learned": {"position_embedding_type": "learned"},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "alibi": {"position_embedding_type": "alibi"},
    "none": {"position_embedding_type": "none"},
    "sliding": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "alibi_sliding": {
        "position_embedding_type": "alibi",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 0,
    },
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def tiny_config(**changes: Any) -> IngotConfig:
    """A two-layer configuration with grouped heads; keywords replace fields."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return IngotConfig(**{**fields, **changes})


@pytest.fixture
def tiny() -> Callable[..., IngotForCausalLM]:
    """Make a tiny model in evaluation mode, the same every time."""

    def make(**changes: Any) -> IngotForCausalLM:
        torch.manual_seed(0)
        return IngotForCausalLM(tiny_config(**changes)).eval()

    return make


@pytest.fixture
def config() -> Callable[..., IngotConfig]:
    return tiny_config


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """Make token ids of a shape, none of them special."""

    def make(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `kind` runs for every way of knowing positions, and for windows and experts."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS.values(), ids=KINDS)
