"""Rows to documents: columns are mapped, rows are filtered by value, and every document gets a stable id."""

from collections.abc import Iterator
from typing import Any

from datatrove.data import Document

from ingot.data.readers import read_rows
from ingot.data.sources import Filters, Scalar, Unit
from ingot.recipe import InputError, nearest

REASON = "_reason"  # metadata key: why a document is dropped
TEXT_COLUMNS = ("text", "content")  # looked for when the recipe does not map `text`


def read_documents(unit: Unit) -> Iterator[Document]:
    """The documents of a unit in file order; rows that `where` leaves out come with a REASON and without text.

    Raises: InputError that names file and line for a missing column or a value that is not text.
    """
    source = unit.source
    for number, (place, row) in enumerate(read_rows(unit), 1):
        columns = _columns(source.columns, row, place)
        identity = str(row[columns["id"][0]]) if "id" in columns else f"{unit.name}:{number}"
        if not all(matches(_value(row, name, place), wanted) for name, wanted in source.where.items()):
            yield Document("", identity, metadata={REASON: "where"})
            continue
        used = {name for key in ("text", "id") for name in columns.get(key, [])}
        metadata = {name: value for name, value in row.items() if name not in used}
        metadata |= {key: _value(row, names[0], place) for key, names in columns.items() if key not in ("text", "id")}
        yield Document(_text(row, columns["text"], place), identity, metadata=metadata)


def _columns(mapped: dict[str, str | list[str]], row: dict[str, Any], place: str) -> dict[str, list[str]]:
    """Our name -> names in this row; `text` and `id` are found by their usual names when they are not mapped."""
    columns = {key: [names] if isinstance(names, str) else names for key, names in mapped.items()}
    if "text" not in columns:
        found = [name for name in TEXT_COLUMNS if name in row]
        if not found:
            raise InputError(f"{place}: no column 'text'; {_those_there(row)}; map one with columns: {{text: NAME}}")
        columns["text"] = found[:1]
    if "id" not in columns and "id" in row:
        columns["id"] = ["id"]
    for name in (name for names in columns.values() for name in names):
        _value(row, name, place)
    return columns


def _value(row: dict[str, Any], name: str, place: str) -> Any:
    if name not in row:
        meant = nearest(name, set(row))
        hint = f" (did you mean '{meant}'?)" if meant else ""
        raise InputError(f"{place}: no column '{name}'{hint}; {_those_there(row)}")
    return row[name]


def _those_there(row: dict[str, Any]) -> str:
    return f"the columns are {', '.join(row) or 'none'}"


def _text(row: dict[str, Any], names: list[str], place: str) -> str:
    """The values of the columns, joined by an empty line; empty ones are left out."""
    parts = []
    for name in names:
        value = row[name]
        if value is not None and not isinstance(value, str):
            raise InputError(f"{place}: column '{name}' holds {type(value).__name__}, expected text")
        parts.append(value or "")
    text = "\n\n".join(part for part in parts if part)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: not valid Unicode: half a surrogate pair at character {error.start}") from None
    return text


def matches(value: Any, wanted: Scalar | list[Scalar]) -> bool:
    """Equality, or membership in a list; a text cell (as in CSV) also matches a number or true/false written out."""
    if isinstance(wanted, list):
        return any(matches(value, w) for w in wanted)
    if isinstance(value, str) and not isinstance(wanted, str):
        return value.strip().lower() == str(wanted).lower()
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def drop_reason(text: str, filters: Filters) -> str | None:
    """Why a document is left out, or None; the cheapest test comes first."""
    if not text.strip():
        return "empty"
    if len(text) < filters.min_characters:
        return "too_short"
    if filters.max_characters is not None and len(text) > filters.max_characters:
        return "too_long"
    if filters.min_letter_share > 0 and _letter_share(text) < filters.min_letter_share:
        return "few_letters"
    if filters.max_repeated_line_share < 1 and _repeated_line_share(text) > filters.max_repeated_line_share:
        return "repeated_lines"
    return None


def _letter_share(text: str) -> float:
    """Letters over visible characters."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible)


def _repeated_line_share(text: str) -> float:
    """Lines that repeat an earlier one, over all lines that are not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / len(lines)
