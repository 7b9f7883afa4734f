"""How well a tokenizer packs text."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
