"""Unigram: exact size, bytes for rare characters, every text comes back, no text becomes a token that it spells."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ingot.recipe import InputError
from ingot.tokenization.build import Roles, write_folder
from ingot.tokenization.chat_template import SPECIAL_TOKENS
from ingot.tokenization.sample_texts import NASTY, SPACE_SIGN, all_samples
from ingot.tokenization.unigram import ACROSS, ASCII, BYTES, RESERVED, common_characters, train_unigram

from .conftest import texts

SIZE = 500


def train() -> Tokenizer:
    """A model of made-up words with one rare letter."""
    return train_unigram(lambda: [*texts(), "ö" * 30, "é"], SIZE, "qwen2")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("unigram")
    write_folder(train(), folder, Roles())
    return AutoTokenizer.from_pretrained(folder)


def any_text(generator: random.Random) -> str:
    """Characters from all of Unicode, ASCII and white space in equal parts."""
    kinds = [
        lambda: chr(generator.randrange(0x110000)),
        lambda: generator.choice(ASCII),
        lambda: generator.choice(" \n\t"),
    ]
    found = "".join(generator.choice(kinds)() for _ in range(generator.randrange(60)))
    return found.encode("utf-8", "ignore").decode()  # without lone surrogates, which no file can hold


def test_every_text_comes_back(tokenizer: Any) -> None:
    generator = random.Random(1)
    for text in [*NASTY, SPACE_SIGN, *all_samples(), *(any_text(generator) for _ in range(500))]:
        ids = tokenizer.encode(text, split_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & {0, 1, 2, 3}


def test_special_tokens_come_first_then_the_bytes(tokenizer: Any) -> None:
    assert len(tokenizer) == SIZE
    assert tokenizer.convert_ids_to_tokens(list(range(len(RESERVED)))) == [*SPECIAL_TOKENS, *BYTES]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 3)
    assert tokenizer.encode("a<|im_end|>b")[1] == 2


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, "<0x41>", "x<|im_end|>\u0416<0xFF>"])
def test_a_text_that_spells_a_token_does_not_become_it(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, split_special_tokens=True)
    names = tokenizer.convert_ids_to_tokens(ids)
    assert not set(names) & {*SPECIAL_TOKENS, "<0x41>", "<0xFF>"}
    assert tokenizer.decode(ids) == text


def test_rare_characters_are_bytes_and_frequent_ones_are_not(tokenizer: Any) -> None:
    frequent, rare = tokenizer.encode("ö"), tokenizer.encode("é")
    assert len(frequent) == 1 and frequent[0] >= len(RESERVED)
    assert tokenizer.convert_ids_to_tokens(rare) == ["<0xC3>", "<0xA9>"]


def test_a_frequent_word_is_one_piece() -> None:
    """The library alone would know only parts of it: it looks for pieces among different words."""
    tokenizer = train_unigram(lambda: [*texts(), "the children and the forest " * 40], SIZE, "qwen2")
    assert tokenizer.encode(" the children and the forest").tokens == [" the", " children", " and", " the", " forest"]


def test_no_piece_goes_from_one_word_into_the_next(tokenizer: Any) -> None:
    assert not [piece for piece in tokenizer.get_vocab() if ACROSS.search(piece)]


def test_frequent_words_take_few_tokens(tokenizer: Any) -> None:
    text = next(texts())
    assert len(tokenizer.encode(text)) < 0.8 * len(text)
    assert len(tokenizer.encode(" it's")) < len(" it's")


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train().to_str() == train().to_str()


def test_characters_are_limited_and_cover_the_text() -> None:
    def lines() -> Iterator[str]:
        yield "ab" * 5000 + "é" * 20 + "ü"

    assert set(common_characters(lines(), 200)) == {*ASCII, "é"}
    assert common_characters(lines(), len(ASCII)) == "".join(sorted(ASCII))


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size: the training text is enough for only \d+ entries"):
        train_unigram(lambda: ["too little text"], 800, "qwen2")


def test_the_file_says_bytes_are_the_way_out(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert (model["type"], model["byte_fallback"]) == ("Unigram", True)
