"""prepare_data killed at any moment, or on a full disk, and started again: the bytes of an undisturbed run."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ingot.data.prepare_data import DataRecipe, run
from ingot.data.shards import TokenShards
from ingot.recipe import InputError, build_recipe
from ingot.runs import MANIFEST, DiskFull, verify

from .helpers import sentence, write_jsonl

FILES = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with many duplicates, large enough for a moment in which to kill."""
    folder = tmp_path_factory.mktemp("sources")
    for i in range(FILES):
        rows = [{"id": f"{i}-{k}", "text": sentence((i * 611 + k) % 4000, 40), "year": k % 50} for k in range(700)]
        write_jsonl(folder / f"part-{i}.jsonl", rows)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, sources: Path, tokenizer_folder: Path) -> Any:
    """The recipe of a run: (name, number of processes) -> recipe."""

    def recipe(name: str, workers: int = 1) -> DataRecipe:
        data = {"sources": [{"path": str(sources / "part-*.jsonl")}], "split": {"test": 4, "group": ["year"]}}
        tree = {"data": {**data, "tokenizer": str(tokenizer_folder), "keep_dropped": True}}
        return build_recipe(DataRecipe, {**tree, "run": {"dir": str(tmp_path / name), "workers": workers}})

    return recipe


def work(connection: Connection, recipe: DataRecipe, largest_file: int | None) -> None:
    os.setsid()  # so that everything it starts can be found
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        run(recipe)
        connection.send("done")
    except (InputError, DiskFull) as error:
        connection.send(str(error))


class Started:
    """The stage in a process of its own."""

    def __init__(self, recipe: DataRecipe, largest_file: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ingot.data.prepare_data", "ingot.data.writing", "ingot.data.summary"])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, recipe, largest_file))
        self.process.start()
        other.close()

    def result(self) -> str:
        """What it said at its end."""
        found = self.connection.recv()
        self.process.join()
        return str(found)

    def kill(self, after: float) -> bool:
        """Kills it after some seconds; False when it had ended before."""
        self.process.join(after)
        ended = self.process.exitcode is not None
        if not ended:
            os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        return not ended


def results(folder: Path) -> dict[str, bytes]:
    """Every file of the result."""
    skipped = {MANIFEST, "started.json", "sources.json", "log.txt", "recipe.yaml", ".parts"}
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in skipped]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The records of finished parts; a part that is made again has another."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob(".parts/*-*.json")}


def survive(recipe: Any, kills: int, seed: int, workers: int) -> tuple[int, int]:
    """Kills and restarts until it is done. Returns how often it was killed, and how many parts were kept for that."""
    whole = recipe("whole", workers)
    began = time.monotonic()
    assert Started(whole).result() == "done"
    seconds = time.monotonic() - began
    drawn, killed, kept = random.Random(seed), 0, 0
    while killed < kills:
        one = recipe(f"killed-{seed}-{killed}", workers)
        parts: dict[str, tuple[int, int]] = {}
        while Started(one).kill(drawn.uniform(0, seconds / 2)):
            killed += 1
            now = finished(one.run.dir)
            assert {name: now.get(name) for name in parts} == parts  # what was finished stays
            kept, parts = kept + len(now), now
            assert not (one.run.dir / MANIFEST).exists()
            if drawn.random() < 0.3:
                break
        assert Started(one).result() == "done"
        assert {name: finished(one.run.dir)[name] for name in parts} == parts
        assert results(one.run.dir) == results(whole.run.dir)
        assert verify(one.run.dir) is None
        assert not list(one.run.dir.rglob("*.partial"))
    return killed, kept


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_a_few_moments_it_ends_with_the_same_bytes(recipe: Any, workers: int) -> None:
    killed, _ = survive(recipe, 3, seed=workers, workers=workers)
    assert killed >= 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_many_moments_it_ends_with_the_same_bytes(recipe: Any, workers: int) -> None:
    killed, kept = survive(recipe, 20, seed=100 + workers, workers=workers)
    assert killed >= 20
    assert kept > 10


def test_a_killed_driver_takes_its_processes_along(recipe: Any) -> None:
    started = Started(recipe("run", 2))
    pid = started.process.pid or 0
    while not (children := [p for p in processes() if p[1] == pid]):
        assert started.process.exitcode is None, "ended before its processes were seen"
    os.kill(pid, signal.SIGKILL)
    started.process.join()
    until = time.monotonic() + 20
    while [p for p in processes() if p[1] in {c[0] for c in children} or p[0] in {c[0] for c in children}]:
        assert time.monotonic() < until, "a process goes on without its driver"


def processes() -> Iterator[tuple[int, int]]:
    """All processes that are no zombies: (pid, parent)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                yield int(entry.name), int(fields[1])


@pytest.mark.parametrize("limit", [3_000, 60_000])  # of the records, of a shard
def test_on_a_full_disk_it_says_so_and_goes_on_later(recipe: Any, limit: int) -> None:
    assert Started(recipe("whole")).result() == "done"
    one = recipe("run")
    said = Started(one, limit).result()
    assert "\n" not in said
    assert said.startswith(str(one.run.dir))
    assert "cannot be written: File too large (" in said and "free some space and run the same command again" in said
    assert not (one.run.dir / MANIFEST).exists()
    assert not (one.run.dir / "data.json").exists()
    with pytest.raises(InputError, match="no token shards here"):
        TokenShards(one.run.dir, "train")
    before = finished(one.run.dir)
    assert Started(one).result() == "done"
    assert {name: finished(one.run.dir)[name] for name in before} == before
    assert results(one.run.dir) == results(recipe("whole").run.dir)


def test_a_record_without_its_files_is_not_believed(recipe: Any) -> None:
    one = recipe("run")
    assert Started(one).result() == "done"
    whole = results(one.run.dir)
    (one.run.dir / MANIFEST).unlink()
    shard = one.run.dir / "tokens/train-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    (one.run.dir / ".parts/records-00001.bin").unlink()
    assert Started(one).result() == "done"
    assert results(one.run.dir) == whole
    assert json.loads((one.run.dir / MANIFEST).read_text())["results"]["splits"]["test"]["documents"] > 0
