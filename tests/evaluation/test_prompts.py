"""Fixed prompts: the same answer every time, through the template or as plain text, ended by a stop token."""

from typing import Any

import torch

from ingot.evaluation.prompts import PROMPTS, Answer, Generation, answer_prompts, encode_prompt

from .conftest import make_model

WARM = Generation(max_new_tokens=6, temperature=1.0, top_p=0.9, seed=3)


def test_there_are_ten_default_prompts() -> None:
    assert len(set(PROMPTS)) == 10


def test_an_answer_does_not_depend_on_the_prompts_before_it(tokenizer: Any) -> None:
    model, prompts = make_model(), ["the state", "our union", "free people"]
    together = list(answer_prompts(model, tokenizer, prompts, WARM, chat=False))
    alone = list(answer_prompts(model, tokenizer, prompts[2:], WARM, chat=False))
    assert together[2:] == alone
    other = Generation(max_new_tokens=6, temperature=1.0, seed=4)
    assert list(answer_prompts(model, tokenizer, prompts, other, chat=False)) != together


def test_temperature_zero_takes_the_likeliest_token(tokenizer: Any) -> None:
    model = make_model()
    (answer,) = answer_prompts(model, tokenizer, ["the state"], Generation(max_new_tokens=1), chat=False)
    likeliest = model(torch.tensor([tokenizer("the state").input_ids])).logits[0, -1].argmax()
    assert answer.text == tokenizer.decode([int(likeliest)], skip_special_tokens=True)


def test_chat_prompts_go_through_the_template(tokenizer: Any) -> None:
    plain, chat = (encode_prompt(tokenizer, "free people", chat)["input_ids"][0].tolist() for chat in (False, True))
    assert tokenizer.decode(plain) == "free people"
    assert tokenizer.decode(chat) == "<|im_start|>user\nfree people<|im_end|>\n<|im_start|>assistant\n"


def test_a_stop_token_ends_the_answer_and_is_not_shown(tokenizer: Any) -> None:
    model = make_model(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    end = torch.nn.functional.one_hot(torch.tensor(tokenizer.convert_tokens_to_ids("<|im_end|>")), 320) * 9.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + end)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    (answer,) = answer_prompts(model, tokenizer, ["the state"], Generation(max_new_tokens=5), chat=True)
    assert answer == Answer("the state", "", 1, True)
