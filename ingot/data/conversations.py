"""Rows for SFT and DPO: instructions and preference pairs from files, the Hub or the built-in speeches."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ingot.data.sources import Source, list_units, source_files
from ingot.data.splits import SPLITS
from ingot.recipe import FilePath, InputError, Section, StageFolder
from ingot.runs import get_logger

logger = get_logger(__name__)

Kind = Literal["sft", "preference"]
Message = dict[str, str]
Rows = list[dict[str, Any]]

ROLES = ("system", "user", "assistant")
ROLE_NAMES = {"human": "user", "gpt": "assistant"}  # other names for them in published datasets
COLUMNS = {
    "sft": ("messages", "prompt", "response", "system", "document"),
    "preference": ("prompt", "chosen", "rejected", "system", "document"),
}


class RowSource(Source):
    """One place that instructions or pairs come from; `columns` maps prompt, response, messages, ..."""

    def problems(self, key: str) -> Iterator[str]:
        """What is contradictory in this source; `key` is its place in the recipe."""
        yield from super().problems(key)
        for name in ("separator", "conversations", "join", "split"):
            if getattr(self, name) != type(self).model_fields[name].default:  # a resolved recipe writes defaults out
                yield f"{key}.{name}: only for documents to pretrain on; remove it"


class ConversationData(Section):
    """The rows to train on and the rows to measure with."""

    train: list[RowSource] = Field(min_length=1, description="rows to train on")
    validation: list[RowSource] = Field([], description="rows to measure with")
    heldout: Annotated[FilePath, StageFolder("prepare_data")] | None = Field(
        None, description="rows of `train` that were made from documents which prepare_data held out measure instead"
    )
    validation_rows: int | None = Field(None, gt=0, description="draw so many rows of `train` to measure with")
    seed: int = Field(0, ge=0, description="seed of what is drawn")

    def problems(self, key: str = "data") -> Iterator[str]:
        """Contradictions between the keys; `key` is this section's place in the recipe."""
        for name, sources in (("train", self.train), ("validation", self.validation)):
            for i, source in enumerate(sources):
                yield from source.problems(f"{key}.{name}.{i}")
        if self.validation_rows is not None and (self.validation or self.heldout is not None):
            yield f"{key}.validation_rows: rows are drawn only where validation and heldout are unset; remove one"

    def files(self, key: str = "data") -> Iterator[Path]:
        """Every file that the sources read."""
        for name, sources in (("train", self.train), ("validation", self.validation)):
            for i, source in enumerate(sources):
                yield from source_files(source, f"{key}.{name}.{i}")


def load_rows(data: ConversationData, kind: Kind) -> tuple[Rows, Rows]:
    """The rows to train on and to measure with, in TRL's conversational formats; each names its `document` or None.

    sft: {"messages": [...]}; preference: {"prompt": [...], "chosen": [answer], "rejected": [answer]}, where every
    message is {"role", "content"}.

    Raises: InputError that names file and row for anything that does not fit.
    """
    held_out = _held_out_documents(data.heldout) if data.heldout is not None else set()
    rows = _all_rows(data.train, kind, data.seed, held_out)
    train = [row for row in rows if row["document"] not in held_out]
    validation = [row for row in rows if row["document"] in held_out]
    if data.heldout is not None and not validation:
        raise InputError(f"data.heldout: no row comes from a document that {data.heldout} held out; map `document`")
    validation += _all_rows(data.validation, kind, data.seed, held_out)
    if data.validation_rows is not None:
        train, validation = _draw(train, data.validation_rows, data.seed)
    measured = {_content(row) for row in validation}
    train = [row for row in train if _content(row) not in measured]
    if not train:
        raise InputError("data.train: no row is left to train on")
    logger.info("%s rows: %d to train on, %d to measure with", kind, len(train), len(validation))
    return train, validation


def _held_out_documents(folder: Path) -> set[str]:
    from ingot.data.shards import read_held_out

    found = {str(document["id"]) for split in SPLITS[1:] for document in read_held_out(folder, split)}
    if not found:
        raise InputError(f"data.heldout: {folder} holds nothing out; see data.split of its recipe")
    return found


def _draw(rows: Rows, size: int, seed: int) -> tuple[Rows, Rows]:
    """Draws `size` rows; both parts stay in order."""
    if size >= len(rows):
        raise InputError(f"data.validation_rows: {size} of {len(rows)} rows; nothing is left to train on")
    drawn = set(random.Random(seed).sample(range(len(rows)), size))
    return [r for i, r in enumerate(rows) if i not in drawn], [r for i, r in enumerate(rows) if i in drawn]


def _content(row: dict[str, Any]) -> str:
    """What makes two rows the same: everything but their document."""
    return repr([value for key, value in row.items() if key != "document"])


def _all_rows(sources: list[RowSource], kind: Kind, seed: int, held_out: set[str]) -> Rows:
    rows, left_out = [], Counter[str]()
    for source in sources:
        _check_columns(source, kind)
        for place, raw in _raw_rows(source, kind, seed, held_out):
            row = _row(source, kind, place, raw)
            if isinstance(row, str):
                left_out[row] += 1
            elif row is not None:
                rows.append(row)
    for reason, count in left_out.items():
        logger.info("%s rows: %d left out: %s", kind, count, reason)
    return rows


def _check_columns(source: RowSource, kind: Kind) -> None:
    unknown = [key for key in source.columns if key not in COLUMNS[kind]]
    if unknown:
        raise InputError(f"data: columns maps '{unknown[0]}'; {kind} rows have {', '.join(COLUMNS[kind])}")


def _row(source: RowSource, kind: Kind, place: str, raw: dict[str, Any] | str) -> dict[str, Any] | str | None:
    """The row; the reason when it is left out and counted; None when `where` leaves it out."""
    if isinstance(raw, str):
        return raw
    try:
        return _Reader(source, kind, place, raw).row()
    except InputError:
        if source.on_error == "stop":
            raise
        return "the row does not fit"


def _raw_rows(
    source: RowSource, kind: Kind, seed: int, held_out: set[str]
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The rows of a source with their places; the reason instead of a row that cannot be read and may be dropped."""
    from ingot.data import speech_rows
    from ingot.data.readers import read_records
    from ingot.data.rows import BadRow, place_of, refusal

    if source.builtin is not None:
        made = speech_rows.speech_rows(seed) if kind == "sft" else speech_rows.speech_pairs(seed, held_out)
        yield from ((f"{source.builtin}, speech {row['document']}", row) for row in made)
        return
    for unit in list_units([source]):
        for position, row in read_records(unit):
            if isinstance(row, BadRow) and source.on_error == "stop":
                raise refusal(unit, position, row)
            yield place_of(unit, position), row.reason if isinstance(row, BadRow) else row


@dataclass
class _Reader:
    """Turns one raw row into messages, by the source's columns."""

    source: RowSource
    kind: Kind
    place: str
    raw: dict[str, Any]

    def row(self) -> dict[str, Any] | str | None:
        """The row; the reason when it says nothing; None when `where` leaves it out."""
        from ingot.data.documents import matches

        if not all(matches(self._value(name), wanted) for name, wanted in self.source.where.items()):
            return None
        row = self._instruction() if self.kind == "sft" else self._pair()
        if not isinstance(row, str):
            document = self._first("document")
            row["document"] = None if document is None else str(document)
        return row

    def _instruction(self) -> dict[str, Any] | str:
        if self._has("messages"):
            messages = self._system() + self._messages("messages")
        else:
            messages = self._system() + self._prompt() + self._messages("response", "assistant")
        if not any(m["role"] == "assistant" for m in messages):
            return "no assistant message"
        return {"messages": messages} if all(m["content"].strip() for m in messages) else "empty prompt or answer"

    def _pair(self) -> dict[str, Any] | str:
        chosen, rejected = self._messages("chosen", "assistant"), self._messages("rejected", "assistant")
        common = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        if common is None:
            return "chosen equals rejected"
        prompt = self._prompt() if self._has("prompt") else chosen[:common]
        prompt, chosen, rejected = self._system() + prompt, chosen[common:], rejected[common:]
        if not prompt or not all(m["content"].strip() for m in prompt + chosen + rejected):
            return "empty prompt or answer"
        if {chosen[0]["role"], rejected[0]["role"]} != {"assistant"}:
            return "the two sides differ before the answer"
        return {"prompt": prompt, "chosen": chosen[:1], "rejected": rejected[:1]}

    def _prompt(self) -> list[Message]:
        return self._messages("prompt", "user")

    def _system(self) -> list[Message]:
        text = self._first("system")
        return [{"role": "system", "content": str(text)}] if text else []

    def _names(self, key: str) -> list[str]:
        names = self.source.columns.get(key, key)
        return [names] if isinstance(names, str) else names

    def _has(self, key: str) -> bool:
        return key in self.source.columns or key in self.raw

    def _first(self, key: str) -> Any:
        return self._value(self._names(key)[0]) if self._has(key) else None

    def _value(self, name: str) -> Any:
        if name not in self.raw:
            there = ", ".join(self.raw)
            wanted = "messages, or prompt and response" if self.kind == "sft" else "prompt, chosen and rejected"
            raise InputError(f"{self.place}: no column '{name}'; the columns are {there}; map {wanted} with `columns`")
        return self.raw[name]

    def _messages(self, key: str, role: str | None = None) -> list[Message]:
        """The messages in a column; text becomes one message of `role`, texts of several columns are joined."""
        values = [self._value(name) for name in self._names(key)]
        if all(value is None or isinstance(value, str) for value in values) and role is not None:
            text = "\n\n".join(value for value in values if value)
            return _transcript(text) if _is_transcript(text) else [{"role": role, "content": text}]
        if len(values) == 1 and isinstance(values[0], list):
            return [self._message(key, value) for value in values[0]]
        raise InputError(f"{self.place}: {key} must be {'text or ' if role else ''}a list of messages")

    def _message(self, key: str, value: Any) -> Message:
        if isinstance(value, dict):
            role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
            role = ROLE_NAMES.get(str(role), role)
            if role in ROLES and isinstance(content, str):
                return {"role": role, "content": content}
        raise InputError(
            f"{self.place}: {key}: a message needs a role ({', '.join(ROLES)}) and text, got {value!r:.80}"
        )


TURNS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def _is_transcript(text: str) -> bool:
    """Whether a text is a whole dialogue, as in the HH-RLHF dataset."""
    return text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def _transcript(text: str) -> list[Message]:
    """The turns of a dialogue that marks them with Human: and Assistant:."""
    for mark, role in TURNS.items():
        text = text.replace(mark, f"\0{role}\0")
    parts = text.split("\0")[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": role, "content": content.strip()} for role, content in pairs]
