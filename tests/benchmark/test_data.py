"""The data benchmark on a corpus of kilobytes: every case does the same text, and the table says what was asked."""

import json
from pathlib import Path

import pytest

from ingot.benchmark import data
from ingot.benchmark.data_cases import CASES, measure, read_texts
from ingot.recipe import InputError


def test_a_corpus_is_as_large_as_asked_and_no_copy_is_like_another(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"words of document {i} " * 30}) + "\n" for i in range(5)))
    found = list(data.texts([str(source)], 50_000))
    assert 50_000 <= sum(len(text.encode()) for text in found) < 51_000
    assert len(set(found)) == len(found)


def test_every_case_tokenises_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "VOCABULARY", 300)
    (files,) = data.write_corpus(tmp_path / "corpus", data.texts(None, 300_000), 2)
    size = sum(len(text.encode()) for text in read_texts(files))
    tokenizer = data.train(tmp_path, files)
    found = {case: measure(case, files, tokenizer, tmp_path / "out", 1) for case in CASES}
    assert {case: measured.num_bytes for case, measured in found.items()} == dict.fromkeys(CASES, size)
    tokens = sum((tmp_path / f"out/run-0/tokens/train-{i:05d}.bin").stat().st_size // 2 for i in (0, 1))
    assert found["our_step"].num_tokens == found["end_to_end"].num_tokens == tokens
    assert all(measured.rate > 0 and measured.cpu_rate > 0 for measured in found.values())
    shards = [tmp_path / "out/train-00000.bin", tmp_path / "out/run-0/tokens/train-00000.bin"]
    assert shards[0].stat().st_size > 0
    two = tmp_path / "out/run-0/tokens/train-00001.bin"
    assert shards[0].read_bytes() == shards[1].read_bytes() + two.read_bytes()


def test_the_table_and_the_plot(tmp_path: Path) -> None:
    row = {"bytes_per_second": 4e6, "share": 0.9, "best_slice": 5e6, "best_share": 0.91, "bytes_per_cpu_second": 2e6}
    cases = {case: {**row, "cpu_share": 0.92, "peak_memory": 2e8} for case in CASES}
    scaling = [
        {"workers": w, "our_step": w * 1e6, "end_to_end": w * rate, "encode_alone": w * 1e6,
         "tokens_per_second": {"our_step": w * 2.5e5, "end_to_end": w * rate / 4}}
        for w, rate in ((1, 9e5), (2, 8.1e5))
    ]  # fmt: skip
    results = {"corpus_bytes": 5e8, "workers": 2, "cores": 2, "load_average": [0.1], "cases": cases}
    table = data.as_table({**results, "scaling": scaling, "start_up": "excluded"})
    assert "| .jsonl.zst to shards | 4.00 | 90.0% | 5.00 | 91.0% | 2.00 | 92.0% | 85% | 200 MB |" in table
    assert "| 2 | 2.00 | 500,000 | 1.62 | 405,000 | 90.0% |" in table
    data.plot({"scaling": scaling}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--byte", "1"], "unrecognized arguments: --byte"),
        (["--workers", "0"], "must be at least 1"),
        (["--workers", "2", "--bytes", "1000"], "--bytes: 1,000 are fewer than 2 documents, one for each worker"),
        (["--tokenizer", "/nowhere"], "--tokenizer: /nowhere has no tokenizer.json"),
    ],
)
def test_wrong_words_are_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data.benchmark_command(words)
