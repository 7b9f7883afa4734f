"""Versions against their bounds, and packages that are there and broken."""

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ingot.doctor import packages
from ingot.doctor.findings import Finding


def by_status(found: list[Finding]) -> dict[str, list[Finding]]:
    return {status: [f for f in found if f.status == status] for status in ("ok", "warn", "fail")}


def asked_for(monkeypatch: pytest.MonkeyPatch, **groups: list[str]) -> None:
    wanted = {"" if k == "always" else k: [Requirement(text) for text in v] for k, v in groups.items()}
    monkeypatch.setattr(packages, "requirements", lambda: wanted)


def test_this_environment_has_what_setup_cfg_asks_for() -> None:
    wanted = packages.requirements()
    assert {"torch", "transformers", "zstandard"} <= {r.name for r in wanted[""]}
    assert "trl" in {r.name for r in wanted["train"]} and packages.in_checkout()
    assert not [f for f in packages.version_findings() if f.status == "fail"]


def test_an_installed_package_reads_its_own_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "in_checkout", lambda: False)
    wanted = packages.requirements()
    assert "torch" in {r.name for r in wanted[""]} and "trl" not in {r.name for r in wanted[""]}
    assert {r.name for r in wanted["serve"]} >= {"fastapi", "uvicorn"}
    assert packages.pip_command("serve") == "pip install 'ingot[serve]'"


def test_a_version_out_of_bounds_fails_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for(monkeypatch, always=["torch<2", "numpy>=1"])
    found = by_status(list(packages.version_findings()))
    assert "numpy" in found["ok"][1].text
    (bad,) = found["fail"]
    assert bad.text.startswith(f"torch {importlib.metadata.version('torch')} is outside of")
    assert bad.way == "pip install 'torch<2'"


def test_what_is_missing_fails_where_it_is_always_needed_and_warns_in_an_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_for(monkeypatch, always=["not-there-1"], train=["not-there-2"], ray=["not-there-3"])
    found = by_status(list(packages.version_findings()))
    assert found["fail"][0].text == "not-there-1: not installed" and found["fail"][0].way == "pip install -e ."
    assert (found["warn"][0].text, found["warn"][0].way) == ("not-there-2: not installed", "pip install -e '.[train]'")
    assert "not-there-3: not installed; when you need it: pip install -e '.[ray]'" in found["ok"][-1].text


def test_a_wrong_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.9.1")
    assert next(iter(packages.version_findings())).status == "fail"


def test_broken_crashing_and_hanging_imports_are_named_and_the_others_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_one.py").write_text("print('noise')\nraise OSError('libcupti.so.12: cannot open\\nmore')")
    (tmp_path / "crashing_one.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "hanging_one.py").write_text("import time\ntime.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "IMPORT_SECONDS", 3.0)
    names = ["json", "broken_one", "crashing_one", "hanging_one", "csv"]
    found = by_status(list(packages.import_findings(tmp_path, {name: f"import {name}" for name in names})))
    texts = {f.text.split()[0]: f.text for f in found["fail"]}
    assert set(texts) == {"broken_one", "crashing_one", "hanging_one"}
    assert texts["broken_one"].endswith("does not work: OSError: libcupti.so.12: cannot open")
    assert "killed by SIGSEGV" in texts["crashing_one"] and "no answer in 3 s" in texts["hanging_one"]
    assert found["ok"][0].text == "2 import: json, csv"


def test_a_broken_deepspeed_has_two_ways_out() -> None:
    finding = packages._broken("deepspeed", "ImportError: x")
    assert "--no-deps 'deepspeed" in finding.way and "pip uninstall deepspeed" in finding.way


@pytest.mark.slow
def test_a_deepspeed_that_does_not_import_is_seen_in_trainer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepspeed.py").write_text("raise RuntimeError('CUDA_HOME does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tried = {"transformers.Trainer": packages.JOINTS["transformers.Trainer"]}
    bad = by_status(list(packages.import_findings(tmp_path, tried)))["fail"]
    assert bad[0].text == (
        "transformers.Trainer is installed and does not work: RuntimeError: CUDA_HOME does not exist"
    )


def test_imports_try_what_is_installed_and_where_packages_meet() -> None:
    tried = packages.imports()
    assert tried["lm-eval"] == "import lm_eval"
    assert tried.get("protobuf", "import google.protobuf") == "import google.protobuf"  # an extra
    assert "ruff" not in tried
