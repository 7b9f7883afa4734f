"""Bad input is named with file and line, or dropped and counted: rows read are documents and drops, never fewer."""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datatrove.data import Document

from ingot.data.documents import ERROR, REASON, read_documents
from ingot.data.sources import Source, list_units
from ingot.recipe import InputError

GOOD = b'{"text": "ok"}\n'


def documents_of(path: Path | str, **keys: Any) -> list[Document]:
    return [d for unit in list_units([Source(path=str(path), **keys)]) for d in read_documents(unit)]


def drops_of(documents: list[Document]) -> dict[str, int]:
    return dict(Counter(d.metadata[REASON] for d in documents if REASON in d.metadata))


@pytest.mark.parametrize(
    ("name", "content", "message", "reason", "num_kept"),
    [
        ("a.jsonl", GOOD + b"{oops\n" + GOOD, r"a\.jsonl:2: not valid JSON", "bad_json", 2),
        ("a.jsonl", GOOD + b"[1]\n" + GOOD, r"a\.jsonl:2: expected a JSON object, got list", "bad_json", 2),
        ("a.jsonl", GOOD + b"null\n7\n", r"a\.jsonl:2: expected a JSON object, got null", "bad_json", 1),
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"}\n]\n', "a.json:1: .* the file is one JSON array", "bad_json", 1),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 text", "bad_encoding", 1),
        ("a.jsonl", b'{"text": "\\udc00x"}\n' + GOOD, r"a\.jsonl:1: not valid Unicode: half a", "bad_encoding", 1),
        ("a.jsonl", b'{"text": "o", "m": ["\\ud800"]}\n' + GOOD, "a.jsonl:1: not valid Unicode", "bad_encoding", 1),
        ("a.jsonl", b'{"text": "a\\u0000b"}\n' + GOOD, r"a\.jsonl:1: a NUL character \(at 1\)", "nul_character", 1),
        ("a.jsonl", GOOD + b"\0\0\0\n", r"a\.jsonl:2: not valid JSON", "bad_json", 1),
        ("a.jsonl", b'{"txt": "a"}\n' + GOOD, "a.jsonl:1: no column 'text'; the columns are txt", "missing_column", 1),
        ("a.jsonl", b"{}\n" + GOOD, "a.jsonl:1: no column 'text'; the columns are none", "missing_column", 1),
        ("a.jsonl", b'{"text": 5}\n' + GOOD, r"a\.jsonl:1: column 'text' holds int", "not_text", 1),
        ("a.jsonl", b'{"text": ["a"]}\n' + GOOD, r"a\.jsonl:1: column 'text' holds list", "not_text", 1),
        ("a.jsonl", b"[" * 100_000 + b"\n" + GOOD, r"a\.jsonl:1: not valid JSON", "bad_json", 1),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n" + GOOD, "a.jsonl:1: not valid JSON", "bad_json", 1),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty; remove it", "empty_file", 0),
        ("a.jsonl.gz", b"", r"a\.jsonl\.gz: (the file is empty|truncated)", None, 0),
        ("a.jsonl.zst", zstandard.compress(b""), r"a\.jsonl\.zst: the file is empty", "empty_file", 0),
        ("a.jsonl.gz", gzip.compress(GOOD * 9)[:-6], r"a\.jsonl\.gz: truncated or damaged", "damaged_file", None),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz: truncated or damaged", "damaged_file", 0),
        ("a.jsonl", gzip.compress(GOOD), r"a\.jsonl: its first bytes say that it is gzip-comp", "damaged_file", 0),
        ("a.jsonl", "a".encode("utf-16"), r"a\.jsonl: its first bytes say that it is UTF-16", "damaged_file", 0),
        ("a.txt", b"one\n\xc3\x28", r"a\.txt:2: not UTF-8 text \(byte 0xc3 at column 1\)", "bad_encoding", 0),
        ("a.txt", b"one\0two", r"a\.txt:1: a NUL character \(at 3\)", "nul_character", 0),
        ("a.csv", b"text,n\na,1\nb\nc,3\n", r"a\.csv:3: 1 fields, not the 2 fields", "bad_csv", 2),
        ("a.csv", b'text,n\na,1\n"b"x,2\nc,3\n', r"a\.csv:3: not valid CSV", "bad_csv", 2),
        ("a.csv", b'text,n\na,1\n"b,2\nc,3\nd,4\n', r"a\.csv:3: not valid CSV: unexpected end", "bad_csv", 3),
        ("a.csv", b"text,n\na,1\nb\0,2\n", r"a\.csv:3: a NUL character", "nul_character", 1),
        ("a.csv", b"text,n\na\xff,1\nb,2\n", r"a\.csv:2: not UTF-8 text", "bad_encoding", 1),
        ("a.csv", b"text,text\na,1\n", r"a\.csv: its header names 'text' twice", "damaged_file", 0),
        ("a.csv", b"text,n\n", r"a\.csv: the file is empty", "empty_file", 0),
        ("a.parquet", b"", r"a\.parquet: not a readable parquet file", "damaged_file", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes differ from run to run
)
def test_stop_or_drop(
    tmp_path: Path, name: str, content: bytes, message: str, reason: str | None, num_kept: int | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        documents_of(path)
    found = documents_of(path, on_error="drop")
    if reason is not None:
        assert set(drops_of(found)) == {reason}
    if num_kept is not None:
        assert sum(REASON not in d.metadata for d in found) == num_kept
    assert all(str(path) in d.metadata[ERROR] for d in found if REASON in d.metadata)


def test_what_is_odd_but_right(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 123456789012345678901234567890, "text": "a", "x": NaN}\r\n\r\n   \n'
        b'{"id": 18446744073709551616, "text": null}\n{"id": "3", "text": "first", "text": "last"}\n'
        b'{"id": null, "text": "no id", "x": {"deep": [1, {"er": 1e999}]}}'
    )
    found = documents_of(path)
    assert [d.text for d in found] == ["a", "", "last", "no id"]
    assert [d.id for d in found] == ["123456789012345678901234567890", "18446744073709551616", "3", "0/a.jsonl:4"]
    with pytest.raises(InputError, match=r"a\.jsonl:6: column 'id' holds no id"):
        documents_of(path, columns={"id": "id"})


def test_csv_with_everything_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,n\r\n"a ""quoted""\r\nline, and ""more""",1\r\n\r\n"",2\r\nlast,3')
    found = documents_of(path)
    assert [(d.text, d.metadata["n"]) for d in found] == [
        ('a "quoted"\r\nline, and "more"', "1"),
        ("", "2"),
        ("last", "3"),
    ]


def test_a_broken_row_group_loses_its_rows_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text number {i} " * 20 for i in range(30)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=10, use_dictionary=False)
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet: row 11: not readable: damaged row group"):
        documents_of(path)
    found = documents_of(path, on_error="drop")
    assert [d.text for d in found] == texts[:10] + [""] * 10 + texts[20:]
    assert drops_of(found) == {"bad_row": 10}


def test_a_parquet_row_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pyarrow.array([b"one", b"\xff\xfe", b"three"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": values, "n": [1, 2, 3]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: row 2: column 'text' is not UTF-8 text"):
        documents_of(path)
    assert [d.text for d in documents_of(path, on_error="drop")] == ["one", "", "three"]


def test_an_arrow_file_without_its_end(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "set"))
    (path,) = (tmp_path / "set").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"arrow: not a readable arrow file: its end is missing \(after row 2\)"):
        documents_of(tmp_path / "set")


def test_a_cut_file_names_the_last_line_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 9)[:-6])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: truncated or damaged: .* \(after line 9\)$"):
        documents_of(path)


def test_folders_links_and_files_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="no file matches"):
        documents_of(f"{tmp_path}/*.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=r"link\.jsonl: cannot be read: No such file"):
        documents_of(f"{tmp_path}/*.jsonl")
    (tmp_path / "link.jsonl").unlink()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match=r"pipe\.jsonl: not a regular file"):
        documents_of(f"{tmp_path}/*.jsonl")
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("ingot.data.blocks.open_file", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: \[Errno 13\] Permission denied"):
        documents_of(path, on_error="drop")  # what the machine refuses is no bad row


def test_lines_longer_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b'{"text": "' + b"x" * 10_000_000 + b'"}\n' + GOOD)
    assert len(documents_of(path)) == 3
    message = r"a\.jsonl:2: a line of 10,000,012 bytes, and max_line_bytes of the source is 1,000; raise it"
    with pytest.raises(InputError, match=message):
        documents_of(path, max_line_bytes=1000)
    found = documents_of(path, max_line_bytes=1000, on_error="drop")
    assert [d.text for d in found] == ["ok", "", "ok"] and drops_of(found) == {"long_line": 1}
    text = tmp_path / "a.txt"
    text.write_text("word\n" * 300 + "<end>" + "\nb")
    with pytest.raises(InputError, match="a document of 1,507 bytes, .* is 1,000; cut the text by a separator"):
        documents_of(text, max_line_bytes=1000)
    with pytest.raises(InputError, match=r"a\.txt:1: a document of 1,500 bytes, .* is 1,000; raise it"):
        documents_of(text, max_line_bytes=1000, separator="<end>")
    found = documents_of(text, max_line_bytes=1000, separator="<end>", on_error="drop")
    assert [d.text for d in found] == ["", "\nb"]
    quoted = tmp_path / "a.csv"
    quoted.write_text("text\n" + '"open\n' + "line\n" * 300)
    with pytest.raises(InputError, match=r"a\.csv:2: a row \(is a quote open\?\) of 1,00\d bytes"):
        documents_of(quoted, max_line_bytes=1000)


MEASURE = """
import resource, sys
from ingot.data.readers import read_records
from ingot.data.sources import Source, list_units
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = [row for unit in list_units([Source(path=sys.argv[1])]) for _, row in read_records(unit)]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, rows[0].reason, len(rows))
"""


@pytest.mark.parametrize("suffix", ["jsonl.zst", "txt.zst", "csv.zst"])
def test_memory_stays_flat_on_a_line_of_500_megabytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with zstandard.open(path, "wb") as file:
        file.write(b"text\n" if "csv" in suffix else b"")
        for _ in range(500):
            file.write(b"x" * 1_000_000)
    printed = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    megabytes, reason, num_rows = printed.stdout.split()
    assert (reason, num_rows) == ("long_line", "1")
    assert int(megabytes) < 300


# --- fuzzing ---


def make_files() -> dict[str, bytes]:
    """A good file of every format: 40 rows of text, id and number, with quotes, line ends and other scripts."""
    words = ["plain", 'with "quotes"', "two\nlines", "ünï 🐟 文", "comma, and; more", "tab\there"]
    rows = [{"text": f"{i} " + words[i % 6] * (1 + i % 5), "key": f"k{i}", "n": i} for i in range(40)]
    jsonl = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()
    table, arrow, text = io.BytesIO(), io.BytesIO(), io.StringIO()
    columns = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(columns, table, row_group_size=9)
    with pyarrow.ipc.new_stream(arrow, columns.schema) as stream:
        stream.write_table(columns, max_chunksize=9)
    writer = csv.DictWriter(text, ["text", "key", "n"])
    writer.writeheader()
    writer.writerows(rows)
    return {
        "a.jsonl": jsonl, "a.jsonl.gz": gzip.compress(jsonl), "a.jsonl.zst": zstandard.compress(jsonl),
        "a.csv": text.getvalue().encode(), "a.csv.gz": gzip.compress(text.getvalue().encode()),
        "a.txt": "\n---\n".join(row["text"] for row in rows).encode(), "a.parquet": table.getvalue(),
        "a.arrow": arrow.getvalue(),
    }  # fmt: skip


PIECES = [
    b'"', b"\n", b"\r\n", b"\r", b"\xff", b"\0", b",", b"{", b"}", b"\\", b"\xef\xbb\xbf", b"\n---\n", b"\\ud800",
    b"NaN", b"1e999", b"9" * 400, b"\xc3", b"null", b"\xe2\x80\xa8", b" ", b'""', b'{"text": "new"}\n',
]  # fmt: skip


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def remove(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 2, 10, 100))]


def repeat(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice((1, 10, 500))]


def blank(rng: random.Random, data: bytearray) -> None:
    start, size = rng.randrange(len(data)), rng.choice((1, 4, 50, 1000))
    data[start : start + size] = bytes(len(data[start : start + size]))


def insert(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(len(data) + 1)
        data[place:place] = rng.choice(PIECES)


MUTATIONS: list[Callable[[random.Random, bytearray], None]] = [flip, cut, remove, repeat, blank, insert, insert]


def lines_of(name: str, data: bytes) -> list[bytes] | None:
    """The lines of a file that are not blank, by other means than ours; None for a packed file that is damaged."""
    try:
        if name.endswith(".gz"):
            data = gzip.decompress(data)
        elif name.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompress(data)
    except (OSError, EOFError, ValueError, zstandard.ZstdError, gzip.zlib.error):  # type: ignore[attr-defined]
        return None
    return [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]


def check_rows(name: str, data: bytes, found: list[Document]) -> None:
    """Holds what came out of a damaged file against what is in it."""
    reasons = drops_of(found)
    if "damaged_file" in reasons or "empty_file" in reasons:
        assert reasons.get("damaged_file", 0) + reasons.get("empty_file", 0) == 1 and REASON in found[-1].metadata
        return
    if name.startswith("a.parquet"):
        assert len(found) == pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.num_rows
    elif name.startswith("a.txt"):
        assert len(found) == len(data.split(b"\n---\n")) - data.endswith(b"\n---\n")
    elif name.startswith("a.jsonl") and (lines := lines_of(name, data)) is not None:
        assert len(found) == len(lines)
    elif name.startswith("a.csv") and reasons.keys() <= {"bad_csv", "bad_encoding"}:  # each of those is one line
        lines = lines_of(name, data) or []
        values = [[d.text, *d.metadata.values()] for d in found if REASON not in d.metadata]
        covered = sum(1 + sum(str(v).count("\n") for v in row) for row in values) + sum(reasons.values())
        assert len(lines) - 1 <= covered <= len(lines) + data.count(b"\n")


def fuzz(folder: Path, seed: int, rounds: int) -> Counter[str]:
    """Damages a file of every format in `rounds` ways and reads it both ways. Returns how it ended, by kind."""
    rng, ends = random.Random(seed), Counter[str]()
    for name, good in make_files().items():
        for _ in range(rounds):
            data = bytearray(good)
            for _ in range(rng.choice((1, 1, 2))):
                if data:
                    rng.choice(MUTATIONS)(rng, data)
            path = folder / name
            path.write_bytes(data)
            keys: dict[str, Any] = {"separator": "\n---\n"} if name == "a.txt" else {"columns": {"number": "n"}}
            found = documents_of(path, on_error="drop", **keys)
            check_rows(name, bytes(data), found)
            try:
                strict = documents_of(path, **keys)
                assert [d.text for d in strict] == [d.text for d in found] and not drops_of(found)
                ends["read"] += 1
            except InputError as error:
                assert str(error).startswith(str(path)) and drops_of(found)
                ends["refused"] += 1
    return ends


def test_280_damaged_files(tmp_path: Path) -> None:
    ends = fuzz(tmp_path, seed=5, rounds=35)
    assert sum(ends.values()) == 280 and min(ends["read"], ends["refused"]) > 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_8000_damaged_files(tmp_path: Path, seed: int) -> None:
    assert sum(fuzz(tmp_path, seed=100 + seed, rounds=100).values()) == 800
