"""The questions made from held-out documents: right answers are right, wrong ones come from elsewhere."""

from pathlib import Path

import pytest
import yaml

from ingot.evaluation.continuation import continuation_rows, write_task
from ingot.evaluation.documents import Document
from ingot.recipe import InputError

# Every word says which document and place it is from.
DOCUMENTS = [Document(f"doc-{d}", " ".join(f"w{d}-{i}" for i in range(70 + 30 * d))) for d in range(4)]


def test_the_labelled_choice_follows_the_passage_and_the_others_are_from_other_documents() -> None:
    texts = {d.id: d.text for d in DOCUMENTS}
    rows = continuation_rows(DOCUMENTS, 50)
    for row in rows:
        number = str(row["document"]).removeprefix("doc-")
        right = row["choices"].pop(row["label"])
        assert f"{row['passage']} {right}" in texts[row["document"]]
        assert all(not choice.startswith(f"w{number}-") for choice in row["choices"])
        assert {len(choice.split()) for choice in (right, *row["choices"])} == {16}
    assert {row["label"] for row in rows} == {0, 1, 2, 3}


def test_rows_depend_on_the_documents_and_the_seed_alone() -> None:
    assert continuation_rows(DOCUMENTS, 20, seed=1) == continuation_rows(DOCUMENTS, 20, seed=1)
    assert continuation_rows(DOCUMENTS, 20, seed=1) != continuation_rows(DOCUMENTS, 20, seed=2)


def test_too_little_held_out_text_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"continuation_rows: needs two held-out documents of 64 words or more, found 1"
    ):
        continuation_rows([DOCUMENTS[0], Document("short", "a b c")], 5)


def test_the_task_file_names_its_rows(tmp_path: Path) -> None:
    path = write_task(DOCUMENTS, 7, tmp_path / "tasks")
    task = yaml.safe_load(path.read_text())
    rows = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert rows.is_absolute() and len(rows.read_text().splitlines()) == 7
