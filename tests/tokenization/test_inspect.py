"""What is said about a tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from ingot.recipe import InputError
from ingot.tokenization.build import train_bpe
from ingot.tokenization.inspect import Subject, Text, describe, measure, own_texts, pieces
from ingot.tokenization.sample_texts import CODE, LANGUAGES

from .conftest import texts


@pytest.fixture(scope="module")
def found(folders: dict[str, Path]) -> dict[str, Any]:
    """The description of one small tokenizer beside another."""
    mine = Text("mine", "file", list(texts(30)))
    return describe(Subject(folders["qwen2"]), [Subject(folders["gpt2"])], [*own_texts(), mine])


def test_measures() -> None:
    tokenizer = train_bpe(texts(), 260, "qwen2")  # bytes only: every byte is a token
    measured = measure(tokenizer, ["ab cd", "ef"], max_texts=1)
    assert measured == {"bytes_per_token": 1.0, "tokens_per_word": 2.5, "share_of_entries_used": round(5 / 260, 3)}


def test_own_texts_are_ten_languages_and_five_of_code() -> None:
    assert (len(LANGUAGES), len(CODE)) == (10, 5)
    assert sum(text.num_bytes for text in own_texts()) < 30_000


def test_a_row_for_every_text(found: dict[str, Any]) -> None:
    assert [row["name"] for row in found["texts"]] == [*LANGUAGES, *CODE, "mine"]
    rows = {row["name"]: row for row in found["texts"]}
    russian, mine = rows["Russian"], rows["mine"]
    assert russian["tokens"] > russian["bytes"] * 0.9  # it was trained on Latin letters: Cyrillic is bytes
    assert mine["bytes_per_token"] == round(mine["bytes"] / mine["tokens"], 3) > 1.5
    assert mine["tokens_per_word"] == round(mine["tokens"] / mine["words"], 3)
    assert rows["Chinese"]["words"] == len(LANGUAGES["Chinese"]) and rows["Chinese"]["words_are_characters"]
    (name,) = found["against"]
    assert name != found["name"] and mine["against"][name]["tokens"] > 0


def test_entries(found: dict[str, Any], folders: dict[str, Path]) -> None:
    assert (found["model"], found["entries"], found["llama_cpp_pre_tokenizer"]) == ("BPE", 512, "qwen2")
    lengths = [entry["characters"] for entry in found["longest"]]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 4
    unused = found["unused"]
    assert 0 < unused["count"] < 512 and unused["unreachable"] == []
    everything = Text("all", "file", [e["text"] for e in unused["examples"]])
    again = describe(Subject(folders["qwen2"]), [], [*own_texts(), everything])
    assert not {e["id"] for e in again["unused"]["examples"]} & {e["id"] for e in unused["examples"][:1]}


def test_special_tokens_and_the_chat(found: dict[str, Any]) -> None:
    assert [(t["id"], t["token"], t["role"]) for t in found["special_tokens"]] == [
        (0, "<|endoftext|>", "eos"), (1, "<|im_start|>", None), (2, "<|im_end|>", None), (3, "<|pad|>", "pad"),
    ]  # fmt: skip
    chat = found["chat"]
    assert chat["text"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert (chat["ids"][0], chat["tokens"][0]) == (1, "<|im_start|>")
    assert "".join(chat["tokens"]) == chat["text"]


def test_an_entry_that_no_text_becomes_is_found(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.BPE({"a": 0, "b": 1, "ab": 2, "ba": 3}, [("a", "b")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    found = describe(Subject(tmp_path), [], [Text("x", "file", ["ab"])])
    assert found["unused"]["unreachable"] == [{"id": 3, "text": "ba"}]
    assert found["chat"] is None


def test_pieces_join_to_the_text(folders: dict[str, Path]) -> None:
    subject = Subject(folders["gpt4"])
    for text in (*LANGUAGES.values(), *CODE.values(), "é<|im_end|>\U0001f642"):
        cut = pieces(subject, text)
        assert "".join(piece["text"] for piece in cut) == text
        assert [i for piece in cut for i in piece["ids"]] == subject.ids(Text("t", "file", [text]))
    assert len(pieces(subject, "字")) == 1 and len(pieces(subject, "字")[0]["ids"]) == 3


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        Subject(tmp_path)
