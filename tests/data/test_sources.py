"""Every kind of source that a recipe can name, read to documents; parts of large files lose and repeat nothing."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datatrove.data import Document
from ruamel.yaml import YAML

from ingot.data import blocks, listing
from ingot.data.documents import read_documents
from ingot.data.readers import read_rows
from ingot.data.rows import BAD_REASONS
from ingot.data.sources import Corpus, Source, list_units
from ingot.recipe import InputError

from .helpers import make_rows, write_jsonl

CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]


def documents_of(path: Path | str, **keys: Any) -> list[Document]:
    return [d for unit in list_units([Source(path=str(path), **keys)]) for d in read_documents(unit)]


def texts_of(path: Path | str, **keys: Any) -> list[str]:
    return [d.text for d in documents_of(path, **keys)]


@pytest.mark.parametrize(
    ("row", "keys", "text"),
    [
        ({"text": "A", "content": "B"}, {}, "A"),
        ({"content": "B", "prompt": "P", "response": "R"}, {}, "B"),
        ({"prompt": "P", "response": "R"}, {}, "P\n\nR"),
        ({"prompt": "P", "response": "R"}, {"join": "\n### Answer:\n"}, "P\n### Answer:\nR"),
        ({"instruction": "I", "input": "", "output": "O"}, {"columns": {"text": ["instruction", "input", "output"]}},
         "I\n\nO"),
    ],
)  # fmt: skip
def test_the_text_of_a_row(tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], text: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    assert texts_of(path, **keys) == [text]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv.zst", "txt.gz", "md", "json.gz", "parquet"])
def test_formats_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    contents = {
        "csv": b"text,n\nOne.,1\n", "tsv": b"text\tn\nOne.\t1\n", "txt": b"One.", "md": b"One.",
        "json": b'{"text": "One."}\n',
    }  # fmt: skip
    pack: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}
    format, _, packed = suffix.partition(".")
    if format == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["One."]}), path)
    else:
        path.write_bytes(pack.get(packed, bytes)(contents[format]))
    assert texts_of(path) == ["One."]


def test_a_folder_is_its_files_of_one_format(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a.txt", ".git/x.txt", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = documents_of(tmp_path)
    assert [(d.id, d.text) for d in found] == [("0/a.txt:1", "a.txt"), ("0/b/x.txt:1", "b/x.txt")]
    (tmp_path / "rows.jsonl").write_text('{"text": "row"}\n')
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: .* holds jsonl and text files; set format"):
        documents_of(tmp_path)
    (tmp_path / "notes.pdf").unlink()
    assert texts_of(tmp_path, format="jsonl") == ["row"]


def test_slimpajama_layout_with_its_own_splits(
    prepare: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "meta": {"redpajama_set_name": "RedPajamaC4"}} for row in make_rows(40)]
    files = {"train/chunk1/a": rows[:10], "train/chunk2/a": rows[10:30], "validation/chunk1/a": rows[30:36],
             "test/chunk1/a": rows[36:]}  # fmt: skip
    for name, part in files.items():
        path = tmp_path / "SlimPajama" / f"{name}.jsonl.zst"
        path.parent.mkdir(parents=True)
        path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in part).encode()))
    root = tmp_path / "SlimPajama"
    sources = [{"path": f"{root}/{s}/chunk*/*.jsonl.zst", "split": s} for s in ("train", "validation", "test")]
    folder, results = prepare(sources)
    assert {name: entry["documents"] for name, entry in results["splits"].items()} == {
        "train": 30, "validation": 6, "test": 4
    }  # fmt: skip
    held = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [row["text"] for row in held] == [row["text"] for row in rows[30:36]]
    assert held[0]["metadata"] == {"meta": {"redpajama_set_name": "RedPajamaC4"}}


def test_given_splits_and_drawn_ones_together(
    prepare: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    a, b = write_jsonl(tmp_path / "a.jsonl", make_rows(30)[:20]), write_jsonl(tmp_path / "b.jsonl", make_rows(30)[20:])
    _, results = prepare([{"path": str(a)}, {"path": str(b), "split": "train"}], split={"validation": 19})
    assert results["splits"]["validation"]["documents"] == 19
    assert results["splits"]["train"]["documents"] == 11
    corpus = Corpus(sources=[Source(path="a", split="test")])
    assert "data.sources: every source is held out by its split; leave one to train on" in list(corpus.problems())


def test_tinystories_and_openwebtext_by_their_separator(tmp_path: Path) -> None:
    path = tmp_path / "TinyStoriesV2-GPT4-train.txt"
    path.write_text("Once upon a time.\nThe end.\n<|endoftext|>\nOne day.\n<|endoftext|>\n")
    assert texts_of(path, separator="<|endoftext|>\n") == ["Once upon a time.\nThe end.\n", "One day.\n"]


def test_conversations_become_text(tmp_path: Path) -> None:
    rows = [
        {"conversation_id": "c1", "language": "English", "conversation": CHAT},
        {"conversation_id": "c2", "language": "German", "conversation": CHAT},
        {"conversation_id": "c3", "language": "English", "conversation": [{"from": "human", "value": "Q"}]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:2]), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", conversations={}) == ["User: Hi.\n\nAssistant: Hello!"] * 2
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    keys = {"columns": {"id": "conversation_id"}, "where": {"language": "English"}}
    found = documents_of(path, conversations={"names": {"user": "Q: ", "assistant": "A: "}, "between": "\n"}, **keys)
    assert [(d.id, d.text) for d in found if d.text] == [("c1", "Q: Hi.\nA: Hello!"), ("c3", "Q: Q")]
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    for place in (template, tmp_path):
        found = documents_of(path, conversations={"chat_template": str(place)}, **keys)
        assert found[0].text == "<user>Hi.<assistant>Hello!"


def test_conversations_that_are_none(tmp_path: Path) -> None:
    for value in ("text", [{"role": "judge", "content": "x"}], [{"role": "user"}], ["x"]):
        path = write_jsonl(tmp_path / "a.jsonl", [{"conversation": value}])
        with pytest.raises(
            InputError, match=r"a\.jsonl:1: (column 'conversation' holds no list|a message needs a role)"
        ):
            documents_of(path, conversations={})
    (tmp_path / "t.jinja").write_text("{{ raise_exception('no') }}")
    path = write_jsonl(tmp_path / "a.jsonl", [{"conversation": CHAT}])
    with pytest.raises(InputError, match="a.jsonl:1: the chat template refuses this conversation: no"):
        documents_of(path, conversations={"chat_template": str(tmp_path / "t.jinja")})
    with pytest.raises(InputError, match="chat_template: .*absent cannot be read"):
        documents_of(path, conversations={"chat_template": str(tmp_path / "absent")})


def test_hub_datasets_with_revision_streamed_or_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, subset: str | None, **keys: Any) -> list[dict[str, Any]]:
        asked.append({"name": name, "subset": subset, **keys})
        return [{"text": "One."}, {"text": "Two."}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source(hub="org/set", subset="en", revision="abc", streaming=False, dataset_split="validation")
    assert [d.id for d in read_documents(list_units([source])[0])] == ["org/set:1", "org/set:2"]
    assert asked == [{"name": "org/set", "subset": "en", "split": "validation", "revision": "abc", "streaming": False}]
    assert "revision: only for a Hub dataset" in " ".join(Source(path="a", revision="x").problems("data.sources.0"))


def test_a_hub_dataset_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        yield {"text": "One."}
        raise ConnectionError("the connection was closed\nby the other side")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        InputError, match="hub dataset a/b: cannot be read after row 1: the connection was closed; check"
    ):
        list(read_documents(list_units([Source(hub="a/b")])[0]))


def test_a_hub_dataset_offline_is_one_line() -> None:
    with pytest.raises(InputError, match="hub dataset no-such/set: cannot be opened: .*; check its name") as error:
        list(read_documents(list_units([Source(hub="no-such/set")])[0]))
    assert "\n" not in str(error.value)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts files into parts of 500 bytes, read 64 bytes at a time."""
    monkeypatch.setattr(listing, "UNIT_BYTES", 500)
    monkeypatch.setattr(blocks, "BLOCK", 64)


ENDS = ["\n", "\r\n", "\n\n", "\n \n"]


@pytest.mark.parametrize("end", ENDS, ids=["lf", "crlf", "blank lines", "blanks"])
def test_parts_of_a_jsonl_file_hold_every_row_once(tmp_path: Path, small_units: None, end: str) -> None:
    rows = [{"text": "x" * (i * 37 % 400) + "é🐟", "n": i} for i in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\ufeff" + end.join(json.dumps(row, ensure_ascii=False) for row in rows)).encode())
    units = list_units([Source(path=str(path))])
    assert len(units) > 10 and units == list_units([Source(path=str(path))])
    assert [row for unit in units for _, row in read_rows(unit)] == rows
    found = documents_of(path)
    assert len({d.id for d in found}) == 60 and found[1].id.startswith("0/a.jsonl@")


def test_a_line_longer_than_several_parts(tmp_path: Path, small_units: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a" * 3000}, {"text": "b"}])
    assert texts_of(path) == ["a" * 3000, "b"]


def test_parts_of_text_and_csv_and_parquet(tmp_path: Path, small_units: None) -> None:
    texts = [f"{i}: " + "word " * (i * 7 % 60) for i in range(40)]
    text, csv, table = tmp_path / "a.txt", tmp_path / "a.csv", tmp_path / "a.parquet"
    text.write_text("\n<end>\n".join(texts))
    csv.write_text("n,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), table, row_group_size=4)
    for path, keys in ((text, {"separator": "\n<end>\n"}), (csv, {"one_line_rows": True}), (table, {})):
        assert len(list_units([Source(path=str(path), **keys)])) > 3
        found = documents_of(path, **keys)
        assert [d.text for d in found] == texts
        assert len({d.id for d in found}) == 40
    assert [d.id for d in documents_of(table)] == [f"0/a.parquet:{i}" for i in range(1, 41)]
    assert len(list_units([Source(path=str(csv))])) == 1  # its fields may hold line ends
    assert len(list_units([Source(path=str(text))])) == 1  # it is one document


def test_parts_agree_where_separators_overlap(tmp_path: Path, small_units: None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab\n\n\n\n\n\nc" * 200)
    assert "".join(texts_of(path, separator="\n\n")).replace("\n", "") == "abc" * 200


def test_errors_in_parts_name_the_byte(tmp_path: Path, small_units: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 200} for _ in range(20)])
    lines = path.read_text().splitlines()
    lines[15] = "{broken"
    path.write_text("\n".join(lines))
    place = len("\n".join(lines[:15])) + 1
    with pytest.raises(InputError, match=rf"a\.jsonl: line at byte {place}: not valid JSON"):
        documents_of(path)


def test_a_part_of_a_file_that_changed(tmp_path: Path, small_units: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 200} for _ in range(20)])
    units = list_units([Source(path=str(path))])
    write_jsonl(path, [{"text": "y"}])
    with pytest.raises(InputError, match=r"a\.jsonl: has 14 bytes and had \d+; it changed while it was read"):
        list(read_documents(units[1]))


def test_only_columns_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str] | None] = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(self: Any, *args: Any, columns: list[str] | None = None, **keys: Any) -> Any:
        asked.append(columns)
        return original(self, *args, columns=columns, **keys)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"html": "<p>", "text": "T", "good": 1, "year": 2}]), path)
    (unit,) = list_units([Source(path=str(path), where={"good": 1}, columns={"era": "year"})])
    assert [d.metadata for d in read_documents(unit, metadata=["era"])] == [{"era": 2}]
    assert [d.metadata for d in read_documents(unit, metadata=[])] == [{}]
    assert [d.metadata for d in read_documents(unit)] == [{"html": "<p>", "good": 1, "year": 2, "era": 2}]
    assert asked == [["text", "good", "year"], ["text", "good", "year"], ["html", "text", "good", "year"]]


def test_every_recipe_of_the_docs_is_one(root: Path) -> None:
    page = (root / "docs" / "data_sources.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    assert len(blocks) >= 10
    for block in blocks:
        tree = YAML(typ="safe").load(block)
        corpus = Corpus.model_validate(tree.get("data", tree))
        assert list(corpus.problems()) == [], block


def test_the_docs_name_every_reason(root: Path) -> None:
    page = (root / "docs" / "data_sources.md").read_text(encoding="utf-8")
    assert all(f"| {reason} |" in page for reason in BAD_REASONS)
