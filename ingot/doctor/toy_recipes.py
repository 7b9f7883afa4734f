"""The self-test's corpus of seeded sentences, and its recipes: a model of some thirty thousand parameters."""

import json
import random
from pathlib import Path
from typing import Any

from ingot.faults import toys

WHO = ("the president", "a farmer", "my neighbour", "the old sailor", "a student", "the city council", "nobody")
DOES = ("builds", "paints", "remembers", "sells", "repairs", "praises", "loses", "describes")
WHAT = ("a bridge", "the red house", "seven boats", "the long report", "a garden", "an honest answer", "the harbour")
WHEN = ("in spring", "before noon", "after the war", "every winter", "without a word", "at last")
STEPS, SAVE_STEPS = 24, 4
SEQ_LENGTH = 64


def write_corpus(folder: Path, documents: int = 240) -> None:
    """Writes documents.jsonl to pretrain on and rows.jsonl to fine-tune with."""
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choice(words) for words in (WHO, DOES, WHAT, WHEN)).capitalize() + "."

    texts = [{"text": " ".join(sentence() for _ in range(draw.randint(2, 9)))} for _ in range(documents)]
    rows = [{"prompt": f"What happens {draw.choice(WHEN)}?", "response": sentence()} for _ in range(48)]
    for name, lines in (("documents.jsonl", texts), ("rows.jsonl", rows)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def recipe_trees(folder: Path) -> dict[str, dict[str, Any]]:
    """Stage -> recipe as plain values; each writes a folder of its own."""
    data = {"sources": [{"path": str(folder / "documents.jsonl")}], "split": {"validation": 8}}
    return {
        "train_tokenizer": {
            "tokenizer": {"vocab_size": 384}, "data": data, "run": {"dir": str(folder / "tokenizer")},
        },
        "prepare_data": {
            "data": {"tokenizer": str(folder / "tokenizer"), **data},
            "run": {"dir": str(folder / "shards"), "workers": 1},
        },
        "pretrain": pretrain_tree(folder),
        "sft": sft_tree(folder),
        "export": {"run": {"from": str(folder / "sft"), "dir": str(folder / "export")}},
        "serve": {"model": {"path": str(folder / "export")}, "run": {"dir": str(folder / "serve")}},
    }  # fmt: skip


def pretrain_tree(folder: Path) -> dict[str, Any]:
    """The fault suite's toy, a little wider, saved often, so that a kill finds a save."""
    tree = toys.pretrain_tree(folder, folder / "pretrain")
    tree["model"] |= {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    tree["data"]["seq_length"] = SEQ_LENGTH
    tree["training"] |= {
        "max_steps": STEPS, "per_device_train_batch_size": 8, "eval_steps": STEPS, "save_steps": SAVE_STEPS,
    }  # fmt: skip
    del tree["training"]["use_cpu"]  # on a GPU where there is one
    return tree


def sft_tree(folder: Path) -> dict[str, Any]:
    """A few steps over the rows."""
    return {
        "data": {"train": [{"path": str(folder / "rows.jsonl")}], "validation_rows": 8},
        "training": {
            "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_length": SEQ_LENGTH,
            "packing": False, "assistant_only_loss": True, "bf16": False, "gradient_checkpointing": False, "seed": 1,
            "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no",
        },
        "run": {"from": str(folder / "pretrain"), "dir": str(folder / "sft")},
    }  # fmt: skip
