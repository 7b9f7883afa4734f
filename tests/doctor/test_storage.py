"""The folder of the runs: room, permission, speed; nothing of the probe stays."""

import errno
from collections import namedtuple
from pathlib import Path

import pytest

from ingot.doctor import storage

Usage = namedtuple("Usage", "total used free")


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    found = list(storage.folder_findings(tmp_path / "runs/not/yet"))
    assert found[1].status in ("ok", "warn") and "written, synced and renamed" in found[1].text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "status"), [(1 << 20, "fail"), (5 << 30, "warn"), (1 << 40, "ok")])
def test_free_space(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: Usage(1 << 41, 0, free))
    monkeypatch.setattr(storage, "filesystem", lambda path: "ext4")
    assert storage._space("runs", tmp_path).status == status


def test_a_folder_in_memory_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "filesystem", lambda path: "tmpfs")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: Usage(1 << 41, 0, 1 << 40))
    assert "gone after a restart" in storage._space("runs", tmp_path).text


def test_the_kind_of_a_file_system() -> None:
    assert storage.filesystem(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_fails(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def refuse(path: Path, size: int) -> float:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage, "_seconds_to_write", refuse)
    finding = list(storage.folder_findings(tmp_path))[1]
    assert finding.status == "fail" and os.strerror(code) in finding.text and "--run.dir" in finding.way


def test_a_slow_disk_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, size: int) -> float:
        path.write_bytes(b"")
        return 1.5

    monkeypatch.setattr(storage, "_seconds_to_write", slow)
    finding = storage._written("runs", tmp_path)
    assert finding.status == "warn" and "1500.0 ms" in finding.text


def test_a_hub_cache_that_cannot_be_written_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    assert storage._hub_cache().status == "ok"
    monkeypatch.setattr(constants, "HF_HOME", "/proc/self")
    assert storage._hub_cache().way.startswith("export HF_HOME=")
