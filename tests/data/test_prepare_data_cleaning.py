"""Cleaning inside the stage: decisions over all tasks, what is masked, what was dropped and why."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from .helpers import sentence, write_jsonl
from .test_prepare_data import texts

Prepare = Callable[..., tuple[Path, dict[str, Any]]]


def dropped(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((folder / "dropped").iterdir()):
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as packed:
            rows += [json.loads(line) for line in io.TextIOWrapper(packed, encoding="utf-8")]
    return rows


def test_near_duplicates_are_found_across_files_and_written_with_the_reason(tmp_path: Path, prepare: Prepare) -> None:
    rows = [{"id": f"a{i}", "text": sentence(i, 80)} for i in range(5)]
    near = [{"id": f"b{i}", "text": f"{row['text']} indeed"} for i, row in enumerate(rows)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(
        tmp_path / "b.jsonl", [*near, {"id": "same", "text": rows[2]["text"].upper()}, {"id": "e", "text": " "}]
    )
    folder, results = prepare([{"path": str(tmp_path / "*.jsonl")}], minhash=True, keep_dropped=True)
    assert results["dropped"] == {"near_duplicate": 5, "duplicate": 1, "empty": 1}
    assert [(row["id"], row["reason"]) for row in dropped(folder)] == [
        *((f"b{i}", "near_duplicate") for i in range(5)), ("same", "duplicate"), ("e", "empty"),
    ]  # fmt: skip
    sources = json.loads((folder / "data.json").read_text())["sources"]
    assert [row["dropped"] for row in sources] == [{}, results["dropped"]]


def test_personal_data_is_masked_in_shards_and_held_out_texts_and_counted(
    tmp_path: Path, prepare: Prepare, tokenizer_folder: Path
) -> None:
    rows = [
        {"id": f"d{i}", "text": f"{sentence(i, 20)} write to jane.doe{i}@corp.example.net today"} for i in range(8)
    ]
    source = {"path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    for name, data in (("two", {"split": {"test": 2}}), ("one", {"split": {"test": 0.6}, "dedup": "off"})):
        folder, results = prepare([source], name, pii=True, **data)
        found = [t for split in ("train", "test") for t in texts(folder, split, tokenizer_folder)]
        assert len(found) == 8
        assert not any("jane" in text for text in found)
        assert "jane" not in (folder / "test.jsonl").read_text()
        assert sum(results["cleaned"].values()) == 8


def test_a_benchmark_that_changes_judges_everything_again(tmp_path: Path, prepare: Prepare) -> None:
    question = sentence(7, 30)
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"id": "x", "text": f"{sentence(1, 30)} {question}"}, {"text": sentence(2)}]
    )
    for number, (text, expected) in enumerate(((sentence(8, 30), 0), (question, 1))):
        write_jsonl(tmp_path / "questions.jsonl", [{"question": text}])
        benchmarks = [{"path": str(tmp_path / "questions.jsonl"), "name": "quiz"}]
        _, results = prepare([{"path": str(path)}], decontaminate={"benchmarks": benchmarks})
        assert results["dropped"] == ({"decontaminate: quiz": 1} if expected else {}), number
        assert results["benchmarks"][0]["name"] == "quiz"
