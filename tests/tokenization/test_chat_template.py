"""The chat template: golden ids and text, and marks around exactly what the assistant writes."""

from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from ingot.tokenization.chat_template import stop_token_ids

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long<|im_end|>\n"
)


def test_text_is_chatml_with_content_as_given(tokenizer: Any) -> None:
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == TEXT
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == TEXT[: TEXT.index("Hello")]


def test_golden_ids(tokenizer: Any) -> None:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    newline, plain = tokenizer.convert_tokens_to_ids("Ċ"), tokenizer.encode
    assert ids == [1, *plain("user"), newline, *plain("Hi"), 2, newline, 1, *plain("assistant"), newline]


def test_marks_enclose_answers_with_their_end(tokenizer: Any) -> None:
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    kept = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(kept) == "Hello<|im_end|>So long<|im_end|>"


def test_training_and_serving_see_the_same_ids(tokenizer: Any) -> None:
    for turn in (2, 4):
        prompt = tokenizer.apply_chat_template(CHAT[:turn], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(CHAT[: turn + 1])["input_ids"]
        assert whole[: len(prompt)] == prompt


def test_unknown_roles_are_refused(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="unknown role 'robot'; the roles are system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "x"}])


def test_generation_stops_at_document_and_turn_end(tokenizer: Any, folders: dict[str, Any]) -> None:
    assert stop_token_ids(tokenizer) == [0, 2]
    tuned = AutoTokenizer.from_pretrained(folders["qwen2"], eos_token="<|im_end|>")
    assert stop_token_ids(tuned) == [2, 0]
