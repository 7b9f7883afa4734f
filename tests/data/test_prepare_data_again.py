"""What is done again when something changed, counted task by task, and what is taken over from DIR.old-N."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingot import hashing, runs
from ingot.data import pipeline, writing
from ingot.data.prepare_data import DataRecipe
from ingot.data.shards import TokenShards
from ingot.recipe import InputError

from .helpers import make_rows, sentence, write_jsonl

Prepare = Callable[..., tuple[Path, dict[str, Any]]]


class Work:
    """Counts the tasks that read and judge, and those that tokenise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.judged: list[int] = []
        self.tokenised: list[int] = []
        for step, noted in ((pipeline.RecordDocuments, self.judged), (writing.WriteShards, self.tokenised)):
            self._count(monkeypatch, step, noted)

    @staticmethod
    def _count(monkeypatch: pytest.MonkeyPatch, step: Any, noted: list[int]) -> None:
        original = step.run

        def run(self: Any, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            noted.append(rank)
            return original(self, data, rank, world_size)

        monkeypatch.setattr(step, "run", run)

    def take(self) -> tuple[list[int], list[int]]:
        """The ranks since the last call: judged, tokenised."""
        found = sorted(self.judged), sorted(self.tokenised)
        self.judged.clear()
        self.tokenised.clear()
        return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four files; no text comes twice."""
    for i in range(4):
        rows = [{"id": f"{i}-{k}", "text": sentence(100 * i + k, 8)} for k in range(6)]
        write_jsonl(tmp_path / f"part-{i}.jsonl", rows)
    return tmp_path


def recipe(corpus: Path, **data: Any) -> dict[str, Any]:
    return {"sources": [{"path": str(corpus / "part-*.jsonl")}], "split": {"test": 0.2}, **data}


def rewrite(path: Path, extra: str) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [*rows, {"id": "new", "text": extra}])


def same_as_afresh(prepare: Prepare, folder: Path, data: dict[str, Any]) -> None:
    afresh, _ = prepare(name="afresh", **data)
    for path in [p for p in afresh.rglob("*") if p.parent.name == "tokens" or p.name == "test.jsonl"]:
        if ".parts" not in path.parts:
            assert (folder / path.relative_to(afresh)).read_bytes() == path.read_bytes(), path


def test_a_changed_tokenizer_tokenises_again_but_judges_nothing(
    prepare: Prepare, corpus: Path, work: Work, tokenizer_folder: Path, tmp_path: Path
) -> None:
    prepare(**recipe(corpus))
    assert work.take() == ([0, 1, 2, 3], [0, 1, 2, 3])
    other = tmp_path / "other"
    other.mkdir()
    tree = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:20]
    (other / "tokenizer.json").write_text(json.dumps(tree))
    folder, _ = prepare(**recipe(corpus), tokenizer=str(other))
    assert work.take() == ([], [0, 1, 2, 3])
    same_as_afresh(prepare, folder, {**recipe(corpus), "tokenizer": str(other)})


def test_a_changed_source_does_its_own_task_again(prepare: Prepare, corpus: Path, work: Work) -> None:
    folder, _ = prepare(**recipe(corpus))
    before = os.stat(folder / "tokens/train-00000.bin").st_ino
    work.take()
    rewrite(corpus / "part-2.jsonl", sentence(999, 9))
    prepare(**recipe(corpus))
    assert work.take() == ([2], [2])
    assert os.stat(folder / "tokens/train-00000.bin").st_ino == before  # a link, not a copy
    same_as_afresh(prepare, folder, recipe(corpus))


def test_a_changed_source_also_does_tasks_whose_decisions_change(prepare: Prepare, corpus: Path, work: Work) -> None:
    folder, _ = prepare(**recipe(corpus))
    work.take()
    rewrite(corpus / "part-1.jsonl", sentence(300, 8).upper())  # now part 3's first text is a duplicate
    prepare(**recipe(corpus))
    assert work.take() == ([1], [1, 3])
    same_as_afresh(prepare, folder, recipe(corpus))


def test_an_added_file_moves_the_others_by_a_number(prepare: Prepare, corpus: Path, work: Work) -> None:
    folder, _ = prepare(**recipe(corpus))
    work.take()
    write_jsonl(corpus / "part-.jsonl", [{"id": "first", "text": sentence(777, 9)}])
    prepare(**recipe(corpus))
    assert work.take() == ([0], [0])
    assert [s["name"] for s in TokenShards(folder, "train").description["splits"]["train"]["shards"]] == [
        f"train-{i:05d}" for i in range(5)
    ]
    same_as_afresh(prepare, folder, recipe(corpus))


def test_a_changed_split_judges_nothing_and_writes_what_changed(prepare: Prepare, corpus: Path, work: Work) -> None:
    folder, _ = prepare(**recipe(corpus, split={"test": 1}))
    work.take()
    prepare(**recipe(corpus, split={"test": 2}))
    judged, tokenised = work.take()
    assert judged == []
    assert len(tokenised) == 1  # the file with the second held-out document
    same_as_afresh(prepare, folder, recipe(corpus, split={"test": 2}))


def test_one_pass_is_enough_where_documents_do_not_depend_on_each_other(
    prepare: Prepare, corpus: Path, work: Work
) -> None:
    folder, results = prepare(**recipe(corpus, dedup="off"))
    assert work.take() == ([], [0, 1, 2, 3])
    twice, again = prepare(**recipe(corpus), name="twice")  # there are no duplicates
    assert again == results
    for path in sorted((folder / "tokens").iterdir()):
        assert (twice / "tokens" / path.name).read_bytes() == path.read_bytes()


def test_how_it_runs_changes_nothing(prepare: Prepare, corpus: Path, work: Work, tokenizer_folder: Path) -> None:
    from ingot.data.prepare_data import run
    from ingot.recipe import build_recipe

    folder, results = prepare(**recipe(corpus))
    work.take()
    tree = {"data": {**recipe(corpus), "tokenizer": str(tokenizer_folder)}}
    assert run(build_recipe(DataRecipe, {**tree, "run": {"dir": str(folder), "workers": 2}})) == results
    assert work.take() == ([], [])


def test_sources_are_hashed_once(prepare: Prepare, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in corpus.glob("part-*.jsonl"):
        os.utime(path, (1, 1))
    hashed: list[str] = []
    original = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda path: (hashed.append(path.name), original(path))[1])
    prepare(**recipe(corpus))
    sources = [name for name in hashed if name.startswith("part-")]
    assert sorted(sources) == [f"part-{i}.jsonl" for i in range(4)]
    hashed.clear()
    rewrite(corpus / "part-2.jsonl", sentence(999, 9))
    os.utime(corpus / "part-2.jsonl", (2, 2))
    folder, _ = prepare(**recipe(corpus))
    assert [name for name in hashed if name.startswith("part-")] == ["part-2.jsonl"]  # the others from DIR.old-1
    found = json.loads((folder / "data.json").read_text())["sources"]
    assert [row["sha256"] for row in found] == [original(Path(row["name"])) for row in found]


def test_a_source_that_changes_while_it_is_read_is_noticed(
    prepare: Prepare, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = writing.WriteShards.run

    def run(self: Any, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        yield from original(self, data, rank, world_size)
        text = (corpus / "part-0.jsonl").read_text()
        (corpus / "part-0.jsonl").write_text(text.replace("the", "teh").replace("river", "rivet"))

    monkeypatch.setattr(writing.WriteShards, "run", run)
    with pytest.raises(InputError, match=r"part-0\.jsonl: changed while it was read; run the stage again"):
        prepare(**recipe(corpus))


def test_a_flipped_byte_in_a_shard_is_found_and_made_again(prepare: Prepare, corpus: Path, work: Work) -> None:
    folder, results = prepare(**recipe(corpus))
    assert runs.verify(folder) is None
    shard = folder / "tokens/train-00002.bin"
    whole = shard.read_bytes()
    status = shard.stat()
    shard.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))  # as when a disk goes bad
    assert str(runs.verify(folder)) == f"{shard} is not as it was written (its sha256 is another)"
    work.take()
    assert prepare(**recipe(corpus))[1] == results
    assert work.take() == ([], [2])
    assert shard.read_bytes() == whole
    assert runs.verify(folder) is None


def test_large_results_are_believed_while_older_than_their_manifest(
    prepare: Prepare, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = prepare(**recipe(corpus))
    monkeypatch.setattr(hashing, "TRUSTED", 0)
    hashed: list[str] = []
    original = hashing.sha256_file
    monkeypatch.setattr(hashing, "sha256_file", lambda path: (hashed.append(path.name), original(path))[1])
    prepare(**recipe(corpus))
    assert not [name for name in hashed if name.endswith(".bin")]
    os.utime(folder / "tokens/train-00001.bin")
    prepare(**recipe(corpus))
    assert [name for name in hashed if name.endswith(".bin")] == ["train-00001.bin"]


def test_every_source_is_in_the_description(tmp_path: Path, prepare: Prepare) -> None:
    for name, size in (("a", 3), ("b", 5)):
        write_jsonl(tmp_path / f"{name}.jsonl", [*make_rows(size), {"id": "x", "text": ""}])
    folder, results = prepare([{"path": str(tmp_path / "*.jsonl")}])
    found = json.loads((folder / "data.json").read_text())
    assert [(row["documents"], row["dropped"]) for row in found["sources"]] == [
        (4, {"empty": 1}), (6, {"empty": 1, "duplicate": 3}),
    ]  # fmt: skip
    assert [row["bytes"] for row in found["sources"]] == [(tmp_path / f"{n}.jsonl").stat().st_size for n in "ab"]
    assert results["num_sources"] == 2
    assert found["versions"]["tokenizers"]
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    for path in (folder / "tokens").iterdir():
        assert manifest[f"tokens/{path.name}"] == runs.describe_file(path)
