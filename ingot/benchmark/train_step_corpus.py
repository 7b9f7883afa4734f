"""Random tokens as `prepare_data` would write them, and the toy tokenizer that goes with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.shard_writer import ShardWriter
from ingot.data.shards import token_dtype
from ingot.runs import describe_file, sha256_file, write_json
from ingot.tokenization.build import save_tokenizer, train_bpe

NUM_TOKENS = 1 << 22
BLOCKS = 16  # in a document of the corpus without masks, which ends where a block does
MEAN_LENGTH, SPREAD, LONGEST = 400, 1.0, 8192  # tokens of the other's documents, whose lengths are log-normal
BYTES_PER_TOKEN = 4
END, TOKENIZER_ENTRIES = 0, 260  # the special tokens and every byte
RECORD: dict[str, Any] = {"recipe": {}, "results": {}, "seconds": 1.0}


def write_corpus(folder: Path, kind: str, rows: int, seq_length: int, num_tokens: int = NUM_TOKENS) -> Path:
    """Writes `tokenizer` and `shards` of ids below `rows`, unless they are there. Returns their folder.

    kind: `unpacked`, where no block of `seq_length` tokens holds two documents; `documents`, of 400 tokens on average.
    """
    path = folder / f"{kind}-{rows}-{seq_length}"
    if (path / "shards" / "manifest.json").is_file():
        return path
    (path / "shards" / "tokens").mkdir(parents=True)
    (path / "tokenizer").mkdir()
    save_tokenizer(train_bpe(iter([""]), TOKENIZER_ENTRIES, "qwen2"), path / "tokenizer", "qwen2")
    generator = np.random.default_rng(0)
    lengths = list(_lengths(kind, seq_length, num_tokens, generator))
    splits = {
        split: _write_split(path / "shards" / "tokens", split, counts, rows, generator)
        for split, counts in (("train", lengths), ("validation", lengths[:2]))
    }
    description = {"splits": splits, "dtype": token_dtype(rows).str, "vocab_size": rows, "end_of_document": END}
    sha = sha256_file(path / "tokenizer" / "tokenizer.json")
    write_json(path / "shards" / "data.json", {**description, "tokenizer_sha256": sha})
    for part, stage in (("tokenizer", "train_tokenizer"), ("shards", "prepare_data")):
        files = {str(p.relative_to(path / part)): describe_file(p) for p in (path / part).rglob("*") if p.is_file()}
        write_json(path / part / "manifest.json", {"stage": stage, "files": files, **RECORD})
    return path


def _lengths(kind: str, seq_length: int, num_tokens: int, generator: np.random.Generator) -> Iterator[int]:
    """Tokens of every document, its end included."""
    if kind == "unpacked":
        yield from [BLOCKS * seq_length] * max(2, num_tokens // (BLOCKS * seq_length))
        return
    assert kind == "documents", kind
    count = max(2, num_tokens // MEAN_LENGTH)
    drawn = generator.lognormal(np.log(MEAN_LENGTH) - SPREAD**2 / 2, SPREAD, count)  # whose mean is MEAN_LENGTH
    yield from np.clip(drawn, 2, LONGEST).astype(int).tolist()


def _write_split(
    folder: Path, split: str, lengths: list[int], rows: int, generator: np.random.Generator
) -> dict[str, Any]:
    """One shard; returns its entry in data.json."""
    dtype, total = token_dtype(rows), sum(lengths)
    ids: NDArray[Any] = generator.integers(END + 1, rows, total).astype(dtype)
    ends = np.cumsum(lengths)
    ids[ends - 1] = END
    writer = ShardWriter(folder, f"{split}-00000", dtype)
    writer.write(ids, ends, BYTES_PER_TOKEN * total)
    entry = writer.close()
    return {**{key: value for key, value in entry.items() if key != "name"}, "shards": [entry]}
