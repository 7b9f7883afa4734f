"""The self-test: its first steps, its end when a step fails or hangs, and (slow) all of it."""

import json
from pathlib import Path

import pytest

from ingot.doctor import kill_and_resume, selftest
from ingot.doctor.findings import Finding


def test_the_first_steps_make_a_tokenizer_and_shards(tmp_path: Path) -> None:
    assert selftest.tokenizer(tmp_path).startswith("384 entries")
    assert selftest.shards(tmp_path).endswith("tokens of 232 documents")


def test_a_step_that_fails_ends_the_test_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> str:
        raise OSError("no such wheel")

    steps = {"a": (lambda folder: "well", "", ""), "b": (broken, "", ""), "c": (broken, "", "")}
    monkeypatch.setattr(selftest, "STEPS_IN_ORDER", steps)
    first, second = selftest.run_steps(tmp_path)
    assert first.status == "ok" and first.text.endswith("s: well")
    assert (second.status, second.text) == ("fail", "OSError: no such wheel")


def test_a_missing_extra_leaves_the_rest_out_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "STEPS_IN_ORDER", {"sft": (lambda folder: "well", "no_such_module", "train")})
    (only,) = selftest.run_steps(tmp_path)
    assert only.status == "warn" and only.way == "pip install -e '.[train]'"


class FakeProbe:
    """Prints one finding, then dies or hangs."""

    hangs = False

    def __init__(self, words: list[str], log: Path, added: dict[str, str]) -> None:
        self.folder = log.parent
        log.write_text("starting\nCUDA error: device-side assert\n")

    def values(self, timeout: float):  # type: ignore[no-untyped-def]
        yield Finding("ok", "self-test: tokenizer", "0.1 s").__dict__
        if self.hangs:
            raise TimeoutError("no answer in 120 s")

    def end(self) -> int:
        return -9 if self.hangs else -11

    def complaint(self) -> str:
        return "CUDA error: device-side assert"


@pytest.mark.parametrize(("hangs", "text"), [(False, "killed by SIGSEGV"), (True, "no answer in 120 s")])
def test_a_process_that_dies_or_hangs_is_named_with_its_step(
    hangs: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProbe, "hangs", hangs)
    monkeypatch.setattr(selftest, "Probe", FakeProbe)
    _, bad, _ = selftest.selftest_findings()
    assert bad.what == "self-test: shards" and bad.text == f"{text}: CUDA error: device-side assert"


def write_run(folder: Path, losses: list[float], weights: bytes) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(weights)
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_a_continuation_is_held_against_the_unbroken_run(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", [3.0, 2.0, 1.0], b"weights")
    same = write_run(tmp_path / "same", [3.0, 2.0, 1.0], b"weights")
    assert "bitwise equal" in kill_and_resume.proof_of_continuation(same, whole, exact=True)
    near = write_run(tmp_path / "near", [3.0, 2.0, 1.0001], b"others")
    assert "losses within" in kill_and_resume.proof_of_continuation(near, whole, exact=False)
    for folder, exact in ((near, True), (write_run(tmp_path / "far", [3.0, 2.0, 1.5], b"others"), False)):
        with pytest.raises(RuntimeError, match="not the unbroken one"):
            kill_and_resume.proof_of_continuation(folder, whole, exact)
    with pytest.raises(RuntimeError, match=r"has the steps \[1, 2\] in place of \[1, 2, 3\]"):
        kill_and_resume.proof_of_continuation(write_run(tmp_path / "short", [3.0, 2.0], b""), whole, exact=True)


def test_a_run_that_ends_before_it_saves_is_told(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text("run: {dir: x}")
    with pytest.raises(RuntimeError, match="ended before a save was seen .exit code 2: "):
        kill_and_resume.kill_in_a_save(tmp_path / "pretrain.yaml", tmp_path / "run", tmp_path / "log")


@pytest.mark.slow
def test_the_whole_self_test_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = list(selftest.selftest_findings())
    assert [f.status for f in found] == ["ok"] * (len(selftest.STEPS_IN_ORDER) + 1), found
    assert "bitwise equal" in found[4].text and "difference of logits 0.0" in found[6].text
    assert list(tmp_path.iterdir()) == []
