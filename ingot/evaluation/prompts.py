"""Fixed prompts, answered by several models side by side."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

PROMPTS = [
    "Once upon a time",
    "The most important thing to know about freedom is",
    "In the year 1863, the people of the United States",
    "Dear friend, I write to you because",
    "What makes a good leader?",
    "Write one sentence about the sea.",
    "Explain in two sentences why schools matter.",
    "Give three reasons to keep a promise.",
    "Open a speech to the nation in a time of war.",
    "Say goodbye politely.",
]


@dataclass(frozen=True)
class Generation:
    """How text is drawn; temperature 0 takes the most likely token each time."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """The arguments for `generate`."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        drawing = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, **drawing}


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt, and whether it stopped by itself."""

    prompt: str
    text: str
    num_tokens: int
    stopped: bool


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    generation: Generation,
    chat: bool,
) -> Iterator[Answer]:
    """Each prompt's answer: as an assistant's turn through the chat template, or as the text that follows the prompt.

    The seed of a prompt comes from its text, so an answer does not depend on the prompts before it.
    """
    import torch

    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    for prompt in prompts:
        inputs = {k: v.to(model.device) for k, v in encode_prompt(tokenizer, prompt, chat).items()}
        length = inputs["input_ids"].shape[1]
        torch.manual_seed(generation.seed + zlib.crc32(prompt.encode()))
        with torch.inference_mode():
            output = model.generate(**inputs, **generation.options(), eos_token_id=stops or None, pad_token_id=pad)
        new = output[0, length:].tolist()
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        yield Answer(prompt, text.strip() if chat else text, len(new), bool(new) and new[-1] in stops)


def encode_prompt(tokenizer: Any, prompt: str, chat: bool) -> dict[str, Any]:
    """Token ids (1, T) and attention mask of a prompt."""
    if chat:
        turn = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text: those of the model's generation config and the tokenizer's end of text."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*found, tokenizer.eos_token_id] if token is not None})
