"""How well a tokenizer packs text."""

from ingot.tokenization.build import train_bpe
from ingot.tokenization.inspect import measure

from .conftest import texts


def test_measures() -> None:
    tokenizer = train_bpe(texts(), 260, "qwen2")  # bytes only: every byte is a token
    measured = measure(tokenizer, ["ab cd", "ef"], max_texts=1)
    assert measured == {"bytes_per_token": 1.0, "tokens_per_word": 2.5, "share_of_entries_used": round(5 / 260, 3)}
