"""torch's build against the driver, and GPUs as nvidia-smi tells of them; no GPU is needed."""

import os
from pathlib import Path
from typing import Any

import pytest

from ingot.doctor import gpus

CPU = {"torch": "2.13.0+cpu", "cuda": None, "hip": None, "mps": False, "available": False, "problem": None, "gpus": []}
CUDA = {**CPU, "torch": "2.13.0", "cuda": "13.0", "problem": "CUDA driver initialization failed"}
H200 = {
    "name": "NVIDIA H200", "capability": "9.0", "free": 140 << 30, "total": 141 << 30, "bf16": True, "fp8": True,
    "newest_built_for": 120,
}  # fmt: skip


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("seen", "driver", "devices", "status", "text"),
    [
        (CPU, None, False, "ok", "no GPU here"),
        (CPU, "13.0", True, "fail", "the GPUs of this machine are not used"),
        (CUDA, "12.4", True, "fail", "the driver is too old for this torch"),
        (CUDA, None, True, "fail", "there is no driver"),
        (CUDA, "13.0", True, "fail", "CUDA driver initialization failed"),
        ({**CUDA, "available": True, "gpus": [H200]}, "12.8", True, "ok", "built for CUDA 13.0; the driver runs CUDA"),
    ],
)
def test_build_and_driver(seen: dict[str, Any], driver: str | None, devices: bool, status: str, text: str) -> None:
    finding = gpus.build_finding(seen, driver, devices)
    assert finding.status == status and text in finding.text
    assert bool(finding.way) == (status == "fail")


def test_hidden_gpus_are_said_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.build_finding(CUDA, "13.0", True).way == "unset CUDA_VISIBLE_DEVICES"


def test_what_a_gpu_can_do_is_told() -> None:
    (finding,) = gpus.device_findings(0, H200, {"temperature.gpu": "41"})
    assert finding.status == "ok" and "bf16 and fp8" in finding.text and "MFU is known" in finding.text
    assert finding.text.endswith("41 C")
    (unknown,) = gpus.device_findings(0, {**H200, "name": "Banana 9", "fp8": False}, {})
    assert "not in the planner's table" in unknown.text and ", bf16, " in unknown.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"free": 10 << 30}, "someone else uses its memory"),
        ({"bf16": False, "fp8": False}, "neither bf16 nor fp8"),
        ({"newest_built_for": 70}, "torch was built for older ones"),
    ],
)
def test_a_gpu_with_a_flaw_warns(change: dict[str, Any], text: str) -> None:
    finding = next(iter(gpus.device_findings(0, {**H200, **change}, {})))
    assert finding.status == "warn" and text in finding.text


SMI = """#!/bin/sh
case "$1" in
  *compute-apps*) echo "4711, /usr/bin/python3, 30000" ;;
  *clocks_event_reasons*) exit 1 ;;
  *) echo "0, NVIDIA H200, 88, Default, Disabled, Not Active, Active, Not Active, 2" ;;
esac
"""


def test_heat_ecc_errors_and_others_are_read_from_an_old_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    heat, ecc = gpus.health_findings("GPU 0", gpus.smi_states()["0"])
    assert (heat.status, ecc.status) == ("warn", "fail") and "slowed down by heat" in heat.text
    assert "memory errors that ECC could not correct" in ecc.text
    (other,) = gpus.other_processes()
    assert other.text == "process 4711 (python3) uses 30000 MiB"


def test_modes_that_keep_a_run_away() -> None:
    found = list(gpus.health_findings("GPU 1", {"compute_mode": "Prohibited", "mig.mode.current": "Enabled"}))
    assert [f.status for f in found] == ["fail", "warn"] and "-i 1 " in found[0].way


def test_the_number_of_a_gpu_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus._physical(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus._physical(1) == "5"


def test_a_torch_that_does_not_start_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("ingot.doctor.probing.HOME", tmp_path)  # first on the path
    (tmp_path / "ingot").symlink_to(Path(gpus.__file__).parent.parent)
    (finding,) = gpus.gpu_findings(tmp_path)
    assert finding.status == "fail" and "undefined symbol" in finding.text
