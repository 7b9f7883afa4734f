"""Two processes that reach each other, or do not."""

from pathlib import Path

import pytest

from ingot.doctor import loopback, probing


def test_gloo_on_this_machine(tmp_path: Path) -> None:
    (finding,) = loopback.loopback_findings(tmp_path, gpus=False)
    assert (finding.status, finding.what) == ("ok", "gloo") and finding.text.startswith("2 processes")


def test_a_backend_that_does_not_answer_has_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: str, log: Path, timeout: float) -> None:
        raise RuntimeError(f"{function}: unhandled system error")

    monkeypatch.setattr(loopback, "ask", refuse)
    found = list(loopback.loopback_findings(tmp_path, gpus=True))
    assert [f.what for f in found] == ["gloo", "nccl"] and {f.status for f in found} == {"fail"}
    assert "NCCL_P2P_DISABLE=1" in found[1].way


def test_what_a_child_says_last_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1: AttributeError|exit code 1: ImportError"):
        probing.ask("ingot.doctor.loopback:no_such_function", tmp_path / "log", timeout=60)
