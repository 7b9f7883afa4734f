"""Small tokenizers, trained once."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot.tokenization.build import PATTERNS, save_tokenizer, train_bpe


def texts(size: int = 400) -> Iterator[str]:
    """Sentences of made-up words, numbers and contractions."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghilmnoprstuwy", k=generator.randint(2, 9))) for _ in range(300)]
    for _ in range(size):
        yield " ".join(generator.choices(words, k=12)) + f", it's {generator.randint(0, 3000)}.\n"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tokenizer of 512 entries for every pre-tokenizer."""
    saved = {}
    for name in PATTERNS:
        saved[name] = tmp_path_factory.mktemp(name)
        save_tokenizer(train_bpe(texts(), 512, name), saved[name], name)
    return saved


@pytest.fixture(scope="session")
def tokenizer(folders: dict[str, Path]) -> Any:
    """The one with Qwen2's pre-tokenizer, as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders["qwen2"])
