"""What readers yield: rows, and in the place of a row that cannot be read the reason why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ingot.data.blocks import TooLong
from ingot.data.sources import Unit
from ingot.recipe import InputError

Row = dict[str, Any]
Choose = Callable[[list[str]], list[str] | None]  # the columns of a file -> those to read, or None for all

FILE_REASONS = ("damaged_file", "empty_file")  # these speak of the rest of a file and not of one row
BAD_REASONS = (
    "bad_json", "bad_csv", "bad_encoding", "bad_row", "long_line", "nul_character", "missing_column", "not_text",
    "bad_id", *FILE_REASONS,
)  # fmt: skip


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read: the reason that drops are counted by, and what is wrong."""

    reason: str
    message: str

    def __post_init__(self) -> None:
        assert self.reason in BAD_REASONS


Record = tuple[int, Row | BadRow]


def place_of(unit: Unit, position: int) -> str:
    """What an error message calls a row of a unit."""
    name = position_of(unit, position)
    return f"{unit.place}:{position}" if name.startswith("line ") and not unit.is_part else f"{unit.place}: {name}"


def position_of(unit: Unit, position: int) -> str:
    """The position of a row in words."""
    if unit.path is None or unit.source.builtin is not None or unit.format in ("parquet", "arrow"):
        return f"row {position}"
    return f"line at byte {position}" if unit.is_part else f"line {position}"


def explain(unit: Unit, position: int, bad: BadRow) -> str:
    """The place of a bad row and what is wrong with it."""
    place = unit.place if bad.reason in FILE_REASONS else place_of(unit, position)
    return f"{place}: {bad.message}"


def refusal(unit: Unit, position: int, bad: BadRow) -> InputError:
    """The error that a bad row is when the recipe does not say that such rows are dropped."""
    return InputError(explain(unit, position, bad))


def not_utf8(error: UnicodeDecodeError) -> BadRow:
    """Bytes that are no text, with their place in the line."""
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    reason = f"byte {error.object[error.start]:#04x} at column {column}"
    return BadRow("bad_encoding", f"not UTF-8 text ({reason}); convert the file to UTF-8")


def too_long(what: str, piece: TooLong, limit: int, way_out: str = "") -> BadRow:
    """A piece that is longer than the recipe wants."""
    message = (
        f"{what} of {piece.num_bytes:,} bytes, and max_line_bytes of the source is {limit:,}{way_out or '; raise it'}"
    )
    return BadRow("long_line", message)
