"""The prepare_data stage on tiny corpora: counts, splits, drops, identical reruns, and mistakes named."""

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from ingot.data import decisions, encode, execution, writing
from ingot.data.prepare_data import DataRecipe
from ingot.data.selection import select_documents
from ingot.data.shards import TokenShards, token_dtype
from ingot.recipe import InputError, load_recipe

from .helpers import make_rows, sentence, write_jsonl

Prepare = Callable[..., tuple[Path, dict[str, Any]]]


def held_out(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def texts(folder: Path, split: str, tokenizer_folder: Path) -> list[str]:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    shards = TokenShards(folder, split)
    return [tokenizer.decode(shards.document(i)[:-1].tolist()) for i in range(shards.num_documents)]


def test_every_document_is_in_one_split_and_the_counts_add_up(
    tmp_path: Path, prepare: Prepare, tokenizer_folder: Path
) -> None:
    rows = make_rows(40)
    source = {"path": str(write_jsonl(tmp_path / "a.jsonl", rows))}
    folder, results = prepare([source], split={"validation": 3, "test": 5})
    parts = {split: texts(folder, split, tokenizer_folder) for split in ("train", "validation", "test")}
    assert sorted(sum(parts.values(), [])) == sorted(row["text"] for row in rows)
    for split, found in parts.items():
        counts = results["splits"][split]
        assert counts["documents"] == len(found) == {"train": 32, "validation": 3, "test": 5}[split]
        assert counts["bytes"] == sum(len(text.encode()) for text in found)
        shards = TokenShards(folder, split)
        assert counts["tokens"] == shards.num_tokens == sum(len(shards.document(i)) for i in range(len(found)))
        assert all(shards.document(i)[-1] == 0 for i in range(len(found)))  # <|endoftext|>
    assert [d["text"] for d in held_out(folder, "test")] == parts["test"]
    assert held_out(folder, "test")[0]["metadata"].keys() == {"year"}
    assert results["documents_read"] == 40
    assert results["dropped"] == {}
    assert "| train | 32 |" in (folder / "report.md").read_text()


def test_drops_are_counted_by_reason(tmp_path: Path, prepare: Prepare) -> None:
    extra = [
        {"text": ""}, {"text": " \n"}, {"text": "short"}, {"text": "long " * 100}, {"text": "12345 67890 12345 x"},
        {"text": "same line\n" * 10}, {"text": sentence(1, 6).upper()}, {"text": sentence(500), "kind": "bad"},
    ]  # fmt: skip
    rows = [{"kind": "good", **row} for row in make_rows(10) + extra]
    filters = {"min_characters": 10, "max_characters": 400, "min_letter_share": 0.5, "max_repeated_line_share": 0.5}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    _, results = prepare([{"path": str(path), "columns": {"id": "text"}, "where": {"kind": "good"}}], filters=filters)
    dropped = {"where": 1, "empty": 2, "too_short": 1, "too_long": 1, "few_letters": 1, "repeated_lines": 1}
    assert results["dropped"] == {**dropped, "duplicate": 1}
    assert results["splits"]["train"]["documents"] == 10


def test_duplicates_are_found_across_files_and_kept_on_request(tmp_path: Path, prepare: Prepare) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", make_rows(5))
    source = {"path": str(tmp_path / "*.jsonl")}
    _, results = prepare([source], "once")
    assert results["dropped"] == {"duplicate": 5}
    _, results = prepare([source], "twice", dedup="off")
    assert results["splits"]["train"]["documents"] == 10


def test_duplicates_are_the_same_however_many_hashes_are_compared_at_once(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(60)
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", rows[i * 7 : i * 7 + 30]) for i in range(4)]
    sources = [{"path": str(path)} for path in paths]
    once, results = prepare(sources, "once")
    monkeypatch.setattr(decisions, "AT_ONCE", 7)
    again, others = prepare(sources, "again")
    assert results == others and results["splits"]["train"]["documents"] == 51
    for path in sorted(once.glob("tokens/*")):
        assert path.read_bytes() == (again / "tokens" / path.name).read_bytes()


def test_groups_go_to_one_split(tmp_path: Path, prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(60))
    split = {"validation": 1, "test": 2, "group": ["year"], "stratify": "year"}
    folder, results = prepare([{"path": str(path)}], split=split)
    years = {split: {d["metadata"]["year"] for d in held_out(folder, split)} for split in ("validation", "test")}
    assert len(years["validation"]) == 1
    assert len(years["test"]) == 2
    assert results["splits"]["test"]["documents"] == 6  # three documents a year


def folder_bytes(folder: Path) -> dict[str, bytes]:
    skipped = {"manifest.json", "started.json", "sources.json", "log.txt", "recipe.yaml", ".parts"}
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in skipped]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def many_files(tmp_path: Path) -> dict[str, Any]:
    for i in range(3):
        write_jsonl(tmp_path / f"part-{i}.jsonl", [{**r, "id": f"{i}-{r['id']}"} for r in make_rows(9 + i)])
    return {"sources": [{"path": str(tmp_path / "part-*.jsonl")}], "split": {"test": 4}, "dedup": "off"}


def test_columns_keep_their_names_in_held_out_texts(tmp_path: Path, prepare: Prepare) -> None:
    rows = [{"id": str(i), "text": sentence(i), "_id": i, "é": None} for i in range(9)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    folder, _ = prepare([{"path": str(path)}], split={"test": 2})
    assert all(row["metadata"].keys() == {"_id", "é"} for row in held_out(folder, "test"))


def test_reruns_and_processes_do_not_change_a_byte(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many_files(tmp_path)
    first, _ = prepare(name="first", **data)
    second, _ = prepare(name="second", **data)
    monkeypatch.setattr(execution, "num_cores", lambda: 2)
    third, _ = prepare(name="third", **data)
    assert folder_bytes(first) == folder_bytes(second) == folder_bytes(third)
    assert len(TokenShards(first, "train").files) == 3


def test_an_interrupted_run_continues_to_the_same_bytes(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = many_files(tmp_path)
    whole, _ = prepare(name="whole", **data)
    original, calls = writing.WriteShards.run, []

    def interrupted(self: Any, documents: Any, rank: int = 0, world_size: int = 1) -> Any:
        calls.append(rank)
        if rank == 1 and len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, documents, rank, world_size)

    monkeypatch.setattr(writing.WriteShards, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(name="part", **data)
    part, _ = prepare(name="part", **data)
    assert calls == [0, 1, 1, 2]  # the finished task was not done again
    assert folder_bytes(part) == folder_bytes(whole)


def test_a_finished_run_is_not_repeated_and_a_changed_source_is(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(10))
    folder, results = prepare([{"path": str(path)}])
    before = (folder / "data.json").stat().st_mtime_ns
    assert prepare([{"path": str(path)}])[1] == results
    assert (folder / "data.json").stat().st_mtime_ns == before
    write_jsonl(path, make_rows(11))
    assert prepare([{"path": str(path)}])[1]["documents_read"] == 11
    assert (tmp_path / "run.old-1" / "data.json").is_file()


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path, prepare: Prepare, tokenizer_folder: Path) -> None:
    text = "say <|endoftext|> and <|im_end|>"
    folder, _ = prepare([{"path": str(write_jsonl(tmp_path / "a.jsonl", [{"text": text}]))}])
    ids = TokenShards(folder, "train").document(0)
    assert (ids[:-1] > 3).all()
    assert texts(folder, "train", tokenizer_folder) == [text]


def test_seen_in_training_tells_copied_text(tmp_path: Path, prepare: Prepare) -> None:
    shared = sentence(7, 60)
    rows = [{"id": "a", "text": sentence(1, 60)}, {"id": "b", "text": f"{shared} {sentence(2, 30)}"}]
    train = [{"id": f"t{i}", "text": f"{sentence(i, 40)}\n{shared}"} for i in range(100, 104)]
    for name, extra in (("clean", []), ("copied", train)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows[:1] + extra if extra else make_rows(6))
        _, results = prepare([{"path": str(path)}], name, split={"test": 1, "seed": 3})
        seen = results["seen_in_training"]["test"]["largest"]
        assert (seen > 0.4) if extra else (seen < 0.1)


def test_errors_in_worker_processes_arrive_as_one_line(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    (tmp_path / "b.jsonl").write_text("{broken\n")
    monkeypatch.setattr(execution, "num_cores", lambda: 2)
    with pytest.raises(InputError, match=r"b\.jsonl:1: not valid JSON"):
        prepare([{"path": str(tmp_path / "*.jsonl")}])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"split": {"test": 3}}, "holds out 3 of 3 documents"),
        (
            {"split": {"test": 1, "group": ["titel"]}},
            r"data\.split\.group: document d0 has no column 'titel'; the col",
        ),
        ({"split": {"test": 1, "stratify": "yeer"}}, r"data\.split\.stratify: document d0 has no column 'yeer'"),
        ({"filters": {"min_characters": 9999}}, "no document is left; dropped: {'too_short': 3}"),
        ({"end_of_document": "<eot>"}, r"data\.end_of_document: the tokenizer in .* has no <eot>"),
        (
            {"sources": [{"path": "x", "builtin": "sotu"}]},
            r"data\.sources\.0: needs exactly one of path, builtin, hub",
        ),
        ({"sources": [{"path": "x", "subset": "y"}]}, r"data\.sources\.0\.subset: only for a Hub dataset"),
        ({"sources": []}, r"data\.sources: is empty; give at least 1"),
        (
            {"sources": [{"path": "a.jsonl", "separator": "---"}]},
            r"data\.sources\.0\.separator: only for text files, and",
        ),
        (
            {"sources": [{"path": "a.jsonl", "one_line_rows": True}]},
            r"one_line_rows: only for csv files, and .* jsonl; rem",
        ),
        (
            {"sources": [{"path": "a.jsonl", "dataset_split": "x"}]},
            r"dataset_split: only for arrow files, and .* jsonl",
        ),
        (
            {"sources": [{"builtin": "sotu", "format": "csv"}]},
            r"data\.sources\.0\.format: only for files; set path, or",
        ),
        (
            {"sources": [{"path": "a.jsonl", "join": "x", "columns": {"text": "text"}}]},
            r"data\.sources\.0\.join: there is nothing to join",
        ),
        ({"sources": [{"path": "a.jsonl", "columns": {"text": []}}]}, r"0\.columns\.text: names no column"),
        (
            {"sources": [{"path": "a.jsonl", "columns": {"id": ["id", "year"]}}]},
            r"0\.columns\.id: only text can be joi",
        ),
        ({"tokenizer": "broken"}, r"data\.tokenizer: broken/tokenizer\.json cannot be read: .*; get it again"),
        ({"tokenizer": "/nowhere"}, r"data\.tokenizer: /nowhere does not exist; make it with"),
    ],
)
def test_mistakes_in_the_recipe_are_named(
    tmp_path: Path, prepare: Prepare, data: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{}")
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    with pytest.raises(InputError, match=message):
        prepare(**{"sources": [{"path": str(path)}], **data})


def test_a_tokenizer_made_with_other_documents_is_mentioned(
    tmp_path: Path, prepare: Prepare, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ingot"), "propagate", True)
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    prepare([{"path": str(path)}])
    assert "it may have seen held-out documents" not in caplog.text  # there are none
    prepare([{"path": str(path)}], split={"test": 1})
    assert (
        "the tokenizer's recipe has other data.sources and data.split: it may have seen held-out documents"
        in caplog.text
    )


def test_a_document_that_is_too_long_to_tokenise_is_named(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "LONGEST", 1000)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": "x" * 1001}, {"text": "last"}])
    with pytest.raises(InputError, match=r"document 0/a\.jsonl:2: it has 1,001 characters without a place to cut"):
        prepare([{"path": str(path)}])


def test_token_files_are_as_small_as_the_vocabulary_allows() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def test_a_shard_of_the_wrong_length_is_refused(tmp_path: Path, prepare: Prepare) -> None:
    folder, _ = prepare([{"path": str(write_jsonl(tmp_path / "a.jsonl", make_rows(5)))}])
    (shard,) = folder.glob("tokens/*.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"train-00000\.bin: missing or not \d+ bytes long"):
        TokenShards(folder, "train")
    with pytest.raises(InputError, match="no documents in split 'test'; it has train"):
        TokenShards(folder, "test")
    with pytest.raises(InputError, match="no token shards here"):
        TokenShards(tmp_path, "train")


def test_the_quick_start_corpus_is_held_out_from_all_eras(tmp_path: Path, one_process: None) -> None:
    recipe = load_recipe(DataRecipe, Path(__file__).parents[2] / "recipes/quickstart/prepare_data.yaml")
    chosen = select_documents(recipe.data, tmp_path)
    years = {split: [d.metadata["year"] for d in chosen.documents(split)] for split in ("train", "validation", "test")}
    assert [len(years[split]) for split in years] == [233, 4, 12]
    held_out = sorted(years["validation"] + years["test"])
    assert held_out[0] < 1810
    assert held_out[-1] > 2010
    assert max(b - a for a, b in pairwise(held_out)) <= 32


@pytest.mark.shared
@pytest.mark.parametrize(("name", "dtype"), [("qwen3", np.uint32), ("gpt2", np.uint16)])
def test_any_tokenizer_folder_will_do(tmp_path: Path, prepare: Prepare, name: str, dtype: Any) -> None:
    tokenizer_folder = Path(__file__).parents[3] / "shared/data/tokenizers" / name
    if not tokenizer_folder.is_dir():
        pytest.skip(f"{tokenizer_folder} is not there")
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(8))
    folder, _ = prepare([{"path": str(path)}], tokenizer=str(tokenizer_folder))
    shards = TokenShards(folder, "train")
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert shards.files[0].dtype == dtype
    assert shards.end_of_document == tokenizer.token_to_id("<|endoftext|>") == shards.document(0)[-1]
    assert sorted(texts(folder, "train", tokenizer_folder)) == sorted(row["text"] for row in make_rows(8))


def test_the_end_of_a_document_is_the_eos_token_of_other_tokenizers(
    tmp_path: Path, prepare: Prepare, tokenizer_folder: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(
        (tokenizer_folder / "tokenizer.json").read_text().replace("endoftext", "eos")
    )
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    with pytest.raises(
        InputError, match=r"data\.end_of_document: the tokenizer in .* has no <\|endoftext\|>; name a tok"
    ):
        prepare([{"path": str(path)}], tokenizer=str(folder))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eos|>"}}')
    made, _ = prepare([{"path": str(path)}], tokenizer=str(folder))
    assert TokenShards(made, "train").end_of_document == 0
    made, _ = prepare([{"path": str(path)}], "named", tokenizer=str(folder), end_of_document="<|im_end|>")
    assert TokenShards(made, "train").end_of_document == 2
