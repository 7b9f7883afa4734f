"""Looking at a tokenizer: how well it packs text, and whether a model has a row for each of its entries."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from ingot.recipe import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROW_MULTIPLE = 128  # embedding rows are a multiple of this: matrix products of other sizes are slow


def rows_for(num_tokens: int) -> int:
    """The least number of embedding rows for so many tokens."""
    return -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def check_rows(vocab_size: int, tokenizer: Any) -> None:
    """Checks that a model with `vocab_size` embedding rows fits a tokenizer (anything with a length).

    Raises: InputError that names both numbers.
    """
    num_tokens = len(tokenizer)
    if vocab_size < num_tokens:
        raise InputError(
            f"model.vocab_size: {vocab_size} rows are too few for the tokenizer's {num_tokens} tokens; "
            f"set it to {rows_for(num_tokens)} or more"
        )
    if vocab_size % ROW_MULTIPLE:
        raise InputError(
            f"model.vocab_size: {vocab_size} is not a multiple of {ROW_MULTIPLE}; for the tokenizer's {num_tokens} "
            f"tokens set it to {rows_for(vocab_size)}"
        )


def measure(tokenizer: "Tokenizer", texts: Iterable[str], max_texts: int = 500) -> dict[str, float]:
    """How it cuts the first `max_texts` texts: bytes per token, tokens per word, share of the entries used."""
    used: set[int] = set()
    num_bytes = num_words = num_tokens = 0
    for text in islice(texts, max_texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        used.update(ids)
        num_bytes, num_words, num_tokens = (
            num_bytes + len(text.encode()),
            num_words + len(text.split()),
            num_tokens + len(ids),
        )
    return {
        "bytes_per_token": round(num_bytes / num_tokens, 3),
        "tokens_per_word": round(num_tokens / max(1, num_words), 3),
        "share_of_entries_used": round(len(used) / tokenizer.get_vocab_size(), 3),
    }
