"""CSV and TSV files to rows, strictly: every row has the fields of the header, and quotes are closed."""

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from ingot.data.blocks import DamagedFile, Piece, TooLong, numbered_pieces
from ingot.data.listing import suffixes_of
from ingot.data.rows import BadRow, Record, not_utf8, too_long
from ingot.data.sources import Unit


class _BadLine(Exception):
    def __init__(self, row: BadRow) -> None:
        super().__init__(row.message)
        self.row = row


class _Lines:
    """Lines as csv.reader takes them, with those of the present row kept so that they can be read again."""

    def __init__(self, pieces: Iterator[tuple[int, Piece]], limit: int) -> None:
        self.pieces, self.limit = pieces, limit
        self.given_back: deque[tuple[int, Piece]] = deque()
        self.taken: list[tuple[int, Piece]] = []
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        """Goes on where the last iterator ended, which every error ends."""
        taken, limit = self.taken, self.limit
        for line in chain(_emptied(self.given_back), self.pieces):
            taken.append(line)
            piece = line[1]
            if isinstance(piece, TooLong):
                raise _BadLine(too_long("a line", piece, limit))
            self.num_bytes += len(piece)
            if self.num_bytes > limit:
                raise _BadLine(too_long("a row (is a quote open?)", TooLong(self.num_bytes, 0), limit))
            try:
                yield piece.decode() + "\n"
            except UnicodeDecodeError as error:
                raise _BadLine(not_utf8(error)) from None

    def next_row(self) -> None:
        self.taken.clear()
        self.num_bytes = 0

    def give_back(self) -> None:
        """Only the first line of a bad row is lost: the others are read again."""
        self.given_back.extendleft(reversed(self.taken[1:]))


def _emptied(lines: deque[tuple[int, Piece]]) -> Iterator[tuple[int, Piece]]:
    while lines:
        yield lines.popleft()


class _CsvReader:
    """The rows of a unit's lines, one at a time."""

    def __init__(self, unit: Unit) -> None:
        csv.field_size_limit(1 << 30)  # memory is bounded by max_line_bytes
        self.delimiter = "\t" if ".tsv" in suffixes_of(unit.place) else ","
        self.one_line = unit.source.one_line_rows
        self.width: int | None = None  # fields of the header
        self.lines = _Lines(numbered_pieces(unit), unit.source.max_line_bytes)
        self.reader = csv.reader(self.lines, delimiter=self.delimiter, strict=True)

    def row(self) -> tuple[int, list[str] | BadRow] | None:
        """The next row that is not blank, with its position; None at the end."""
        fields: list[str] | BadRow = []
        while not fields:
            self.lines.next_row()
            try:
                fields = next(self.reader)
                if self.one_line and len(self.lines.taken) > 1:
                    raise csv.Error("a field holds a line end; remove one_line_rows")
            except StopIteration:
                return None
            except csv.Error as error:
                fields = BadRow("bad_csv", f"not valid CSV: {error}")
            except _BadLine as error:
                fields = error.row
        if self.width is not None and not isinstance(fields, BadRow) and len(fields) != self.width:
            fields = BadRow("bad_csv", f"{len(fields)} fields, not the {self.width} fields of the header")
        if isinstance(fields, BadRow):
            self.lines.give_back()
            self.reader = csv.reader(self.lines, delimiter=self.delimiter, strict=True)
        return self.lines.taken[0][0], fields


def read_csv(unit: Unit) -> Iterator[Record]:
    """The rows of a .csv or .tsv file by the names of its header.

    Raises: DamagedFile when the header is none.
    """
    reader = _CsvReader(unit)
    header = _header(reader if unit.start == 0 else _CsvReader(replace(unit, start=0, stop=None)))
    reader.width = len(header)
    while header and (found := reader.row()) is not None:
        position, fields = found
        yield position, fields if isinstance(fields, BadRow) else dict(zip(header, fields, strict=True))


def _header(reader: _CsvReader) -> list[str]:
    found = reader.row()
    if found is None:
        return []
    header = found[1]
    if isinstance(header, BadRow):
        raise DamagedFile(f"its header cannot be read: {header.message}")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DamagedFile(f"its header names '{twice}' twice; give every column a name of its own")
    return header
