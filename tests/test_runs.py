"""The run folder: opened, finished, continued or set aside; files whole or absent; exit codes."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from ingot import runs
from ingot.recipe import FilePath, InputError, Recipe, RunSection, Section, StageFolder, build_recipe
from ingot.runs import is_complete, open_run, read_json, sha256_file, write_json, write_text


class ToyData(Section):
    """Toy data."""

    shards: Annotated[FilePath, StageFolder("prepare_data")] = Field(description="shards")
    others: dict[str, Annotated[FilePath, StageFolder("pretrain", "sft", hub=True)]] = {}
    file: FilePath | None = None
    size: int = 1


class ToyRun(RunSection):
    """Where, and one more key."""

    note: str = ""


class ToyRecipe(Recipe, stage="toy"):
    """A toy."""

    data: ToyData
    run: ToyRun

    def source_files(self) -> Iterator[Path]:
        if self.data.file is not None:
            yield self.data.file


Make = Callable[..., ToyRecipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A recipe on a finished prepare_data folder: (run.note, further keys of `data`) -> recipe."""
    finished(tmp_path / "shards", "prepare_data", {"data.bin": "0123"})

    def make(note: str = "", **data: Any) -> ToyRecipe:
        tree = {"data": {"shards": str(tmp_path / "shards"), **data}, "run": {"dir": str(tmp_path / "toy")}}
        tree["run"] |= {"note": note} if note else {}
        return build_recipe(ToyRecipe, tree)

    return make


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What was logged."""
    logging.getLogger("ingot").addHandler(caplog.handler)
    yield lambda: caplog.text
    logging.getLogger("ingot").removeHandler(caplog.handler)


def finished(folder: Path, stage: str, files: dict[str, str]) -> Path:
    """A run folder as a finished stage leaves it."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    record = {name: runs.describe_file(folder / name) for name in files}
    write_json(folder / "manifest.json", {"stage": stage, "files": record, "results": {}, "seconds": 1.0})
    return folder


def run_toy(recipe: ToyRecipe, result: float = 1.0) -> dict[str, Any]:
    """A stage that writes one file, as every stage does it."""
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        write_text(folder.path / "out.txt", f"{result}")
        return folder.finish({"result": result})


def test_a_fresh_run_leaves_recipe_manifest_and_log(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    assert not is_complete(make())
    (tmp_path / "corpus.txt").write_text("x")
    assert run_toy(make(file=str(tmp_path / "corpus.txt"), size=7)) == {"result": 1.0}
    assert "size: 7" in (folder / "recipe.yaml").read_text()
    manifest = read_json(folder / "manifest.json")
    assert manifest["stage"] == "toy" and manifest["results"] == {"result": 1.0} and manifest["seconds"] >= 0
    assert manifest["recipe"]["data"]["size"] == 7 and "dir" not in manifest["recipe"]["run"]
    assert list(manifest["inputs"]) == ["data.shards"] and len(manifest["sources"]) == 64
    assert manifest["versions"].keys() >= {"python", "torch", "transformers"}
    expected = {name: runs.describe_file(folder / name) for name in ("out.txt", "recipe.yaml")}
    assert manifest["files"] == expected and manifest["files"]["out.txt"]["bytes"] == 3
    assert "toy: done in" in (folder / "log.txt").read_text()


def test_a_finished_run_is_left_alone_until_something_changes(make: Make, lines: Callable[[], str]) -> None:
    run_toy(make())
    assert is_complete(make()) and run_toy(make(), 2.0) == {"result": 1.0}
    assert "complete and unchanged, nothing to do" in lines()
    assert not is_complete(make(size=2)) and not is_complete(make("a note"))


def test_a_missing_result_file_makes_it_run_again(make: Make, tmp_path: Path) -> None:
    run_toy(make())
    (tmp_path / "toy/out.txt").unlink()
    assert not is_complete(make())
    assert run_toy(make(), 2.0) == {"result": 2.0} and is_complete(make())


def test_redoing_a_finished_run_is_unfinished_until_its_end(make: Make, tmp_path: Path) -> None:
    run_toy(make())
    (tmp_path / "toy/out.txt").unlink()
    with pytest.raises(KeyboardInterrupt), open_run(make()) as folder:
        write_text(folder.path / "out.txt", "0.0")  # of the same size
        raise KeyboardInterrupt
    assert not is_complete(make())


def test_an_interrupted_run_continues_and_adds_up_its_time(
    make: Make, tmp_path: Path, lines: Callable[[], str]
) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(make()) as folder:
        (folder.path / "half.txt").write_text("half")
        folder.started -= 100
        raise KeyboardInterrupt
    assert not is_complete(make())
    with open_run(make()) as folder:
        assert not folder.complete and (folder.path / "half.txt").is_file()
        folder.finish({})
    assert "continuing" in lines()
    assert 100 <= folder.seconds < 110
    assert not list(tmp_path.glob("toy.old-*"))


def test_a_folder_of_another_recipe_is_kept_under_another_name(
    make: Make, tmp_path: Path, lines: Callable[[], str]
) -> None:
    run_toy(make())
    run_toy(make(size=2), 2.0)
    run_toy(make(size=3), 3.0)
    assert "data.size: 1 -> 2" in lines() and "data.size: 2 -> 3" in lines()
    for name, result in {"toy.old-1": 1.0, "toy.old-2": 2.0, "toy": 3.0}.items():
        assert read_json(tmp_path / name / "manifest.json")["results"] == {"result": result}


def test_changed_inputs_make_it_run_again(make: Make, tmp_path: Path, lines: Callable[[], str]) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    recipe = make(file=str(tmp_path / "corpus.txt"))
    run_toy(recipe)
    (tmp_path / "corpus.txt").write_text("y")
    assert not is_complete(recipe)
    run_toy(recipe)
    assert "sources changed" in lines()
    finished(tmp_path / "shards", "prepare_data", {"data.bin": "4567"})
    assert not is_complete(recipe)
    run_toy(recipe)
    assert "inputs.data.shards changed" in lines()


def test_where_an_input_lies_does_not_matter(make: Make, tmp_path: Path) -> None:
    run_toy(make())
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert is_complete(make(shards=str(tmp_path / "moved")))


def test_a_record_of_an_earlier_version_is_of_the_same_run(make: Make, tmp_path: Path) -> None:
    run_toy(make())
    manifest = read_json(tmp_path / "toy/manifest.json")
    del manifest["recipe"]["data"]["size"]
    write_json(tmp_path / "toy/manifest.json", manifest)
    assert is_complete(make()) and run_toy(make(), 2.0) == {"result": 1.0}
    assert not is_complete(make(size=2))


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {".hidden": ""}])
def test_a_folder_of_the_users_is_refused(make: Make, tmp_path: Path, content: dict[str, str]) -> None:
    (tmp_path / "toy").mkdir()
    for name, text in content.items():
        (tmp_path / "toy" / name).write_text(text)
    with pytest.raises(InputError, match=r"run\.dir: .*toy holds files that no stage of Ingot wrote"):
        run_toy(make())
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == sorted(content)


def test_a_file_in_the_place_of_the_folder_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("")
    with pytest.raises(InputError, match=r"run\.dir: .*toy is a file"):
        run_toy(make())


def test_every_missing_input_is_named_with_the_command_that_makes_it(make: Make, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half/started.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    others = {name: str(tmp_path / folder) for name, folder in (("a", "half"), ("b", "empty"), ("c", "sft"))}
    with pytest.raises(InputError) as caught:
        run_toy(make(shards=str(tmp_path / "gone"), others=others))
    gone, half, empty, sft = str(caught.value).split("\n")
    assert gone == (
        f"data.shards: {tmp_path / 'gone'} does not exist; make it with: ingot prepare_data "
        f"--config recipes/quickstart/prepare_data.yaml --run.dir {tmp_path / 'gone'}"
    )
    assert half.startswith(f"data.others.a: {tmp_path / 'half'} is not finished; make it with: ingot pretrain ")
    assert f"{tmp_path / 'empty'} is not an output of pretrain" in empty
    assert "data.others.c" in sft and "ingot sft --config" in sft
    assert not (tmp_path / "toy").exists()


def test_an_input_of_the_wrong_stage_is_refused(make: Make, tmp_path: Path) -> None:
    finished(tmp_path / "wrong", "train_tokenizer", {"tokenizer.json": "{}"})
    with pytest.raises(
        InputError, match=r"data\.shards: .*wrong is an output of train_tokenizer, not of prepare_data"
    ):
        run_toy(make(shards=str(tmp_path / "wrong")))


def test_no_process_waits_for_one_that_misses_an_input(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    monkeypatch.setattr(accelerate, "PartialState", lambda: pytest.fail("waits for the others"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(InputError, match=r"data\.shards: .*gone does not exist"):
            run_toy(make(shards=str(tmp_path / "gone")))


def test_a_hub_folder_is_an_input_where_the_key_allows_it(make: Make, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}")
    run_toy(make(others={"hub": str(tmp_path / "hub")}))
    (tmp_path / "hub/config.json").write_text('{"a": 1}')
    assert not is_complete(make(others={"hub": str(tmp_path / "hub")}))


def test_damage_names_the_first_bad_file(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    weights, state = folder / "inner/weights.bin", folder / "state.json"
    weights.write_bytes(bytes(range(100)))
    state.write_text("{}")
    assert runs.damage(folder) == f"{folder / 'checksums.json'} is missing"
    runs.write_checksums(folder)
    assert runs.damage(folder) is None
    flipped = bytearray(weights.read_bytes())
    flipped[50] ^= 1
    for content in (bytes(flipped), bytes(range(99)), b""):
        weights.write_bytes(content)
        assert (runs.damage(folder) or "").startswith(f"{weights} is not as it was written")
    weights.unlink()
    assert runs.damage(folder) == f"{weights} is missing"


def test_unreadable_checksums_are_damage(tmp_path: Path) -> None:
    (tmp_path / "checksums.json").write_text('{"a": ')
    assert "checksums.json" in (runs.damage(tmp_path) or "")


def test_a_failed_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é"\n}\n'
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", float("nan"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON"):
        read_json(tmp_path / "a.json")


def test_model_folder_finds_the_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model here \(no config\.json, no model/config\.json\)"):
        runs.model_folder(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    assert runs.model_folder(tmp_path) == runs.model_folder(tmp_path / "model") == tmp_path / "model"


def test_progress_yields_everything_and_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], str]
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
    assert list(runs.progress(range(5), total=5, desc="reading")) == [0, 1, 2, 3, 4]
    assert re.findall(r"reading: \d of 5", lines()) == ["reading: 1 of 5", "reading: 3 of 5"]


def test_only_the_main_process_speaks_and_writes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not runs.is_main_process()
    with open_run(make()) as folder:
        folder.finish({"result": 1.0})
    assert not (tmp_path / "toy").exists()


def test_checksums_and_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == expected
    runs.write_checksums(tmp_path)
    assert json.loads((tmp_path / "checksums.json").read_text()) == {"a": {"bytes": 3, "sha256": expected}}


def test_an_input_that_lost_a_file_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "shards/data.bin").write_text("012")
    with pytest.raises(InputError, match=r"data\.shards: .*data\.bin is gone or changed in size"):
        runs.check_inputs(make())


def test_a_model_that_is_not_finished_is_refused(make: Make, tmp_path: Path) -> None:
    model = tmp_path / "pretrain"
    model.mkdir()
    (model / "config.json").write_text("{}")
    runs.check_inputs(make(others={"base": str(model)}))  # a folder of the Hub
    write_json(model / "started.json", {"stage": "pretrain"})
    with pytest.raises(InputError, match=r"data\.others\.base: .* is not finished"):
        runs.check_inputs(make(others={"base": str(model)}))


@pytest.mark.parametrize("place", ["shards", "shards/inside", "."])
def test_a_run_folder_and_its_input_lie_apart(make: Make, tmp_path: Path, place: str) -> None:
    recipe = make()
    recipe.run.dir = tmp_path / place
    with pytest.raises(InputError, match=r"run\.dir: .* lie in each other"), runs.open_run(recipe):
        pass
    assert (tmp_path / "shards/data.bin").is_file()


@pytest.mark.parametrize("text", ["{}", "[]", '{"stage": 1, "files": {}}'])
def test_a_record_that_is_none_is_named(make: Make, text: str) -> None:
    recipe = make()
    run_toy(recipe)
    (recipe.run.dir / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: not a record that Ingot wrote"), runs.open_run(recipe):
        pass


def test_a_result_with_a_flipped_byte_is_made_again(make: Make) -> None:
    recipe = make()
    run_toy(recipe)
    result = next(p for p in recipe.run.dir.iterdir() if p.suffix == ".txt" and p.name != "log.txt")
    result.write_text("x" * len(result.read_text()))
    assert not runs.is_complete(recipe)
    with runs.open_run(recipe) as folder:
        assert not folder.complete
