"""Prompts, detokenisation and stop strings."""

import random

import pytest
from transformers import PreTrainedTokenizerBase

from ingot.serving.loading import LoadedModel
from ingot.serving.text import ChatTemplateError, Detokenizer, StopStrings, TextCodec


def streamed(codec: TextCodec, ids: list[int], prompt: str = "Hi") -> list[str]:
    detokenizer = Detokenizer(codec, codec.encode(prompt))
    return [*(detokenizer.add(i) for i in ids), detokenizer.finish()]


def test_an_emoji_that_is_split_over_tokens_appears_whole(loaded: LoadedModel) -> None:
    ids = loaded.codec.encode("a🦜b")
    assert len(ids) == 5  # three of them for the parrot
    assert streamed(loaded.codec, ids) == ["a", "", "", "🦜", "b", ""]


def test_pieces_add_up_to_the_whole_for_random_ids(loaded: LoadedModel) -> None:
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(len(loaded.codec.tokenizer)) for _ in range(draw.randrange(1, 30))]
        assert "".join(streamed(loaded.codec, ids)) == loaded.codec.tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_that_never_become_a_character_are_shown_at_the_end(loaded: LoadedModel) -> None:
    assert streamed(loaded.codec, loaded.codec.encode("a🦜")[:3]) == ["a", "", "", "\ufffd"]


def test_ids_outside_the_vocabulary_have_no_text(loaded: LoadedModel) -> None:
    assert loaded.codec.token_text(10_000) == ""
    assert streamed(loaded.codec, [10_000]) == ["", ""]


def test_a_conversation_has_the_ids_that_training_sees(
    tokenizer: PreTrainedTokenizerBase, loaded: LoadedModel
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello 🦜"},
        {"role": "assistant", "content": "Hi there"},
    ]
    trained = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    start = trained["assistant_masks"].index(1)
    served = loaded.codec.encode_chat(messages[:2])
    assert served == trained["input_ids"][:start]
    written_out = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello 🦜<|im_end|>\n<|im_start|>assistant\n"
    )
    assert served == tokenizer(written_out)["input_ids"]
    assert served[:2] == [1, *tokenizer("system")["input_ids"][:1]]


def test_a_template_that_refuses_the_messages_says_why(loaded: LoadedModel) -> None:
    with pytest.raises(ChatTemplateError, match="unknown role 'tool'"):
        loaded.codec.encode_chat([{"role": "tool", "content": "x"}])


def stop(strings: list[str], deltas: list[str], keep: bool) -> tuple[str, bool, list[str]]:
    """The text that comes out, whether it stopped, and the pieces."""
    watcher, pieces = StopStrings(strings, keep), []
    for delta in deltas:
        text, stopped = watcher.add(delta)
        pieces.append(text)
        if stopped:
            return "".join(pieces), True, pieces
    pieces.append(watcher.finish())
    return "".join(pieces), False, pieces


def test_a_stop_string_in_pieces_is_cut_off_and_never_shown() -> None:
    assert stop(["STOP"], ["go S", "TO", "P now"], keep=False) == ("go ", True, ["go ", "", ""])


def test_a_kept_stop_string_ends_the_text() -> None:
    assert stop(["STOP"], ["go S", "TO", "P now"], keep=True) == ("go STOP", True, ["go S", "TO", "P"])


def test_text_that_only_looked_like_a_stop_string_is_given_out() -> None:
    assert stop(["STOP"], ["S", "TO", "RY", " ST"], keep=False) == ("STORY ST", False, ["", "", "STORY", " ", "ST"])


def test_of_several_stop_strings_the_one_complete_first_counts() -> None:
    assert stop(["bcd", "c"], ["abcd"], keep=False)[0] == "ab"
    assert stop(["abc", "bc"], ["xabcx"], keep=False)[0] == "x"
    assert stop(["bc", "abc"], ["xabcx"], keep=True)[0] == "xabc"


def test_where_text_stops_does_not_depend_on_how_it_is_cut() -> None:
    draw, strings = random.Random(1), ["aba", "bb", "cab🙂"]
    for _ in range(500):
        text = "".join(draw.choice("abc🙂") for _ in range(draw.randrange(1, 25)))
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        for keep in (True, False):
            assert stop(strings, pieces, keep)[:2] == stop(strings, list(text), keep)[:2]
