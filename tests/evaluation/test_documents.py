"""Held-out documents are read whole, and a bad line is named."""

from pathlib import Path

import pytest

from ingot.evaluation.documents import read_documents
from ingot.recipe import InputError


def test_documents_keep_text_and_metadata(data_folder: Path) -> None:
    documents = read_documents(data_folder, "test")
    assert [d.id for d in documents] == ["doc-0", "doc-1", "doc-2"]
    assert documents[1].metadata == {"year": 1801}
    assert documents[0].num_bytes == len(documents[0].text.encode()) > len(documents[0].text)


@pytest.mark.parametrize(
    "content,message",
    [
        ("", "0 documents in the file"),
        ('{"id": "1", "text": "a"}\n{"id"', r"test.jsonl, line 2: not JSON"),
        ('{"id": "1", "text": ""}\n', r"line 1: expected an object with a non-empty `text`"),
        ("[1]\n", r"line 1: expected an object"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_documents(tmp_path, "test")


def test_a_missing_split_is_named(data_folder: Path) -> None:
    with pytest.raises(InputError, match=r"data.split: .*validation.jsonl does not exist"):
        read_documents(data_folder, "validation")
