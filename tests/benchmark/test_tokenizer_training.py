"""The benchmark of BPE training: the plain trainer is right, and what is extrapolated says so."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ingot.benchmark import tokenizer_training as benchmark
from ingot.benchmark.tokenizer_training import count_words, extrapolate, merge, run_case, table


def test_the_plain_trainer_merges_as_the_library_does() -> None:
    words = {"abc": 10, "abd": 7, "xy": 3, "abcxy": 2}  # no two pairs are equally frequent
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.train_from_iterator(
        [f"{word} " * n for word, n in words.items()], trainers.BpeTrainer(vocab_size=30, show_progress=False)
    )
    merges = json.loads(library.to_str())["model"]["merges"]
    assert merge(Counter(words), 30) == [tuple(pair) for pair in merges]
    assert merges[:2] == [["a", "b"], ["ab", "c"]]


def test_repeated_letters_are_counted_once_per_merge() -> None:
    assert merge(Counter({"aaaa": 3}), 5) == [("a", "a"), ("aa", "aa")]


def test_counting_stops_at_the_share() -> None:
    words, size = count_words(iter(["one two", "three", "never"]), 10)
    assert (size, words) == (12, {"one": 1, " two": 1, "three": 1})


def test_the_extrapolation() -> None:
    base = {"merges": 100, "peak_memory_bytes": 1000}
    shares = [
        {**base, "bytes": 10, "count_seconds": 1.0, "merge_seconds": 1.0},
        {**base, "bytes": 40, "count_seconds": 4.0, "merge_seconds": 2.0},
    ]
    guess = extrapolate(shares, 160, 300)  # counting x 4; merging grows with the root: x 2, and x 3 merges
    assert guess["seconds"] == 16.0 + 12.0
    assert (guess["merge_time_grows_with_bytes_to_the"], guess["peak_memory_bytes"]) == (0.5, 1000)


def test_a_case_of_ours_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog and the hen " * 40)
    found: dict[str, Any] = run_case("ingot", str(tmp_path / "a.txt"), 280)
    assert found["entries"] == 280 and found["bytes"] == 2240 and found["peak_memory_bytes"] > 1e6
    assert found["cpu_seconds"] > 0
    page = table({"cases": [found, {**found, "remark": "EXTRAPOLATED"}], "cores": 2, "loads": "1.0"})
    assert len({line.count("|") for line in page.splitlines()[:4]}) == 1
    assert page.count("| ingot | 0.0 | 280 |") == 2 and "EXTRAPOLATED" in page


def test_sentencepiece_on_a_small_text(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog and the hen\n" * 40)
    found = benchmark.run_sentencepiece(str(tmp_path / "a.txt"), 300)
    assert found["entries"] == 300
