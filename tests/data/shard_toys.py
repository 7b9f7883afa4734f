"""Token shards of seeded documents, written without the prepare_data stage."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot.data.shard_writer import ShardWriter
from ingot.data.shards import token_dtype

END = 0  # the token that ends every document


def make_shards(
    folder: Path, lengths: Sequence[Sequence[int]], vocab_size: int = 300, seed: int = 0, tokenizer: str = "a"
) -> Path:
    """One training shard for each list of lengths (tokens of its documents, the last of them END), and 5 held out."""
    (folder / "tokens").mkdir(parents=True)
    generator, splits = random.Random(seed), {}
    for split, shards in (("train", lengths), ("validation", [[9, 2, 17, 5, 30]])):
        entries = []
        for number, sizes in enumerate(shards):
            writer = ShardWriter(folder / "tokens", f"{split}-{number:05d}", token_dtype(vocab_size))
            for size in sizes:
                writer.add([*generator.choices(range(1, vocab_size), k=size - 1), END], 3 * size)
            entries.append(writer.close())
        totals: dict[str, Any] = {k: sum(e[k] for e in entries) for k in ("documents", "tokens", "bytes")}
        splits[split] = {**totals, "shards": entries}
    description = {"splits": splits, "dtype": token_dtype(vocab_size).str, "vocab_size": vocab_size}
    description |= {"end_of_document": END, "tokenizer_sha256": tokenizer}
    (folder / "data.json").write_text(json.dumps(description))
    return folder


def some_lengths(size: int, seed: int = 0, longest: int = 60) -> list[int]:
    """Lengths of documents, most of them short."""
    generator = random.Random(seed)
    return [2 + int((longest - 2) * generator.random() ** 3) for _ in range(size)]
