"""A tiny random model with its tokenizer, and held-out documents in a finished prepare_data folder."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.loading import load_tokenizer
from ingot.tokenization.build import save_tokenizer, train_bpe
from modeling import IngotConfig, IngotForCausalLM

VOCABULARY = 320
SENTENCE = "the state of our union is strong and free people work in peace with law and trade at sea 日本 größer 🙂"


def text_of(num_words: int, seed: int) -> str:
    """Words in a random order; the same for the same seed."""
    return " ".join(random.Random(seed).choices(SENTENCE.split(), k=num_words))


def make_model(seed: int = 0, **options: Any) -> IngotForCausalLM:
    """A random model of 128 positions that knows every token of the tiny tokenizer."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = IngotConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, head_dim=8, max_position_embeddings=128, initializer_range=0.5,
        **{**sizes, **options},
    )  # fmt: skip
    return IngotForCausalLM(config).eval()


def make_run(folder: Path, stage: str, results: dict[str, Any]) -> Path:
    """Marks a folder as a finished run of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "recipe": {}, "inputs": {}, "results": results, "seconds": 1.0, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub folder with a tiny random model, its tokenizer and the chat template."""
    folder = tmp_path_factory.mktemp("hub")
    save_tokenizer(train_bpe(iter([text_of(400, 0)]), VOCABULARY, "qwen2"), folder, "qwen2")
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(hub_folder: Path) -> Any:
    """The tokenizer of the Hub folder."""
    return load_tokenizer(hub_folder)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished prepare_data folder with three held-out documents of 100 words."""
    folder = make_run(tmp_path_factory.mktemp("data"), "prepare_data", {})
    rows = [{"id": f"doc-{i}", "text": text_of(100, i), "metadata": {"year": 1800 + i}} for i in range(3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
