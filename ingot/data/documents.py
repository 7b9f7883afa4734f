"""Rows to documents: columns are mapped, rows are filtered by value, and every document gets a stable id."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document

from ingot.data.readers import read_records
from ingot.data.rendering import Renderer
from ingot.data.rows import BAD_REASONS, BadRow, Row, explain
from ingot.data.sources import Scalar, Source, Unit
from ingot.recipe import InputError, nearest

REASON = "_reason"  # metadata key: why a document is dropped
ERROR = "_error"  # metadata key beside it: place and message of a row that could not be read
GIVEN_SPLIT = "_given_split"  # metadata key: the split that the source says
READ_REASONS = ("where", *BAD_REASONS)  # every REASON that comes from here
# looked for in this order when the recipe does not map `text`; several are joined
TEXT_COLUMNS = (("text",), ("content",), ("prompt", "response"))
MOST_PLANS = 1000


def read_documents(unit: Unit, metadata: Collection[str] | None = None) -> Iterator[Document]:
    """The documents of a unit in file order, one for every row: those left out come with a REASON and without text.

    `metadata` names the other columns that documents keep; None: all.

    Raises: InputError that names file and line for a row that cannot be read, unless the source drops those.
    """
    reader = _RowReader(unit.source, metadata)
    drops, given = unit.source.on_error == "drop", unit.source.split
    for number, (position, row) in enumerate(read_records(unit, reader.columns_to_read), 1):
        identity = _identity(unit, number, position)
        document = row if isinstance(row, BadRow) else reader.document(row, identity)
        if isinstance(document, BadRow):
            message = explain(unit, position, document)
            if not drops:
                raise InputError(message)
            document = Document("", identity, metadata={REASON: document.reason, ERROR: message})
        if given is not None:
            document.metadata[GIVEN_SPLIT] = given
        yield document


def _identity(unit: Unit, number: int, position: int) -> str:
    """The id of a row without one: its number in the file or, in a part of a file of lines, its first byte."""
    if not unit.is_part:
        return f"{unit.name}:{number}"
    return f"{unit.name}:{position}" if unit.format == "parquet" else f"{unit.name}@{position}"


@dataclass(frozen=True)
class _Plan:
    """Which of a row's columns become what."""

    text: list[str]
    id: str | None
    metadata: list[tuple[str, str]]  # our name, name in the row


class _RowReader:
    """Turns the rows of a source into documents."""

    def __init__(self, source: Source, metadata: Collection[str] | None) -> None:
        self.source, self.metadata = source, metadata
        self.where = list(source.where.items())
        self.mapped = {ours: [name] if isinstance(name, str) else name for ours, name in source.columns.items()}
        self.renderer = Renderer(source.conversations) if source.conversations is not None else None
        self.plans: dict[tuple[str, ...], _Plan | BadRow] = {}

    def document(self, row: Row, identity: str) -> Document | BadRow:
        names = tuple(row)
        plan = self.plans.get(names) or self._keep_plan(names)
        if isinstance(plan, BadRow):
            return plan
        for name, wanted in self.where:
            if not matches(row[name], wanted):
                return Document("", identity, metadata={REASON: "where"})
        if plan.id is not None:
            if row[plan.id] is not None:
                identity = str(row[plan.id])
            elif "id" in self.source.columns:
                return BadRow("bad_id", f"column '{plan.id}' holds no id")
        text = self._text(row, plan.text)
        if isinstance(text, BadRow):
            return text
        if "\0" in text:
            return BadRow("nul_character", f"a NUL character (at {text.index(chr(0))}); the file may not be text")
        return Document(text, identity, metadata={ours: row[name] for ours, name in plan.metadata})

    def columns_to_read(self, names: list[str]) -> list[str] | None:
        """Of the columns of a file those that documents need; None, which is all, when one is missing."""
        plan = self._plan(names)
        if isinstance(plan, BadRow):
            return None
        mapped = (name for columns in self.mapped.values() for name in columns)
        needed = {*plan.text, plan.id, *self.source.where, *mapped, *(name for _, name in plan.metadata)}
        return [name for name in names if name in needed]

    def _keep_plan(self, names: tuple[str, ...]) -> _Plan | BadRow:
        if len(self.plans) >= MOST_PLANS:
            self.plans.clear()  # every row has other columns
        self.plans[names] = plan = self._plan(list(names))
        return plan

    def _plan(self, names: list[str]) -> _Plan | BadRow:
        mapped, there = self.mapped, set(names)
        text = self._text_columns(mapped, there)
        if not text:
            way_out = "map one with columns: {text: NAME}, or a list of messages with conversations: {column: NAME}"
            return BadRow("missing_column", f"no column 'text'; {_those(names)}; {way_out}")
        for name in (*text, *(n for columns in mapped.values() for n in columns), *self.source.where):
            if name not in there:
                meant = nearest(name, there)
                hint = f" (did you mean '{meant}'?)" if meant else ""
                return BadRow("missing_column", f"no column '{name}'{hint}; {_those(names)}")
        identity = mapped["id"][0] if "id" in mapped else "id" if "id" in there else None
        used = {*text, *mapped.get("id", [identity])}
        others = {name: name for name in names if name not in used}
        others |= {key: columns[0] for key, columns in mapped.items() if key not in ("text", "id")}
        kept = [(ours, name) for ours, name in others.items() if self.metadata is None or ours in self.metadata]
        return _Plan(text, identity, kept)

    def _text_columns(self, mapped: dict[str, list[str]], there: set[str]) -> list[str]:
        if self.source.conversations is not None:
            return [self.source.conversations.column]
        return mapped.get("text") or next((list(names) for names in TEXT_COLUMNS if there.issuperset(names)), [])

    def _text(self, row: Row, names: list[str]) -> str | BadRow:
        """The values of the columns, joined; empty ones are left out."""
        if self.renderer is not None:
            return self.renderer.text(row[names[0]])
        parts = [row[name] for name in names]
        for name, value in zip(names, parts, strict=True):
            if value is not None and not isinstance(value, str):
                return BadRow("not_text", f"column '{name}' holds {type(value).__name__}, expected text")
        return parts[0] or "" if len(parts) == 1 else self.source.join.join(part for part in parts if part)


def _those(names: list[str]) -> str:
    return f"the columns are {', '.join(names) or 'none'}"


def matches(value: Any, wanted: Scalar | list[Scalar]) -> bool:
    """Equality, or membership in a list; a text cell (as in CSV) also matches a number or true/false written out."""
    if isinstance(wanted, list):
        return any(matches(value, w) for w in wanted)
    if isinstance(value, str) and not isinstance(wanted, str):
        return value.strip().lower() == str(wanted).lower()
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
