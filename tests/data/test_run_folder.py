"""The folder of a run: of one command at a time, writable, and no part of the sources."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.alone import WORKING, check_alone
from ingot.data.run_folder import naming_unwritable
from ingot.recipe import InputError

from .helpers import make_rows, write_jsonl

Prepare = Callable[..., tuple[Path, dict[str, Any]]]

HOLD = """
import sys, pathlib
from ingot.alone import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
CHECK = "import sys, pathlib; from ingot.alone import check_alone; check_alone(pathlib.Path(sys.argv[1]))"


def test_a_second_command_is_refused_until_the_first_has_ended(tmp_path: Path, prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(4))
    folder, _ = prepare([{"path": str(path)}])
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    write_jsonl(path, make_rows(5))
    with pytest.raises(InputError, match=rf"run\.dir: process {other.pid} on .* works in .*run; wait until it ends"):
        prepare([{"path": str(path)}])
    assert not folder.with_name("run.old-1").exists()  # it is still the first command's folder
    other.kill()
    other.communicate()
    assert prepare([{"path": str(path)}])[1]["splits"]["train"]["documents"] == 5
    assert not (folder / WORKING).exists()


def test_the_folder_that_takes_the_place_of_another_is_protected_too(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(4))
    prepare([{"path": str(path)}])
    write_jsonl(path, make_rows(5))
    seen = []

    def look(*_: Any) -> None:
        found = subprocess.run([sys.executable, "-c", CHECK, str(tmp_path / "run")], capture_output=True, text=True)
        assert f"process {os.getpid()} on" in found.stderr and found.returncode
        seen.append(True)

    monkeypatch.setattr("ingot.data.prepare_data._warn_of_other_documents", look)
    prepare([{"path": str(path)}])
    assert seen and (tmp_path / "run.old-1").is_dir()


def test_looking_at_a_folder_leaves_nothing_there(tmp_path: Path) -> None:
    check_alone(tmp_path)
    check_alone(tmp_path / "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "run", "refused"),
    [
        ("corpus", "corpus/out", True),
        ("corpus/**/*.jsonl", "corpus/deep/out", True),
        ("corpus/*/*.jsonl", "corpus/out", True),
        ("corpus/*.jsonl", "corpus/out", False),
        ("corpus", "corpus/.out", False),
        ("corpus", "corpus2", False),
        ("corpus/a.jsonl", "out", False),
    ],
)
def test_a_run_does_not_read_what_it_writes(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, path: str, run: str, refused: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("corpus/a.jsonl", "corpus/b/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write_jsonl(tmp_path / name, make_rows(3))
    if not refused:
        prepare([{"path": path}], run)
        return
    with pytest.raises(InputError, match=r"run\.dir: .*out lies where data\.sources\.0\.path reads"):
        prepare([{"path": path}], run)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    with pytest.raises(InputError, match=r"run\.dir: .*a\.jsonl/run cannot be written: Not a directory .*; choose"):
        prepare([{"path": str(path)}], "a.jsonl/run")


def test_only_errors_of_the_run_folder_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: Permission denied"), naming_unwritable(tmp_path):
        raise PermissionError(13, "Permission denied", str(tmp_path / "tokens"))
    with pytest.raises(FileNotFoundError), naming_unwritable(tmp_path):
        raise FileNotFoundError(2, "No such file", str(tmp_path / "tokens"))
    with pytest.raises(PermissionError), naming_unwritable(tmp_path):
        raise PermissionError(13, "Permission denied", "/elsewhere")
