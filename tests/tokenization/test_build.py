"""Byte-level BPE: exact size, fixed special ids, every text comes back, and the cuts are those of the named models."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ingot.recipe import InputError
from ingot.tokenization.build import PATTERNS, train_bpe
from ingot.tokenization.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS

from .conftest import texts

AWKWARD = [
    "naïve café, größer, e\u0301 and é", "🙂\U0001f469\u200d\U0001f467 日本語 العربية", "\x00\x07\x7f", "", " ",
    "line\r\nline\n\n\n  \tindented", "def f(x):\n\treturn  x  # ok", " leading and trailing  ", "\ufeffmark",
    "I'LL don't WE'VE 1234567 3.14", "<|im_start|> spelt out",
]  # fmt: skip


@pytest.mark.parametrize("name", list(PATTERNS))
def test_every_text_comes_back(folders: dict[str, Path], name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    for text in AWKWARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_have_the_first_ids_and_pad_is_not_eos(tokenizer: Any) -> None:
    assert len(tokenizer) == 512
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 3, None)
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert tokenizer.encode("a<|im_end|>b")[1] == 2
    assert tokenizer.decode([2, *tokenizer.encode("b")], skip_special_tokens=True) == "b"
    assert all(token not in tokenizer.encode("plain") for token in range(4))  # nothing is added


def test_the_folder_suits_old_and_new_readers(folders: dict[str, Path]) -> None:
    config = json.loads((folders["llama3"] / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["pre_tokenizer"] == "llama-bpe"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]  # transformers 4 would add token_type_ids
    assert config["chat_template"] == CHAT_TEMPLATE == (folders["llama3"] / "chat_template.jinja").read_text()


def test_words_are_cut_as_the_name_says(folders: dict[str, Path]) -> None:
    cuts = {}
    for name, folder in folders.items():
        pre_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer
        cuts[name] = [word for word, _ in pre_tokenizer.pre_tokenize_str("It'S 12345!\n\n x")]
    assert cuts["qwen2"] == ["It", "'S", "Ġ", "1", "2", "3", "4", "5", "!ĊĊ", "Ġx"]
    assert cuts["gpt4"] == cuts["llama3"] == ["It", "'S", "Ġ", "123", "45", "!ĊĊ", "Ġx"]
    assert cuts["gpt2"] == ["It", "'", "S", "Ġ12345", "!", "ĊĊ", "Ġx"]


def test_llama_takes_whole_entries_without_merging(folders: dict[str, Path]) -> None:
    models = {n: json.loads((f / "tokenizer.json").read_text())["model"] for n, f in folders.items()}
    assert {n: m["ignore_merges"] for n, m in models.items()} == {
        "gpt2": False,
        "gpt4": False,
        "qwen2": False,
        "llama3": True,
    }


@pytest.mark.shared
@pytest.mark.parametrize(("name", "original"), [("qwen2", "qwen3"), ("gpt2", "gpt2")])
def test_patterns_cut_like_the_original_tokenizers(folders: dict[str, Path], name: str, original: str) -> None:
    path = Path(__file__).parents[3] / "shared/data/tokenizers" / original / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    theirs, ours = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    for text in AWKWARD:
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


def test_the_same_texts_give_the_same_tokenizer(folders: dict[str, Path]) -> None:
    again = train_bpe(texts(), 512, "qwen2").to_str()
    assert json.loads(again) == json.loads((folders["qwen2"] / "tokenizer.json").read_text())


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size: the training text is enough for only \d+ entries"):
        train_bpe(iter(["too little text"]), 400, "qwen2")
