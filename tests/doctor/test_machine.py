"""Limits of the machine, each at both sides of its threshold."""

import resource
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ingot.doctor import machine


class Memory(NamedTuple):
    total: int
    available: int


def test_this_machine_is_looked_at_whole() -> None:
    found = {f.what: f for f in machine.machine_findings()}
    assert {"CPU cores", "memory", "open files", "file size", "clock", "g++", "ninja"} <= set(found)
    assert found["clock"].status == "ok"


def test_little_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(8 << 30, 1 << 30))
    assert machine._memory().status == "fail"


@pytest.mark.parametrize(("limit", "status"), [("3000000000", "warn"), ("9000000000", "ok"), ("max", None)])
def test_the_memory_of_a_container(
    limit: str, status: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text("2000000000\n")
    monkeypatch.setattr(machine, "CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(16 << 30, 8 << 30))
    assert [f.status for f in machine._container_memory()] == ([] if status is None else [status])


def test_a_small_shared_memory_warns_with_the_option_of_docker(tmp_path: Path) -> None:
    (few,) = machine._shared_memory(tmp_path, least=1 << 60)
    assert few.status == "warn" and "--shm-size" in few.way
    (enough,) = machine._shared_memory(tmp_path, least=1)
    assert enough.status == "ok"
    (none,) = machine._shared_memory(tmp_path / "absent")
    assert none.status == "warn"


def test_limits_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (256, 4096), resource.RLIMIT_FSIZE: (10**9, 10**9), resource.RLIMIT_AS: (-1, -1)}
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: limits[which])
    files, size = machine._limits()
    assert (files.status, files.way) == ("warn", "ulimit -n 4096")
    assert size.status == "warn" and "1.0 GB" in size.text


def test_a_clock_before_the_installation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "time", lambda: 1e9)
    assert machine._clock().status == "fail"


def test_a_quota_of_cores_below_the_cores_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_quota", lambda: 0.5)
    assert machine._cores().status == "warn"


def test_a_compiler_that_is_missing_or_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert next(iter(machine.compiler_findings())).text.startswith("no-such-compiler is not there")
    monkeypatch.setenv("CXX", "true")

    def broken(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "fatal error: vector: No such file")

    monkeypatch.setattr(machine.subprocess, "run", broken)
    assert "does not compile: fatal error: vector" in next(iter(machine.compiler_findings())).text
