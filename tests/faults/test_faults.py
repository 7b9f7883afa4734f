"""The short form of `ingot faults` as a user starts it, and what its cases are judged by."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot.failures import DiskFull
from ingot.faults.command import faults_command, table
from ingot.faults.compare import (
    corrupt,
    largest_difference,
    metrics_equal,
    newest_good,
    rows_of_steps,
)
from ingot.faults.full_disk import says_so
from ingot.faults.suite import CASES
from ingot.files import naming_full_disk, write_checksums
from ingot.recipe import InputError


@pytest.mark.timeout(600)
def test_the_short_form_passes(tmp_path: Path, root: Path) -> None:
    words = [sys.executable, "-m", "ingot.cli", "faults", "--short", "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    failed = [case for case in report["cases"] if not case["passed"]]
    assert done.returncode == 0 and not failed, failed
    assert [case["name"] for case in report["cases"]] == [name for name, (_, _, short) in CASES.items() if short]
    measured = {case["name"]: case["measured"] for case in report["cases"]}
    kills = measured["kills_pretrain"]
    assert kills["kills"] >= 4 and kills["in_the_save"] >= 2
    assert kills["corrupt"] == 0 and kills["resumed"] == kills["kills"]
    assert kills["equal_weights"] == kills["equal_metrics"] == kills["runs"]
    assert measured["finished_run"] == {"starts": 3, "that_made_steps": 0, "that_changed_files": 0}
    assert json.loads((tmp_path / "out/faults.json").read_text()) == report


def lines(folder: Path, *records: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_metrics_are_equal_but_for_times(tmp_path: Path) -> None:
    first, second = {"step": 1, "loss": 2.5, "tokens_per_second": 7.0}, {"step": 2, "loss": 2.25}
    whole = lines(tmp_path / "whole", first, second)
    assert metrics_equal(lines(tmp_path / "slower", {**first, "tokens_per_second": 5.0}, second), whole)
    assert not metrics_equal(lines(tmp_path / "double", first, second, second), whole)
    assert not metrics_equal(lines(tmp_path / "gap", second), whole)
    assert not metrics_equal(lines(tmp_path / "other", first, {**second, "loss": 2.2500001}), whole)
    assert not metrics_equal(tmp_path / "absent", tmp_path / "absent")


def test_differences_of_other_lines_are_infinite() -> None:
    assert largest_difference([{"loss": 1.0}], [{"loss": 1.5}]) == 0.5
    assert largest_difference([{"loss": 1.0}], [{"eval_loss": 1.0}]) == float("inf")
    assert largest_difference([], []) == float("inf")


def test_a_changed_checkpoint_counts_as_corrupt_and_is_passed_over(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"12345678")
        write_checksums(folder)
    assert not corrupt(tmp_path) and newest_good(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10/weights").write_bytes(b"1234567")
    assert len(corrupt(tmp_path)) == 1 and newest_good(tmp_path) == tmp_path / "checkpoint-9"


def test_rows_of_all_processes_are_joined_by_step(tmp_path: Path) -> None:
    records = [{"step": 2, "rows": ["c"]}, {"step": 1, "rows": ["b"]}, {"step": 1, "rows": ["a"]}]
    (tmp_path / "rows").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3, "ro')
    assert rows_of_steps([tmp_path / "rows", tmp_path / "none"]) == {1: ["a", "b"], 2: ["c"]}


def test_a_full_disk_is_told_in_one_line_with_two_sizes() -> None:
    line = "error: /runs/a: the next checkpoint needs 1.5 GB and 20 MB are free"
    assert says_so(f"step 1\n{line}\n", Path("/runs/a"))
    assert not says_so(line, Path("/runs/b"))
    assert not says_so("error: /runs/a: no space left", Path("/runs/a"))
    assert not says_so(f"Traceback (most recent call last):\n{line}", Path("/runs/a"))


def test_a_full_disk_that_was_told_is_not_told_again_in_other_words(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="5 bytes needed"), naming_full_disk(tmp_path):
        raise DiskFull("the checkpoint cannot be written (No space left on device): 5 bytes needed")


def test_the_cases_are_listed_and_a_wrong_name_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    faults_command(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)
    with pytest.raises(InputError, match="there is no case 'kils_sft'; did you mean 'kills_sft'"):
        faults_command(["--only", "kils_sft"])
    with pytest.raises(InputError, match="--shrot: no such option; did you mean --short"):
        faults_command(["--shrot"])


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty; choose a new folder"):
        faults_command(["--out", str(tmp_path)])


def test_the_table_has_a_command_for_every_row() -> None:
    case = {"name": "nan", "asked": "a | b", "measured": {"ok": True, "most": 0.12345, "wrong": []}, "seconds": 2.0}
    report = {"cases": [{**case, "passed": False}], "short": True, "seconds": 2.0}
    row = "| nan | a / b | ok yes; most 0.1235 | NOT PASSED | 2 | `ingot faults --short --only nan` |"
    assert row in table(report)
    assert table(report).endswith("0 of 1 passed in 2 s")
    skipped = {**case, "measured": {"skipped": "no DeepSpeed here"}, "passed": True}
    report = {"cases": [skipped, {**case, "measured": {"skipped": 3}, "passed": True}], "short": False, "seconds": 3.0}
    assert "| skipped no DeepSpeed here | skipped |" in table(report)
    assert table(report).endswith("1 of 2 passed, 1 skipped in 3 s")
