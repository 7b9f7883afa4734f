"""What the steps find in real corpora: these counts change when a step does."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from ingot.data.cleaning.cleaner import Cleaner, prepare_cleaning
from ingot.data.cleaning.minhash import SignatureWriter, near_duplicates
from ingot.data.cleaning.section import Benchmark, Cleaning, Decontaminate, Minhash

DATA = Path(__file__).parents[4] / "shared" / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not (DATA / "eval").is_dir(), reason="../shared/data, the development corpora, is not there"),
]


def texts_of(name: str) -> list[str]:
    """The documents of a jsonl corpus."""
    with gzip.open(DATA / "pretrain" / name / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def drops(section: Cleaning, folder: Path, texts: list[str]) -> dict[str, int]:
    """How many documents are dropped for each reason."""
    made = Cleaner(section, folder)
    return dict(Counter(reason for text in texts if (reason := made.judge(text)) is not None))


@pytest.mark.parametrize(
    ("name", "filters", "expected"),
    [
        ("c4_demo", {"languages": ["en"]}, {"language: unsure": 5}),
        (
            "c4_demo",
            {"gopher_quality": True},
            {
                "gopher_quality: too few words": 28,
                "gopher_quality: too few words with letters": 30,
                "gopher_quality: too many ellipses": 1,
            },
        ),
        (
            "c4_demo",
            {"gopher_repetition": True},
            {
                "gopher_repetition: frequent 2 words": 3,
                "gopher_repetition: frequent 3 words": 3,
                "gopher_repetition: frequent 4 words": 3,
                "gopher_repetition: repeated 5 words": 3,
                "gopher_repetition: repeated 6 words": 1,
                "gopher_repetition: repeated 10 words": 1,
            },
        ),
        ("c4_demo", {"c4": True, "fineweb": True}, {"c4: too few sentences": 43}),
        (
            "tinystories_sample",
            {"languages": ["en"], "fineweb": True},
            {"fineweb: too few lines end a sentence": 14},
        ),
    ],
)
def test_filters(tmp_path: Path, name: str, filters: dict[str, Any], expected: dict[str, int]) -> None:
    assert drops(Cleaning(filters=filters), tmp_path, texts_of(name)) == expected  # type: ignore[arg-type]


def test_benchmarks_in_speeches_and_books(tmp_path: Path) -> None:
    """History questions quote speeches of presidents; no book holds a question of theirs."""
    paths = [
        Benchmark(path=str(DATA / "eval" / name / "*.jsonl.gz"), name=name) for name in ("mmlu", "boolq", "gsm8k")
    ]
    section = Cleaning(decontaminate=Decontaminate(benchmarks=paths))
    info = prepare_cleaning(section, tmp_path / "index")
    assert [(entry["name"], entry["rows"]) for entry in info] == [("mmlu", 15858), ("boolq", 3270), ("gsm8k", 8792)]
    found = drops(section, tmp_path / "index", texts_of("state_of_the_union"))
    assert found == {"decontaminate: mmlu": 9, "decontaminate: boolq": 3}
    books = pyarrow.parquet.read_table(DATA / "pretrain" / "classic_books" / "test.parquet").column("text")
    assert drops(section, tmp_path / "index", books.to_pylist()) == {}


def test_near_duplicates(tmp_path: Path) -> None:
    texts = texts_of("tinystories_sample") + texts_of("c4_demo")
    writer = SignatureWriter(tmp_path, 0, Minhash())
    for number, text in enumerate(texts):
        writer.add(number, text)
    writer.close()
    assert near_duplicates(tmp_path, 1)[0].tolist() == []
