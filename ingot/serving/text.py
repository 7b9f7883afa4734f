"""Text to token ids and back: prompts, the chat template, incremental detokenisation and stop strings."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a chat template can raise besides its own errors: sandboxed templates still compute.
TEMPLATE_FAILURES = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError)
CONTEXT_TOKENS = 5  # prompt tokens decoded together with the answer, for decoders that look at the token before
UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character

Message = Mapping[str, str]


class ChatTemplateError(ValueError):
    """The model has no chat template, or its template refuses these messages."""


class TextCodec:
    """A tokenizer as the server needs it: safe to use from several threads, and exact when text is streamed."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", eos_token_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self.encode("a")  # settles the padding and truncation state, which must not change under a reader
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = added | set(tokenizer.all_special_ids) | set(eos_token_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be turned into a prompt."""
        return bool(self.tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer adds by itself."""
        with self._lock:
            return list(self.tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to the point where the assistant speaks, as training saw them.

        Raises: ChatTemplateError when there is no template or it refuses the messages.
        """
        if not self.has_chat_template:
            raise ChatTemplateError("this model has no chat template; use /generate with a plain prompt")
        try:
            with self._lock:
                return list(
                    self.tokenizer.apply_chat_template(
                        [dict(m) for m in messages], add_generation_prompt=True, return_dict=False
                    )
                )
        except TEMPLATE_FAILURES as error:
            raise ChatTemplateError(f"the chat template refuses these messages: {error}") from None

    def token_text(self, token_id: int) -> str:
        """The text of one token alone; special tokens show their name, ids outside the vocabulary nothing."""
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens without special ones."""
        plain = [i for i in ids if i not in self.special_ids]
        return str(self.tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Detokenizer:
    """Turns a stream of token ids into a stream of text whose pieces add up to the whole.

    A token that ends inside a character gives "" and its bytes appear with a later token. Only a short window of ids
    is decoded at a time: from the last clean break before the newest one.
    """

    def __init__(self, codec: TextCodec, prompt_ids: Sequence[int]) -> None:
        self.codec = codec
        self._ids = [i for i in prompt_ids if i not in codec.special_ids][-CONTEXT_TOKENS:]
        self._shown = len(codec.decode(self._ids))  # characters of the window that were given out
        self._break = len(self._ids)  # the window starts here after the next clean break

    def add(self, token_id: int) -> str:
        """The text that this token completes."""
        if token_id in self.codec.special_ids:
            return ""
        self._ids.append(token_id)
        text = self.codec.decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        delta = text[self._shown :]
        self._ids, self._break = self._ids[self._break :], len(self._ids) - self._break
        self._shown = len(self.codec.decode(self._ids))
        return delta

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, shown as replacement characters."""
        delta = self.codec.decode(self._ids)[self._shown :]
        self._shown += len(delta)
        return delta


class StopStrings:
    """Watches streamed text for stop strings, also when they arrive in pieces.

    The text ends where the first stop string is complete. With `keep` the stop string stays in the text (TGI), else it
    is cut off and text that may be the beginning of one is held back until that is decided (OpenAI).
    """

    def __init__(self, strings: Sequence[str], keep: bool) -> None:
        assert all(strings), "an empty stop string matches everywhere"
        self.strings, self.keep = tuple(strings), keep
        self._tail = ""  # text that can still become part of a stop string; held back unless `keep`
        self._reach = max((len(s) for s in self.strings), default=1) - 1

    def add(self, delta: str) -> tuple[str, bool]:
        """The text to give out now, and whether a stop string is complete."""
        text = self._tail + delta
        found = self._first(text)
        if found:
            start, end = found
            return (text[len(self._tail) : end] if self.keep else text[:start]), True
        if self.keep:
            self._tail = text[max(0, len(text) - self._reach) :]
            return delta, False
        held = next(n for n in range(min(self._reach, len(text)), -1, -1) if self._is_beginning(text[len(text) - n :]))
        self._tail = text[len(text) - held :]
        return text[: len(text) - held], False

    def finish(self) -> str:
        """The text that was held back."""
        held = "" if self.keep else self._tail
        self._tail = ""
        return held

    def _first(self, text: str) -> tuple[int, int] | None:
        """Start and end of the stop string that is complete first; of several, the longest."""
        starts = [(text.find(s), s) for s in self.strings if s in text]
        found = [(start + len(s), start) for start, s in starts]
        return (min(found)[1], min(found)[0]) if found else None

    def _is_beginning(self, text: str) -> bool:
        return not text or any(s.startswith(text) for s in self.strings)
