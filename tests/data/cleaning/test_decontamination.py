"""Benchmark sentences planted into a corpus are found and named; texts that only look alike are left alone."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ingot.data.cleaning import decontamination
from ingot.data.cleaning.cleaner import Cleaner, cleaning_reasons, prepare_cleaning
from ingot.data.cleaning.decontamination import BenchmarkIndex, build_index, decontamination_files
from ingot.data.cleaning.section import Benchmark, Cleaning, Decontaminate
from ingot.recipe import InputError

from .planted import invented

QUESTION = "A farmer has nineteen sheep and sells all but nine to his brother, how many sheep remain on the farm?"
STORY = "The wagon rolled over the bridge while the miller counted every sack of grain that his two sons had loaded."


@pytest.fixture
def benchmarks(tmp_path: Path) -> dict[str, Path]:
    """Two benchmarks: questions with choices as gzipped jsonl, stories as parquet."""
    questions = tmp_path / "sums" / "test.jsonl.gz"
    questions.parent.mkdir()
    rows = [{"question": QUESTION, "choices": {"text": ["nine", "ten sheep"]}, "id": 1}, {"question": "Why?", "id": 2}]
    with gzip.open(questions, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    stories = tmp_path / "stories" / "validation.parquet"
    stories.parent.mkdir()
    table = {"text": [STORY, invented(77, 40)], "note": [invented(78, 40), ""]}
    pyarrow.parquet.write_table(pyarrow.table(table), stories)
    return {"sums": questions, "stories": stories}


def section(benchmarks: dict[str, Path], **keys: Any) -> Decontaminate:
    return Decontaminate(benchmarks=[Benchmark(path=str(path)) for path in benchmarks.values()], **keys)


def cleaner(made: Decontaminate, folder: Path) -> Cleaner:
    prepare_cleaning(Cleaning(decontaminate=made), folder)
    return Cleaner(Cleaning(decontaminate=made), folder)


def test_planted_sentences_are_found_and_named(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    made = cleaner(section(benchmarks), tmp_path / "index")
    clean = [invented(i) for i in range(40)]
    planted = [f"{text[:300]} {(QUESTION, STORY)[i % 2]} {text[300:]}" for i, text in enumerate(clean)]
    assert [made.judge(text) for text in clean] == [None] * 40
    expected = ["decontaminate: sums/test", "decontaminate: stories/validation"] * 20
    assert [made.judge(text) for text in planted] == expected
    assert set(expected) <= set(cleaning_reasons(made.section))


def test_case_signs_and_line_ends_do_not_hide_a_sentence(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    made = cleaner(section(benchmarks), tmp_path / "index")
    assert made.judge("so: " + QUESTION.upper().replace(" ", "\n").replace(",", " --")) == "decontaminate: sums/test"


def test_thirteen_words_are_found_and_twelve_are_not(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    made = cleaner(section(benchmarks), tmp_path / "index")
    words = QUESTION.split()
    assert made.judge(" ".join(["other", *words[:13], "words"])) is not None
    assert made.judge(" ".join(["other", *words[:12], "words"])) is None


def test_a_run_does_not_reach_from_one_text_into_the_next(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    made = cleaner(section(benchmarks), tmp_path / "index")
    assert made.judge(" ".join([*QUESTION.split()[-11:], "nine ten sheep Why"])) is None


def test_short_texts_are_found_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"q": "what do bees make in the warm summer"}\n{"q": "what is honey"}\n')
    benchmark = {"short": path}
    assert cleaner(section(benchmark), tmp_path / "a").judge("what do bees make in the warm summer?") is None
    made = cleaner(section(benchmark, min_words=8), tmp_path / "b")
    assert made.judge("Tell me, what do bees make in the warm summer?") is not None
    assert made.judge("Tell me, what do bees make in the warm") is None and made.judge("what is honey") is None


def test_only_the_columns_of_the_recipe(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    benchmark = Benchmark(path=str(benchmarks["stories"]), columns=["text"], name="stories")
    made = cleaner(Decontaminate(benchmarks=[benchmark]), tmp_path / "index")
    assert made.judge(STORY) == "decontaminate: stories" and made.judge(invented(78, 40)) is None


def test_the_span_alone_is_cut_out_and_counted(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    made = cleaner(section(benchmarks, action="span"), tmp_path / "index")
    text = f"Before it. {QUESTION} After the question. {STORY}"
    assert made.judge(text) is None
    assert made.clean(text) == (
        "Before it. ? After the question. .",
        {"decontaminate: sums/test": 1, "decontaminate: stories/validation": 1},
    )
    wide = cleaner(section(benchmarks, action="span", span_margin=9), tmp_path / "wide")
    assert wide.clean(text)[0] == "Behe q"
    assert made.judge(QUESTION) is None and wide.judge(QUESTION) == "empty"


def test_the_index_says_what_it_holds_and_is_built_once(
    tmp_path: Path, benchmarks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = section(benchmarks)
    info = build_index(made, tmp_path / "index")
    assert info[0] == {"name": "sums/test", "rows": 2, "rows_long_enough": 1, "runs": len(QUESTION.split()) - 12}
    with monkeypatch.context() as patch:
        patch.setattr(decontamination, "words_of", None)  # would fail if it were called
        assert build_index(made, tmp_path / "index") == info


def test_the_index_is_built_again_for_other_files_and_other_keys(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    build_index(section(benchmarks), tmp_path / "index")
    fewer = build_index(section(benchmarks, ngram=20), tmp_path / "index")
    assert fewer[0]["runs"] == len(QUESTION.split()) - 19
    benchmarks["sums"].write_bytes(gzip.compress(json.dumps({"question": "Who?"}).encode()))
    assert build_index(section(benchmarks, ngram=20), tmp_path / "index")[0]["runs"] == 0


def test_a_run_in_two_benchmarks_belongs_to_the_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": QUESTION}))
    benchmarks = [Benchmark(path=str(tmp_path / f"{name}.jsonl"), name=name) for name in ("two", "one")]
    assert cleaner(Decontaminate(benchmarks=benchmarks), tmp_path / "i").judge(QUESTION) == "decontaminate: two"


def test_files_of_a_task(tmp_path: Path, benchmarks: dict[str, Path]) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(
        "task: sums\ndoc_to_text: !function utils.text\n"
        f"dataset_kwargs:\n  data_files:\n    test: {benchmarks['sums']}\n    few: [{benchmarks['stories']}]\n"
    )
    made = Decontaminate(benchmarks=[Benchmark(path=str(task))])
    assert sorted(decontamination_files(made)) == sorted(benchmarks.values())
    assert cleaner(made, tmp_path / "index").judge(QUESTION) == "decontaminate: sums/test"


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"path": "nothing-*.jsonl"}, r"data.decontaminate.benchmarks.0.path: .*nothing-\*.jsonl"),
        ({"path": "sums/test.jsonl.gz", "columns": ["qestion"]}, "test.jsonl.gz:1: no column 'qestion'.*'question'"),
        ({"path": "task.yaml"}, "task.yaml names no dataset_kwargs.data_files"),
        ({"path": "lost.yaml"}, "lost.yaml reads lost.jsonl, which does not exist"),
        ({"path": "none.yaml"}, "none.yaml cannot be read"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    benchmarks: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    benchmark: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.yaml").write_text("task: x\ndataset_path: hub/name\n")
    Path("lost.yaml").write_text("dataset_kwargs: {data_files: lost.jsonl}\n")
    with pytest.raises(InputError, match=message):
        build_index(Decontaminate(benchmarks=[Benchmark(**benchmark)]), tmp_path / "index")
    assert not (tmp_path / "index" / "benchmarks.json").exists()


def test_an_index_without_runs(tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"q": "too short"}\n{"q": 5}\n')
    made = Decontaminate(benchmarks=[Benchmark(path=str(tmp_path / "short.jsonl"))])
    build_index(made, tmp_path / "index")
    assert BenchmarkIndex(made, tmp_path / "index").matches(QUESTION) == []
    assert not len(np.load(tmp_path / "index" / "keys.npy"))
