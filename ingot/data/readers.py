"""Files to rows: plain text, jsonl and csv (also .gz and .zst), parquet, arrow, and datasets of the Hub.

Every reader yields (place, row): the place names file and line for error messages. Nothing is skipped silently.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ingot.data.sources import Unit, format_of
from ingot.recipe import InputError

Row = tuple[str, dict[str, Any]]
CHUNK = 1 << 20  # bytes


def read_rows(unit: Unit) -> Iterator[Row]:
    """The rows of a unit in file order, each with its place.

    Raises: InputError that names file and line for anything that cannot be read.
    """
    if unit.source.hub is not None:
        yield from _read_hub(unit)
        return
    if unit.source.builtin is not None:
        from ingot.data.speeches import read_speeches

        yield from read_speeches()
        return
    assert unit.path is not None
    yield from _not_empty(unit.path, READERS[format_of(unit)](unit))


def _not_empty(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    found = False
    for row in _named_errors(path, rows):
        found = True
        yield row
    if not found:
        raise InputError(f"{path}: the file is empty; remove it from the sources")


def _named_errors(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Turns what libraries raise for a damaged file into an error that names the file."""
    try:
        yield from rows
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: truncated or damaged: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: the file has vanished") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


class _ZstdStream(io.RawIOBase):
    """Decompresses a .zst file and, unlike the library's own reader, raises EOFError when it is cut short."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self.file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self.new_frame: Callable[[], Any] = lambda: zstandard.ZstdDecompressor().decompressobj()
        self.frame, self.ready, self.failure = self.new_frame(), b"", zstandard.ZstdError
        self.inside = False  # in the middle of a frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready and (data := self.frame.unused_data or self.file.read(CHUNK)):
            if self.frame.eof:
                self.frame = self.new_frame()
            self._feed(data)
        if not self.ready and self.inside:
            raise EOFError("the last zstd frame is incomplete")
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def _feed(self, data: bytes) -> None:
        try:
            self.ready = self.frame.decompress(data)
        except self.failure as error:
            raise EOFError(str(error)) from None
        self.inside = not self.frame.eof

    def close(self) -> None:
        self.file.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, decompressing .gz and .zst."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdStream(path), CHUNK)
    return open(path, "rb")


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends as they are; a byte order mark is left out."""
    with open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                reason = f"byte {error.object[error.start]:#04x} at column {error.start + 1}"
                raise InputError(f"{path}:{number}: not UTF-8 text ({reason}); convert the file to UTF-8") from None
            yield line.removeprefix("\ufeff") if number == 1 else line


def _read_text(unit: Unit) -> Iterator[Row]:
    """One document per file, or one per piece between separators."""
    assert unit.path is not None
    separator = unit.source.separator
    lines = _text_lines(unit.path)
    if separator is not None:
        yield from ((f"{unit.path}:{line}", {"text": text}) for line, text in _cut(lines, separator))
    elif text := "".join(lines):
        yield f"{unit.path}:1", {"text": text}


def _cut(lines: Iterator[str], separator: str) -> Iterator[tuple[int, str]]:
    """Pieces between separators, each with the line that it starts on; every character is looked at once."""
    done: list[str] = []
    tail, start, keep = "", 1, len(separator) - 1  # tail: the last characters, which may begin a separator
    for number, line in enumerate(lines, 1):
        *pieces, rest = (tail + line).split(separator)
        for piece in pieces:
            yield start, "".join(done) + piece
            done, start = [], number
        tail = rest[len(rest) - min(keep, len(rest)) :]
        done.append(rest[: len(rest) - len(tail)])
    if last := "".join(done) + tail:
        yield start, last


def _read_jsonl(unit: Unit) -> Iterator[Row]:
    assert unit.path is not None
    for number, line in enumerate(_text_lines(unit.path), 1):
        if not line.strip():
            continue
        place = f"{unit.path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not valid JSON: {error}; every line must be one JSON object") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, got {type(row).__name__}")
        yield place, row


def _read_csv(unit: Unit) -> Iterator[Row]:
    assert unit.path is not None
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if ".tsv" in unit.path.suffixes else ","
    reader = csv.DictReader(_text_lines(unit.path), delimiter=delimiter, strict=True, restkey="")
    line = 1  # the last line of the header or row before
    try:
        for row in reader:
            if "" in row or None in row.values():
                raise InputError(
                    f"{unit.path}:{line + 1}: not the {len(reader.fieldnames or [])} fields of the header"
                )
            yield f"{unit.path}:{line + 1}", row
            line = reader.line_num
    except csv.Error as error:
        raise InputError(f"{unit.path}:{line + 1}: not valid CSV: {error}") from None


def _read_parquet(unit: Unit) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(unit.path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{unit.path}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{unit.path}: not a readable parquet file (after row {number}): {error}") from None


def _read_arrow(unit: Unit) -> Iterator[Row]:
    """The arrow stream files of a saved Hugging Face dataset."""
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(unit.path)) as file, pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{unit.path}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{unit.path}: not a readable arrow file (after row {number}): {error}") from None


def _read_hub(unit: Unit) -> Iterator[Row]:
    """A dataset of the Hugging Face Hub, streamed."""
    from datasets import load_dataset

    source = unit.source
    assert source.hub is not None
    try:
        rows = load_dataset(source.hub, source.subset, split=source.dataset_split, streaming=True)
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise InputError(f"{unit.place}: cannot be opened: {first}; check its name") from None
    for number, row in enumerate(rows, 1):
        yield f"{unit.place}: row {number}", dict(row)


READERS: dict[str, Callable[[Unit], Iterator[Row]]] = {
    "text": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet, "arrow": _read_arrow,
}  # fmt: skip
