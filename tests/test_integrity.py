"""What was written is compared before it is used; what a user changed on purpose is accepted by one command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest

from ingot import files
from ingot.cli import command
from ingot.files import damage, describe_file, read_checksums, sha256_file, write_checksums, write_json
from ingot.integrity import accept, check_files, check_inputs_unchanged
from ingot.recipe import FilePath, InputError, Recipe, RunSection, Section, StageFolder, build_recipe
from ingot.runs import open_run


class Data(Section):
    """What the stage reads."""

    shards: Annotated[FilePath, StageFolder("prepare_data")]


class TrainRecipe(Recipe, stage="train"):
    """Stands for a stage that reads another's result."""

    data: Data
    run: RunSection


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a model and an adapter in it, whose model has checksums as an export's has."""
    folder = tmp_path / "export"
    for name, text in (("model/config.json", "{}"), ("model/model.safetensors", "w"), ("adapter/x.safetensors", "a"),
                       ("model/README.md", "card"), ("report.md", "r")):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_checksums(folder / "model", ("README.md",))
    listed = {str(p.relative_to(folder)): describe_file(p) for p in folder.rglob("*") if p.is_file()}
    write_json(folder / "manifest.json", {"stage": "export", "files": listed, "results": {}, "seconds": 1})
    return folder


def hub(run: Path) -> Path:
    """The exported model, copied elsewhere."""
    return Path(shutil.copytree(run / "model", run.parent / "copy"))


EDITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not as it was written .*sha256"),
    "longer": (lambda f: (f / "config.json").write_text("{ }"), r"config\.json is not as it was .*3 bytes, not 2"),
    "gone": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "shard": (lambda f: (f / "model-2.safetensors").touch(), r"model-2\.safetensors was not there"),
    "pickle": (lambda f: (f / "pytorch_model.bin").touch(), r"pytorch_model\.bin was not there"),
    "code": (lambda f: (f / "x.py").touch(), r"x\.py was not there"),
    "adapter": (lambda f: (f / "adapter_config.json").touch(), r"adapter_config\.json was not there"),
}


@pytest.mark.parametrize("where", ["run", "copy"])
@pytest.mark.parametrize("edit", EDITS)
def test_a_change_is_named_with_the_way_out(edit: str, where: str, run: Path) -> None:
    folder = run / "model" if where == "run" else hub(run)
    check_files(folder)
    change, message = EDITS[edit]
    change(folder)
    owner = run if where == "run" else folder
    with pytest.raises(InputError, match=rf"^{folder}/{message}.*; restore it, .*ingot verify --accept {owner}$"):
        check_files(folder)


def test_an_accepted_change_loads_again_and_later_stages_see_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "manifest.json").read_text())["files"]
    (run / "model/config.json").write_text("[]")
    (run / "model/x.py").touch()
    command(["verify", "--accept", str(run / "model")])
    said = capsys.readouterr().out
    assert "model/config.json: sha256" in said and "model/x.py: new" in said and "model/checksums.json: sha256" in said
    after = json.loads((run / "manifest.json").read_text())["files"]
    assert after["model/config.json"] != before["model/config.json"] and "model/x.py" in after
    check_files(run / "model")
    check_files(hub(run))
    command(["verify", str(run), str(run.parent / "copy")])
    assert capsys.readouterr().out.count("every file is as it was written") == 2


def test_the_card_may_be_edited_in_a_copy(run: Path) -> None:
    folder = hub(run)
    (folder / "README.md").write_text("mine")
    check_files(folder)
    assert "README.md" not in read_checksums(folder / "checksums.json")


def test_verify_names_every_changed_file(run: Path) -> None:
    (run / "model/config.json").write_text("[]")
    (run / "report.md").unlink()
    with pytest.raises(InputError, match=r"report\.md is missing") as caught:
        command(["verify", str(run)])
    assert "config.json" in str(caught.value) and str(caught.value).endswith(f"ingot verify --accept {run}")


def test_a_folder_without_a_record_gets_one_when_asked(run: Path, tmp_path: Path) -> None:
    folder = hub(run)
    (folder / "checksums.json").unlink()
    with pytest.raises(
        InputError, match=r"nothing to compare with; record it as it is now with: ingot verify --accept"
    ):
        command(["verify", str(folder)])
    assert accept(folder) == ["checksums.json: new, 2 files recorded"]
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not as it was written"):
        check_files(folder)
    with pytest.raises(InputError, match="nothing here to record"):
        accept(tmp_path)


def test_a_damaged_record_is_named_and_can_be_written_anew(run: Path) -> None:
    folder = hub(run)
    for text in ("{}", "[]", "{", '{"../x": {"bytes": 1, "sha256": ""}}', '{"x": 1}', '{"x": {"bytes": "1"}}'):
        (folder / "checksums.json").write_text(text)
        with pytest.raises(InputError, match=rf"^{folder}/checksums\.json: "):
            check_files(folder)
        assert str(folder / "checksums.json") in str(damage(folder))
    assert accept(folder) == ["checksums.json: it was damaged, written anew"]
    check_files(folder)
    (run / "manifest.json").write_text('{"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}')
    with pytest.raises(InputError, match=r"manifest\.json: not a list of files"):
        check_files(run / "model")


def test_the_model_of_an_unfinished_run_is_for_that_run_alone(run: Path) -> None:
    (run / "manifest.json").rename(run / "started.json")
    with pytest.raises(InputError, match="its run is not finished"):
        check_files(run / "model")
    check_files(run / "model", unfinished=True)


def test_without_weights_the_large_files_are_not_read(run: Path) -> None:
    (run / "model/model.safetensors").write_text("v")
    check_files(run / "model", weights=False)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        check_files(run / "model")


def test_a_stage_refuses_inputs_that_changed_since_they_were_written(run: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / "tokens").mkdir(parents=True)
    (shards / "tokens/train.bin").write_bytes(b"1234")
    listed = {"tokens/train.bin": describe_file(shards / "tokens/train.bin")}
    write_json(shards / "manifest.json", {"stage": "prepare_data", "files": listed})
    recipe = build_recipe(TrainRecipe, {"data": {"shards": str(shards)}, "run": {"dir": str(tmp_path / "train")}})
    check_inputs_unchanged(recipe)
    (shards / "tokens/train.bin").write_bytes(b"1235")
    with pytest.raises(InputError, match=r"data\.shards: .*train\.bin is not as it was written.*verify --accept"), \
            open_run(recipe):  # fmt: skip
        pass


def test_large_files_are_read_once_while_they_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setattr(files, "SETTLED", 0.0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = sha256_file(file)
    reads: list[str] = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *a: reads.append("read") or digest(*a))
    assert sha256_file(file) == first and not reads
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").replace(file)
    assert sha256_file(file) != first and reads
