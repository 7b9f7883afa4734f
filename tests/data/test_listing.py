"""Which files a path names: none is passed over in silence."""

import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from ingot.data import listing
from ingot.data.listing import find_files
from ingot.data.sources import Source, list_units
from ingot.recipe import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("corpus/a.txt", "corpus/sub/b.txt", "disk2/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(path: str) -> list[str]:
    return [file.path for file in find_files(path, "train", None, "data.sources.0")]


def test_links_to_folders_and_files_are_followed(folder: Path) -> None:
    (folder / "corpus/more").symlink_to(folder / "disk2")
    (folder / "corpus/d.txt").symlink_to(folder / "disk2/c.txt")
    assert found("corpus") == ["corpus/a.txt", "corpus/d.txt", "corpus/more/c.txt", "corpus/sub/b.txt"]
    assert sorted(found("corpus/**/*.txt")) == found("corpus")


def test_a_link_to_a_folder_around_it_is_left_out(folder: Path) -> None:
    (folder / "corpus/sub/up").symlink_to(folder / "corpus")
    assert found("corpus") == ["corpus/a.txt", "corpus/sub/b.txt"]


@pytest.mark.parametrize("path", ["corpus", "corpus/**", "corpus/**/*.txt", "corpus/*/*.txt", "corpus/*/b.txt"])
def test_a_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    closed, scandir, access = Path("corpus/sub"), os.scandir, os.access

    def refuse(place: Any = ".") -> Any:
        if Path(place) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    monkeypatch.setattr(listing.os, "access", lambda place, mode: Path(place) != closed and access(place, mode))
    with pytest.raises(InputError, match=r"corpus/sub: cannot be read: Permission denied; allow it, or leave it out"):
        found(path)


def test_a_name_with_the_signs_of_a_glob_is_a_name(folder: Path) -> None:
    (folder / "corpus/[2023] x*.txt").write_text("x")
    assert found("corpus/[2023] x*.txt") == ["corpus/[2023] x*.txt"]


def test_no_path_is_not_this_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: is empty; name a file"):
        found("")


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.jsonl.xz", "a.zip"])
def test_other_compression_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    for format in (None, "jsonl"):
        with pytest.raises(InputError, match=rf"{name}: \.\w+ is not read; unpack it, or pack it as \.zst or \.gz"):
            list_units([Source.model_validate({"path": name, "format": format})])


@pytest.fixture
def saved(folder: Path) -> Path:
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    data.save_to_disk(str(folder / "one"), num_shards=2)
    datasets.DatasetDict({"train": data}).save_to_disk(str(folder / "many"))
    return folder


def test_a_saved_dataset_is_what_its_state_lists(saved: Path) -> None:
    shutil.copy("one/data-00000-of-00002.arrow", "one/cache-1234.arrow")  # as Dataset.map leaves it there
    files = [f"one/data-0000{i}-of-00002.arrow" for i in (0, 1)]
    assert found("one") == files
    Path(files[1]).unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow: cannot be read: No such file"):
        found("one")


def test_saved_datasets_that_cannot_be_read(saved: Path) -> None:
    with pytest.raises(InputError, match=r"0\.dataset_split: one was saved without splits; remove dataset_split"):
        find_files("one", "test", None, "data.sources.0")
    Path("one/state.json").write_text("{}")
    with pytest.raises(InputError, match=r"one/state\.json: lists no arrow files; save the dataset again"):
        found("one")
    Path("many/train/state.json").unlink()
    with pytest.raises(InputError, match=r"many/train/state\.json: missing, and it lists the files"):
        found("many")
