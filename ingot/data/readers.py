"""Files to rows: plain text, jsonl and csv (also .gz and .zst), parquet, arrow, and datasets of the Hub.

Every reader yields (position, row): the position is a line, a row or a byte, for error messages and ids. What cannot
be read becomes a BadRow in its place, so that nothing is skipped silently.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from ingot.data.blocks import DamagedFile, Piece, TooLong, numbered_pieces, read_blocks
from ingot.data.csv_rows import read_csv
from ingot.data.rows import BadRow, Choose, Record, Row, not_utf8, place_of, position_of, refusal, too_long
from ingot.data.sources import Unit
from ingot.data.tables import read_arrow, read_hub, read_parquet
from ingot.recipe import InputError

LARGE = 2.0**63  # from here on orjson turns whole numbers into floats


def read_rows(unit: Unit) -> Iterator[tuple[str, Row]]:
    """The rows of a unit in file order, each with its place, such as `file:line`.

    Raises: InputError that names file and line for anything that cannot be read.
    """
    for position, row in read_records(unit):
        if isinstance(row, BadRow):
            raise refusal(unit, position, row)
        yield place_of(unit, position), row


def read_records(unit: Unit, choose: Choose | None = None) -> Iterator[Record]:
    """The rows of a unit in file order, each with its position; a BadRow stands for every row that cannot be read.

    `choose` names, of the columns of a parquet or arrow file, those to read.

    Raises: InputError when the file has vanished or the machine or network fails.
    """
    position, found = 0, False
    try:
        for position, row in _reader(unit, choose):
            found = True
            yield position, row
    except DamagedFile as error:
        after = f" (after {position_of(unit, position)})" if position else ""
        yield position, BadRow("damaged_file", f"{error}{after}")
        return
    except FileNotFoundError:
        raise InputError(f"{unit.place}: the file has vanished") from None
    except OSError as error:
        raise InputError(f"{unit.place}: cannot be read: {error}") from None
    if not found and unit.path is not None and not unit.is_part:
        yield 0, BadRow("empty_file", "the file is empty; remove it from the sources")


def _reader(unit: Unit, choose: Choose | None) -> Iterator[Record]:
    if unit.source.hub is not None:
        return read_hub(unit)
    if unit.source.builtin is not None:
        return _read_builtin()
    if unit.format == "parquet":
        return read_parquet(unit, choose)
    if unit.format == "arrow":
        return read_arrow(unit, choose)
    return LINE_READERS[unit.format](unit)


def _read_builtin() -> Iterator[Record]:
    from ingot.data.speeches import read_speeches

    return ((number, row) for number, (_, row) in enumerate(read_speeches(), 1))


def _read_text(unit: Unit) -> Iterator[Record]:
    """One document per file, or one per piece between separators."""
    limit = unit.source.max_line_bytes
    if unit.source.separator is None:
        piece = _whole(read_blocks(unit), limit)
        if piece != b"":
            yield _text_row(unit, 1, piece)
        return
    for position, piece in numbered_pieces(unit, unit.source.separator.encode()):
        yield _text_row(unit, position, piece)


def _whole(blocks: Iterator[bytes], limit: int) -> Piece:
    parts, size, lines = [], 0, 0
    for block in blocks:
        size += len(block)
        parts.append(block)
        if size > limit:
            lines += sum(part.count(b"\n") for part in parts)
            parts.clear()
    return b"".join(parts).removeprefix(b"\xef\xbb\xbf") if size <= limit else TooLong(size, lines)


def _text_row(unit: Unit, position: int, piece: Piece) -> Record:
    if isinstance(piece, TooLong):
        way_out = "" if unit.source.separator else "; cut the text by a separator"
        return position, too_long("a document", piece, unit.source.max_line_bytes, way_out)
    try:
        return position, {"text": piece.decode()}
    except UnicodeDecodeError as error:
        line = 0 if unit.is_part else piece.count(b"\n", 0, error.start)
        return position + line, not_utf8(error)


def _read_jsonl(unit: Unit) -> Iterator[Record]:
    loads, odd, limit = orjson.loads, _odd_line, unit.source.max_line_bytes
    for position, piece in numbered_pieces(unit):
        try:
            row = loads(piece)  # type: ignore[arg-type]
        except orjson.JSONDecodeError:
            if isinstance(piece, bytes) and not piece.strip():
                continue
            row = odd(piece, limit)
        if type(row) is dict:
            for value in row.values():
                if type(value) is float and abs(value) >= LARGE:
                    row = odd(piece, limit)
                    break
        elif type(row) is not BadRow:
            kind = "null" if row is None else type(row).__name__
            row = BadRow("bad_json", f"expected a JSON object, got {kind}")
        yield position, row


def _odd_line(piece: Piece, limit: int) -> Any:
    """The value of a line that the fast parser refuses (NaN and large whole numbers are fine), or a BadRow."""
    if isinstance(piece, TooLong):
        return too_long("a line", piece, limit)
    try:
        row = json.loads(piece.decode())
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except UnicodeEncodeError:
        return BadRow("bad_encoding", "not valid Unicode: half a surrogate pair; write whole characters")
    except (ValueError, RecursionError) as error:
        array = "; the file is one JSON array" if piece.lstrip()[:1] == b"[" else ""
        return BadRow("bad_json", f"not valid JSON: {error}{array}; every line must be one JSON object")
    return row


LINE_READERS: dict[str, Callable[[Unit], Iterator[Record]]] = {
    "text": _read_text, "jsonl": _read_jsonl, "csv": read_csv,
}  # fmt: skip
