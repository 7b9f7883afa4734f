"""Conversations and preference pairs to token ids, with every row checked: what sft and dpo learn from.

TRL would do this too, but cuts rows without counting them and stops at a bad one without naming it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ingot.recipe import InputError
from ingot.runs import get_logger
from ingot.tokenization.chat_template import GENERATION_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
IGNORED = -100  # label of a token that the loss leaves out

logger = get_logger(__name__)


class Example(NamedTuple):
    """Token ids of one conversation, and the same with -100 where the token is not to be learned."""

    input_ids: list[int]
    labels: list[int]

    def cut(self, max_length: int | None) -> Example:
        """The first `max_length` tokens."""
        return Example(self.input_ids[:max_length], self.labels[:max_length])

    @property
    def is_supervised(self) -> bool:
        """Whether any token is to be learned."""
        return any(label != IGNORED for label in self.labels)


class Pair(NamedTuple):
    """The two answers to one prompt; only the answer is supervised."""

    chosen: Example
    rejected: Example


@dataclass
class Counts:
    """What happened to the rows of one set."""

    rows: int = 0
    cut: int = 0
    left_out: int = 0

    def tell(self, what: str, max_length: int | None) -> None:
        """One line about rows that are not used whole, if there are any."""
        if self.cut or self.left_out:
            logger.warning(
                "%s rows: %d of %d are longer than training.max_length %s: %d cut, %d left out (all prompt)",
                what, self.cut + self.left_out, self.rows, max_length, self.cut, self.left_out,
            )  # fmt: skip


class ConversationEncoder:
    """Renders conversations with the tokenizer's chat template and knows which tokens are the assistant's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, max_positions: int | None) -> None:
        """`max_positions` is what the model takes; `max_length` is where the recipe cuts.

        Raises: InputError when the tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; start from a model whose tokenizer "
                "was made by train_tokenizer, or put a chat_template.jinja with {% generation %} marks into the folder"
            )
        self.tokenizer, self.max_length, self.max_positions = tokenizer, max_length, max_positions
        self.end_of_turn: int | None = None

    def encode(
        self, rows: Sequence[dict[str, Any]], what: str, assistant_only: bool = True
    ) -> tuple[list[Example], Counts]:
        """Rows {"messages": [...]} as examples; all tokens are supervised unless `assistant_only`.

        Raises: InputError that names a row without an assistant's answer, or says that nothing is left to learn.
        """
        examples, counts = [], Counts(rows=len(rows))
        for number, row in enumerate(rows):
            name = f"{what} row {number} ({_beginning(row['messages'])!r})"
            whole = self._render(row["messages"], name)
            example = whole.cut(self.max_length)
            self._count(counts, [whole], [example.is_supervised], name)
            if example.is_supervised:
                examples.append(example if assistant_only else Example(example.input_ids, example.input_ids))
        return self._checked(examples, counts, what), counts

    def encode_pairs(self, rows: Sequence[dict[str, Any]], what: str) -> tuple[list[Pair], Counts]:
        """Rows {"prompt": [...], "chosen": [...], "rejected": [...]} as pairs; a pair is left out if one answer is.

        Raises: InputError that names a row whose answers are empty or equal, or says that nothing is left to learn.
        """
        pairs, counts = [], Counts(rows=len(rows))
        for number, row in enumerate(rows):
            name = f"{what} row {number} ({_beginning(row['prompt'])!r})"
            whole = [self._answer(row["prompt"], row[side], f"{name}, {side}") for side in ("chosen", "rejected")]
            if whole[0] == whole[1]:
                raise InputError(f"{name}: chosen and rejected are the same text; filter such rows out")
            cut = [example.cut(self.max_length) for example in whole]
            self._count(counts, whole, [example.is_supervised for example in cut], name)
            if all(example.is_supervised for example in cut):
                pairs.append(Pair(*cut))
        return self._checked(pairs, counts, what), counts

    def _render(self, messages: list[Message], name: str) -> Example:
        """All tokens of a conversation; labels for the assistant's, its end-of-turn mark included."""
        if not any(message["role"] == "assistant" and message["content"] for message in messages):
            raise InputError(f"{name}: no answer of the assistant to learn from; filter such rows out")
        if not GENERATION_MARK.search(str(self.tokenizer.chat_template)):
            example = self._render_turns(messages, name)
        else:
            encoded = self._apply_template(messages, return_assistant_tokens_mask=True)
            ids, mask = encoded["input_ids"], encoded["assistant_masks"]
            example = Example(ids, [i if m else IGNORED for i, m in zip(ids, mask, strict=True)])
        if not example.is_supervised:
            raise InputError(
                f"{name}: the chat template marks no token as the assistant's; see {{% generation %}} in it"
            )
        self._check_end_of_turn(example, name)
        return example

    def _render_turns(self, messages: list[Message], name: str) -> Example:
        """The same for a template without generation marks: what an answer adds to the prompt before it."""
        ids = self._apply_template(messages)["input_ids"]
        labels = [IGNORED] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._apply_template(messages[:i], add_generation_prompt=True)["input_ids"]
            turn = self._apply_template(messages[: i + 1])["input_ids"]
            if ids[: len(prompt)] != prompt or ids[: len(turn)] != turn:
                raise InputError(
                    f"{name}: the chat template renders earlier turns otherwise once more follow, so the answers "
                    "cannot be found; put {% generation %} and {% endgeneration %} around them in chat_template.jinja"
                )
            special = set(self.tokenizer.all_special_ids)
            end = max((k for k in range(len(prompt), len(turn)) if turn[k] in special), default=len(turn) - 1)
            labels[len(prompt) : end + 1] = turn[len(prompt) : end + 1]
        return Example(ids, labels)

    def _apply_template(self, messages: list[Message], **options: Any) -> dict[str, list[int]]:
        encoded: Any = self.tokenizer.apply_chat_template(messages, return_dict=True, **options)
        return {key: list(values) for key, values in encoded.items()}

    def _answer(self, prompt: list[Message], answer: list[Message], name: str) -> Example:
        """A prompt and one answer, up to its end-of-turn mark; only the answer is supervised."""
        prompt_ids = self._apply_template(prompt, add_generation_prompt=True)["input_ids"]
        whole = self._render([*prompt, *answer], name)
        if whole.input_ids[: len(prompt_ids)] != prompt_ids:
            raise InputError(
                f"{name}: the chat template renders the prompt alone otherwise than before an answer; "
                "the model would be trained on a prompt that it never sees"
            )
        labels = [IGNORED] * len(prompt_ids) + whole.labels[len(prompt_ids) :]
        end = max((i for i, label in enumerate(labels) if label != IGNORED), default=0) + 1
        return Example(whole.input_ids[:end], labels[:end])

    def _check_end_of_turn(self, example: Example, name: str) -> None:
        """The last supervised token must be the mark that ends a turn: a model that never learns it never stops."""
        last = next(label for label in reversed(example.labels) if label != IGNORED)
        if last not in self.tokenizer.all_special_ids:
            raise InputError(
                f"{name}: the last token to learn is {self.tokenizer.decode([last])!r}, not an end-of-turn mark; "
                "the chat template must put it inside {% generation %}, or the model never learns to stop"
            )
        self.end_of_turn = last

    def _count(self, counts: Counts, whole: list[Example], usable: list[bool], name: str) -> None:
        longest = max(len(example.input_ids) for example in whole)
        length = longest if self.max_length is None else min(longest, self.max_length)
        if self.max_positions is not None and length > self.max_positions:
            raise InputError(
                f"{name}: {length} tokens, and the model takes {self.max_positions} (max_position_embeddings); "
                f"set training.max_length to at most {self.max_positions}"
            )
        if not all(usable):
            counts.left_out += 1
        elif self.max_length is not None and longest > self.max_length:
            counts.cut += 1

    def _checked(self, found: list[Any], counts: Counts, what: str) -> list[Any]:
        if not found:
            raise InputError(
                f"{what} rows: none of {counts.rows} has a token to learn within training.max_length {self.max_length}"
                + ("; raise it, or shorten the prompts" if counts.rows else "")
            )
        counts.tell(what, self.max_length)
        return found


def _beginning(messages: list[Message]) -> str:
    text = str(messages[0].get("content") if messages else "")
    return text if len(text) <= 50 else text[:47] + "..."
