"""Every format of input is read row for row, and every kind of damage is named with file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from ingot.data.documents import read_documents
from ingot.data.readers import read_rows
from ingot.data.sources import Source, list_units
from ingot.recipe import InputError

ROWS = [{"text": "One fish.", "n": 1}, {"text": "Zwei Fische: äöü 🐟\r\n", "n": 2}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def rows_of(path: Path, **keys: Any) -> list[dict[str, Any]]:
    return [row for unit in list_units([Source(path=str(path), **keys)]) for _, row in read_rows(unit)]


def texts_of(path: Path, **keys: Any) -> list[str]:
    return [d.text for unit in list_units([Source(path=str(path), **keys)]) for d in read_documents(unit)]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonl.gz", "jsonl.zst"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(packed.get(suffix.split(".")[-1], bytes)(JSONL))
    assert rows_of(path) == ROWS


def test_zst_of_several_frames_and_blank_lines(tmp_path: Path) -> None:
    path, pack = tmp_path / "rows.jsonl.zst", zstandard.ZstdCompressor().compress
    path.write_bytes(pack(JSONL) + pack(b"\n\n") + pack(JSONL))
    assert rows_of(path) == ROWS + ROWS


def test_parquet_csv_and_tsv(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet") == ROWS
    (tmp_path / "rows.csv").write_bytes(b'text,n\n"two\r\nlines, ""q""",1\n')
    assert rows_of(tmp_path / "rows.csv") == [{"text": 'two\r\nlines, "q"', "n": "1"}]
    (tmp_path / "rows.tsv").write_text("text\tn\na b\t1\n")
    assert rows_of(tmp_path / "rows.tsv") == [{"text": "a b", "n": "1"}]


def test_saved_datasets(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    assert rows_of(tmp_path / "one") == ROWS
    datasets.DatasetDict({"train": data, "extra": data.select([1])}).save_to_disk(str(tmp_path / "many"))
    assert rows_of(tmp_path / "many", dataset_split="extra") == ROWS[1:]
    with pytest.raises(InputError, match="no split 'test'; it has extra, train"):
        rows_of(tmp_path / "many", dataset_split="test")


def test_hub_dataset_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(JSONL)  # a local folder is loaded by the same call as a name on the Hub
    units = list_units([Source(hub=str(tmp_path))])
    assert [row for _, row in read_rows(units[0])] == ROWS


def test_hub_dataset_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'some/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match="some/name: cannot be opened: Couldn't reach"):
        list(read_rows(list_units([Source(hub="some/name")])[0]))


def test_plain_text_is_a_document_or_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffFirst\r\nline\n\nsecond\n\nthird".encode())
    assert texts_of(path) == ["First\r\nline\n\nsecond\n\nthird"]
    assert texts_of(path, separator="\n\n") == ["First\r\nline", "second", "third"]
    assert texts_of(path, separator="line\n\nsec") == ["First\r\n", "ond\n\nthird"]
    units = list_units([Source(path=str(path), separator="\n\n")])
    assert [place.rpartition(":")[2] for place, _ in read_rows(units[0])] == ["1", "4", "6"]


def test_cutting_finds_separators_across_lines_like_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "a\nb\n\n\nb\n\na\n\n\n\nb" * 5
    path.write_text(text)
    for separator in ("\n", "\n\n", "\nb\n", "b", "\n\n\n"):
        assert texts_of(path, separator=separator) == text.removesuffix(separator).split(separator)


def test_several_files_keep_ids_when_the_corpus_moves(tmp_path: Path) -> None:
    found = []
    for home in ("here", "there"):
        for part in ("x", "y"):
            folder = tmp_path / home / part
            folder.mkdir(parents=True)
            (folder / "rows.jsonl").write_bytes(JSONL)
        units = list_units([Source(path=str(tmp_path / home / "**" / "*.jsonl"))])
        found.append([d.id for unit in units for d in read_documents(unit)])
    assert found[0] == found[1] == [f"0/{part}/rows.jsonl:{n}" for part in ("x", "y") for n in (1, 2)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": "ok"}\n["text"]\n', r"a\.jsonl:2: expected a JSON object, got list"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 text \(byte 0xff at column 11\)"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: not valid Unicode: half a surrogate pair"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: column 'text' holds int, expected text"),
        ("a.jsonl", b'{"txt": "x", "n": 1}\n', r"a\.jsonl:1: no column 'text'; the columns are txt, n"),
        ("a.jsonl", b"", r"a\.jsonl: the file is empty"),
        ("a.txt", b"", r"a\.txt: the file is empty"),
        ("a.txt", b"one\ntwo \xc3\x28", r"a\.txt:2: not UTF-8"),
        ("a.csv", b"text,n\nx,1\ny\n", r"a\.csv:3: 1 fields, not the 2 fields of the header"),
        ("a.csv", b'text,n\n"x,1\n', r"a\.csv:2: not valid CSV"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet: not a readable parquet file"),
        ("a.arrow", b"nothing at all", r"a\.arrow: not a readable arrow file"),
        ("a.jsonl.gz", gzip.compress(JSONL * 50)[:-20], r"a\.jsonl\.gz: truncated or damaged"),
        ("a.jsonl.gz", JSONL, r"a\.jsonl\.gz: truncated or damaged"),
        ("a.jsonl.zst", zstandard.compress(JSONL * 50)[:-9], r"a\.jsonl\.zst: truncated or damaged"),
        ("a.jsonl.zst", JSONL, r"a\.jsonl\.zst: truncated or damaged"),
        ("a.docx", b"x", r"a\.docx: cannot tell the format; set `format` to one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes differ from run to run
)
def test_bad_input_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        texts_of(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: no file matches .*nothing-\*"):
        rows_of(tmp_path / "nothing-*")
    with pytest.raises(InputError, match="no file matches .* in this folder"):
        rows_of(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    (unit,) = list_units([Source(path=str(tmp_path / "a.jsonl"))])
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InputError, match=r"a\.jsonl: the file has vanished"):
        list(read_rows(unit))


def test_columns_are_mapped_joined_and_filtered(tmp_path: Path) -> None:
    rows = [
        {"title": "T1", "body": "B1", "key": 7, "year": 1900, "good": True},
        {"title": None, "body": "B2", "key": 8, "year": 1901, "good": True},
        {"title": "T3", "body": "B3", "key": 9, "year": 1902, "good": False},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": ["title", "body"], "id": "key", "era": "year"}
    (unit,) = list_units([Source(path=str(path), columns=columns, where={"good": True, "year": [1900, 1901]})])
    kept = [d for d in read_documents(unit) if d.text]
    assert [(d.id, d.text) for d in kept] == [("7", "T1\n\nB1"), ("8", "B2")]
    assert kept[0].metadata == {"year": 1900, "good": True, "era": 1900}


def test_where_and_columns_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL)
    with pytest.raises(InputError, match=r"no column 'txt' \(did you mean 'text'\?\); the columns are text, n"):
        texts_of(path, columns={"text": "txt"})
    with pytest.raises(InputError, match="no column 'children'; the columns are text, n"):
        texts_of(path, where={"children": True})


def test_where_on_csv_compares_written_values(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,children,n\na,True,1\nb,false,2\n")
    assert texts_of(path, where={"children": True}) == ["a", ""]
    assert texts_of(path, where={"n": 2}) == ["", "b"]
