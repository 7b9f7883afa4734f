"""What the cases train on: a seeded corpus of bytes, models of a few thousand parameters, and a game of colours."""

import json
import random
from pathlib import Path
from typing import Any

from ingot.data.shard_writer import ShardWriter
from ingot.data.shards import token_dtype
from ingot.runs import describe_file, sha256_file, write_json
from ingot.tokenization.build import save_tokenizer, train_bpe

WORDS = ("red", "blue", "green", "black", "one", "two", "three", "four", "and", "then")
COLOURS = ("red", "blue", "green", "black")
VOCABULARY = 260  # the special tokens and every byte: ids that a reader can check
SEQ_LENGTH = 32
RECORD: dict[str, Any] = {"recipe": {}, "results": {}, "seconds": 1.0}


def make_corpus(folder: Path, documents: int = 120) -> Path:
    """Writes `tokenizer` and `shards`, as train_tokenizer and prepare_data would; returns the folder."""
    tokenizer_folder, shards = folder / "tokenizer", folder / "shards"
    tokenizer_folder.mkdir(parents=True)
    (shards / "tokens").mkdir(parents=True)
    tokenizer = train_bpe(iter([""]), VOCABULARY, "qwen2")
    save_tokenizer(tokenizer, tokenizer_folder, "qwen2")
    generator = random.Random(0)
    splits = {}
    for split, size in (("train", documents), ("validation", 6)):
        writer = ShardWriter(shards / "tokens", f"{split}-00000", token_dtype(VOCABULARY))
        for _ in range(size):
            text = " ".join(generator.choices(WORDS, k=generator.randint(1, 20)))
            writer.add([*tokenizer.encode(text).ids, 0], len(text.encode()))
        entry = writer.close()
        splits[split] = {**{k: v for k, v in entry.items() if k != "name"}, "shards": [entry]}
    sha = sha256_file(tokenizer_folder / "tokenizer.json")
    description = {"splits": splits, "dtype": "<u2", "vocab_size": VOCABULARY, "end_of_document": 0}
    write_json(shards / "data.json", {**description, "tokenizer_sha256": sha})
    for path, stage in ((tokenizer_folder, "train_tokenizer"), (shards, "prepare_data")):
        files = {str(p.relative_to(path)): describe_file(p) for p in path.rglob("*") if p.is_file()}
        write_json(path / "manifest.json", {"stage": stage, "files": files, **RECORD})
    return folder


def pretrain_tree(corpus: Path, run_dir: Path) -> dict[str, Any]:
    """A recipe as plain values: float32, two layers, twelve steps of four blocks."""
    return {
        "model": {
            "tokenizer": str(corpus / "tokenizer"), "vocab_size": 384, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "tie_word_embeddings": True,
        },
        "data": {"shards": str(corpus / "shards"), "seq_length": SEQ_LENGTH},
        "training": {
            "max_steps": 12, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "learning_rate": 1e-2,
            "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1, "adam_beta1": 0.9,
            "adam_beta2": 0.95, "max_grad_norm": 1.0, "bf16": False, "seed": 1, "logging_steps": 1,
            "eval_strategy": "steps", "eval_steps": 6, "save_steps": 4, "save_total_limit": 2, "use_cpu": True,
        },
        "run": {"dir": str(run_dir), "optimizer": "muon"},
    }  # fmt: skip


def make_start(folder: Path, **config: Any) -> Path:
    """A Hub folder with a random model of 96 positions and its tokenizer; sft and dpo start from it."""
    import torch

    from modeling import IngotConfig, IngotForCausalLM

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


def finetune_tree(run_dir: Path, start: Path, rows: Path, training: dict[str, Any], **model: Any) -> dict[str, Any]:
    """A recipe of sft or dpo as plain values: trains on most of the rows and measures with twenty."""
    shared = {
        "bf16": False, "gradient_checkpointing": False, "max_length": 64, "per_device_train_batch_size": 8,
        "logging_steps": 5, "save_strategy": "no", "seed": 1,
    }  # fmt: skip
    return {
        "model": model,
        "data": {"train": [{"path": str(rows)}], "validation_rows": 20},
        "training": {**shared, **training},
        "run": {"dir": str(run_dir), "from": str(start)},
    }
