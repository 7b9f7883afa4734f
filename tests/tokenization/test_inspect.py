"""What is said about a tokenizer, and the check that a model has rows for it."""

import pytest

from ingot.recipe import InputError
from ingot.tokenization.build import train_bpe
from ingot.tokenization.inspect import check_rows, measure, rows_for

from .conftest import texts


def test_rows_are_a_multiple_of_128_and_enough() -> None:
    check_rows(512, range(512))
    check_rows(640, range(512))  # a recipe may ask for more
    with pytest.raises(InputError, match="512 rows are too few for the tokenizer's 513 tokens; set it to 640 or more"):
        check_rows(512, range(513))
    with pytest.raises(InputError, match="520 is not a multiple of 128; for the tokenizer's 512 tokens set it to 640"):
        check_rows(520, range(512))
    assert [rows_for(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_measures() -> None:
    tokenizer = train_bpe(texts(), 260, "qwen2")  # bytes only: every byte is a token
    measured = measure(tokenizer, ["ab cd", "ef"], max_texts=1)
    assert measured == {"bytes_per_token": 1.0, "tokens_per_word": 2.5, "share_of_entries_used": round(5 / 260, 3)}
