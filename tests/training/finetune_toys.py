"""A tiny model, a tokenizer of bytes, and a game of colours to fine-tune on."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from ingot.recipe import build_recipe
from ingot.tokenization.build import save_tokenizer, train_bpe
from ingot.training.dpo import DPORecipe
from ingot.training.sft import SFTRecipe
from modeling import IngotConfig, IngotForCausalLM

COLOURS = ("red", "blue", "green", "black")
VOCABULARY = 260  # the special tokens and every byte: ids that a reader can check
TRAINING = {
    "bf16": False, "gradient_checkpointing": False, "max_length": 64, "per_device_train_batch_size": 8,
    "logging_steps": 5, "save_strategy": "no", "seed": 1,
}  # fmt: skip


def make_start(folder: Path, **config: Any) -> Path:
    """A Hub folder with a random model of 96 positions and its tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {**sizes, "num_key_value_heads": 1, "max_position_embeddings": 96, "tie_word_embeddings": True, **config}
    model = IngotForCausalLM(IngotConfig(vocab_size=384, eos_token_id=0, pad_token_id=3, **values))
    model.save_pretrained(folder)
    save_tokenizer(train_bpe(iter([""]), VOCABULARY, "qwen2"), folder, "qwen2")
    return folder


def write_rows(path: Path, num: int = 100) -> Path:
    """Rows for both stages: say two colours; the rejected answer says them the wrong way round."""
    generator = random.Random(0)
    rows = []
    for i in range(num):
        a, b = generator.sample(COLOURS, 2)
        rows.append(
            {"prompt": f"{a} {b} {i}", "response": f"{a}, {b}", "chosen": f"{a}, {b}", "rejected": f"{b}, {a}!"}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_recipe(run_dir: Path, start: Path, rows: Path, model: Any = None, **training: Any) -> SFTRecipe:
    """A recipe that trains on most of the rows and measures with twenty."""
    given = {"packing": True, "assistant_only_loss": True, "learning_rate": 1e-2, "num_train_epochs": 4}
    return build_recipe(SFTRecipe, _tree(run_dir, start, rows, model, {**TRAINING, **given, **training}))


def dpo_recipe(run_dir: Path, start: Path, rows: Path, model: Any = None, **training: Any) -> DPORecipe:
    """The same for preference pairs."""
    given = {"precompute_ref_log_probs": True, "learning_rate": 1e-3, "num_train_epochs": 2}
    return build_recipe(DPORecipe, _tree(run_dir, start, rows, model, {**TRAINING, **given, **training}))


def _tree(run_dir: Path, start: Path, rows: Path, model: Any, training: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model or {},
        "data": {"train": [{"path": str(rows)}], "validation_rows": 20},
        "training": training,
        "run": {"dir": str(run_dir), "from": str(start)},
    }
