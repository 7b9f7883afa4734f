"""Every state that a run folder can be in, and what is said of a rerun."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ingot.cli import command
from ingot.doctor import run_findings, run_progress
from ingot.doctor.findings import Finding
from ingot.doctor.run_facts import continue_command, read_facts
from ingot.faults.toys import pretrain_tree
from ingot.recipe_yaml import dump_yaml
from ingot.runs import read_json, write_json
from ingot.training import pretrain_loop


def findings(folder: Path, config: Path | None = None, *overrides: str) -> dict[str, Finding]:
    """What is found in a folder, the first of each name."""
    found: dict[str, Finding] = {}
    for finding in run_findings.run_findings(read_facts(folder), config, overrides):
        found.setdefault(finding.what, finding)
    return found


def test_a_folder_that_is_not_there_or_empty_never_started(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        state = findings(folder)["state"]
        assert state.status == "warn" and state.text.startswith("never started")


def test_a_part_of_a_run_is_told_from_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "started.json").write_text("{}")
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8/model.safetensors").touch()
    found = findings(tmp_path / "checkpoint-8")["state"]
    assert f"a part of the run {tmp_path}" in found.text and found.way == f"ingot doctor {tmp_path}"


def test_a_foreign_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "foreign: holds files that no stage of Ingot wrote" in findings(tmp_path)["state"].text
    assert "foreign: is a file" in findings(tmp_path / "notes.txt")["state"].text


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": 3}'])
def test_a_record_that_is_none_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "started.json").write_text(text)
    state = findings(tmp_path)["state"]
    assert state.status == "fail" and "is not as Ingot writes it" in state.text


def test_a_finished_run(complete: Path) -> None:
    found = findings(complete)
    assert found["state"].text.startswith("pretrain, complete")
    assert "as they were written: a rerun does nothing" in found["result"].text
    assert found["recipe"].text.endswith("is what was run") and found["input"].status == "ok"
    assert {f.status for f in found.values()} == {"ok"}


def test_a_changed_result_is_named_with_the_command_that_makes_it_again(complete: Path) -> None:
    with open(complete / "model/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    result = findings(complete)["result"]
    assert result.status == "fail" and "model.safetensors" in result.text
    assert result.way.startswith(f"ingot pretrain --config {complete / 'recipe.yaml'}")


def test_an_interrupted_run_says_where_it_continues_and_how_long_it_takes(interrupted: Path) -> None:
    found = findings(interrupted)
    assert "interrupted at step 10 of 12" in found["state"].text
    assert found["state"].way == f"ingot pretrain --config {interrupted / 'recipe.yaml'}"
    assert ", whole, 1 process (single), 4 rows a step" in found["checkpoint 8"].text
    rerun = found["a rerun"]
    assert (
        f"continues from {interrupted / 'checkpoint-8'}: 4 of 12 steps are left, 2 of them a second time" in rerun.text
    )
    assert "at the speed of before" in rerun.text and rerun.status == "ok"
    assert (
        found["best"].text.startswith("held-out loss")
        and "at step 6; no checkpoint of that step" in found["best"].text
    )
    assert found["metrics"].text.startswith("step 10: loss ") and found["log"].status == "ok"
    assert found["disk"].text.startswith("1 more checkpoint of ") and found["disk"].status == "ok"


def test_the_command_that_is_told_continues_the_run(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_loop, "plot_loss", lambda *args: None)
    command(shlex.split(continue_command(read_facts(interrupted)))[1:])
    assert f"continuing from {interrupted / 'checkpoint-8'}" in (interrupted / "log.txt").read_text()
    assert findings(interrupted)["result"].status == "ok"


def test_a_damaged_checkpoint_is_passed_over_and_the_file_named(interrupted: Path) -> None:
    shutil.copytree(interrupted / "checkpoint-8", interrupted / "checkpoint-10")
    (interrupted / "checkpoint-10/optimizer.pt").write_bytes(b"cut")
    found = findings(interrupted)
    damaged = found["checkpoint 10"]
    assert damaged.status == "warn" and "checkpoint-10/optimizer.pt is not as it was written" in damaged.text
    assert "continues from" in found["a rerun"].text and "checkpoint-8" in found["a rerun"].text


def test_a_run_whose_checkpoints_are_all_damaged_fails(interrupted: Path) -> None:
    for checkpoint in interrupted.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    rerun = findings(interrupted)["a rerun"]
    assert rerun.status == "fail" and "begins from step 0, for every checkpoint is damaged" in rerun.text


def test_a_run_without_checkpoints_begins_anew(interrupted: Path) -> None:
    for checkpoint in interrupted.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    rerun = findings(interrupted)["a rerun"]
    assert rerun.status == "ok" and "nothing was saved: 12 of 12 steps are left, 10 of them a second" in rerun.text


def test_a_checkpoint_that_training_would_refuse_is_not_said_to_continue(interrupted: Path) -> None:
    from ingot.runs import write_checksums

    (interrupted / "checkpoint-8/optimizer.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    write_checksums(interrupted / "checkpoint-8")
    rerun = findings(interrupted)["a rerun"]
    assert rerun.status == "fail" and rerun.text.startswith("is refused: ") and "optimizer.pt" in rerun.text


def test_a_process_that_writes_the_log_is_running(interrupted: Path) -> None:
    with open(interrupted / "log.txt", "a") as log:
        child = subprocess.Popen(["sleep", "60"], stdout=log)
    try:
        state = findings(interrupted)["state"]
        assert state.status == "ok" and f"running now in process {child.pid}" in state.text
    finally:
        child.kill()
        child.wait()


def test_leftovers_are_named_and_said_to_be_harmless(interrupted: Path) -> None:
    (interrupted / ".staging/checkpoint-12").mkdir(parents=True)
    (interrupted / ".staging/checkpoint-12/model.safetensors").write_bytes(b"x" * 2_000_000)
    (interrupted / ".metrics.jsonl.7.partial").write_text("{")
    found = [f for f in run_findings.leftover_findings(interrupted) if f.what == "leftover"]
    assert len(found) == 2 and all("a rerun clears it away" in f.text for f in found)
    assert any(".staging: 2.0 MB of a checkpoint" in f.text for f in found)
    interrupted.with_name("pretrain.old-1").mkdir()
    assert "pretrain.old-1" in list(run_findings.leftover_findings(interrupted))[-1].text
    interrupted.with_name("pretrain.old-1").rmdir()


def test_steps_that_were_not_finite_and_spikes_are_told(interrupted: Path) -> None:
    record = {"step": 7, "what": "skipped", "loss": "nan", "grad_norm": "1.0", "rows": [1]}
    write_json(interrupted / "nonfinite-step-7.json", record)
    entry = {"from_step": 4, "to_step": 9, "loss": 9.0, "usual_loss": 3.0, "put_off": [], "log": []}
    write_json(interrupted / "rewinds.json", [entry])
    with open(interrupted / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 11, "loss": float("nan")}) + '\n{"step": 12, "lo')
    found = findings(interrupted)
    assert "step 7 skipped (loss nan, grad norm 1.0)" in found["not finite"].text
    assert "step 11 in metrics.jsonl" in found["not finite"].text and found["not finite"].status == "warn"
    assert found["went back"].text == "from step 9 to 4: loss 9.0000, usual 3.0000"


def test_an_input_that_is_gone_or_was_made_anew_fails(interrupted: Path) -> None:
    shards = interrupted.parent / "shards"
    manifest = read_json(shards / "manifest.json")
    write_json(shards / "manifest.json", {**manifest, "files": {**manifest["files"], "x": {"bytes": 0, "sha256": ""}}})
    try:
        (shards / "x").write_bytes(b"")
        bad = [f for f in run_findings.run_findings(read_facts(interrupted)) if f.status == "fail"]
        assert [f.text for f in bad if f.what == "input"] == [f"data.shards: {shards} has been made anew since"]
        assert findings(interrupted)["a rerun"].text.startswith("once the above is mended, continues from")
    finally:
        (shards / "x").unlink()
        write_json(shards / "manifest.json", manifest)
    shards.rename(interrupted.parent / "elsewhere")
    try:
        gone = findings(interrupted)["input"]
        assert gone.status == "fail" and "does not exist" in gone.text
    finally:
        (interrupted.parent / "elsewhere").rename(shards)


def test_a_recipe_that_was_edited_by_hand_is_compared_with_what_was_run(interrupted: Path) -> None:
    kept = interrupted / "recipe.yaml"
    kept.write_text(kept.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    recipe = findings(interrupted)["recipe"]
    assert recipe.status == "fail" and "training.learning_rate: 0.01 -> 0.02" in recipe.text
    kept.write_text(kept.read_text().replace("learning_rate", "learning_rat"))
    assert "did you mean 'learning_rate'?" in findings(interrupted)["recipe"].text


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ([], "ok", "is the recipe of this folder"),
        (["--training.learning_rate=0.5"], "fail", "training.learning_rate: 0.01 -> 0.5"),
        (["--training.learning_rate=0.5", "--run.if_changed=resume"], "warn", "0.01 -> 0.5"),
    ],
)
def test_another_recipe_is_held_against_the_folder(
    change: list[str], status: str, text: str, interrupted: Path, tmp_path: Path
) -> None:
    config = tmp_path / "pretrain.yaml"
    config.write_text(dump_yaml(pretrain_tree(interrupted.parent, tmp_path / "elsewhere")))
    would = findings(interrupted, config, *change)["would run"]
    assert would.status == status and text in would.text
    assert ("--resume" in would.way) == (status == "fail")


def test_a_recipe_of_another_stage_is_told(interrupted: Path, tmp_path: Path) -> None:
    config = tmp_path / "export.yaml"
    config.write_text(dump_yaml({"run": {"from": str(interrupted), "dir": str(tmp_path / "out")}}))
    assert "a run of pretrain" in findings(interrupted, config)["would run"].text


def test_a_run_of_several_processes_is_continued_with_as_many(interrupted: Path) -> None:
    path = interrupted / "checkpoint-8/run_state.json"
    write_json(path, {**read_json(path), "num_processes": 4, "strategy": "zero2"})
    from ingot.runs import write_checksums

    write_checksums(interrupted / "checkpoint-8")
    command = continue_command(read_facts(interrupted))
    assert command.startswith(
        "accelerate launch --config_file accelerate_configs/zero2.yaml --num_processes 4 scripts/"
    )


def test_a_run_that_was_moved_is_continued_where_it_is(interrupted: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved run"
    shutil.copytree(interrupted, moved)
    assert continue_command(read_facts(moved)).endswith(f"recipe.yaml' --run.dir '{moved}'")


def test_too_little_disk_for_the_next_checkpoints_fails(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(run_progress.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    assert findings(interrupted)["disk"].status == "fail"


@pytest.mark.parametrize(("limit", "present", "more"), [(2, 2, 2), (3, 1, 4), (None, 1, 5), (1, 4, 1)])
def test_how_many_checkpoints_will_stand(limit: int | None, present: int, more: int, interrupted: Path) -> None:
    facts = read_facts(interrupted)
    (one,) = [c for c in facts.checkpoints if c.step == 8]
    training = {"save_steps": 1, "save_total_limit": limit, "max_steps": 13}
    record = {**facts.record, "recipe": {"training": training}}
    one = replace(one, trainer={**one.trainer, "max_steps": 13})
    assert run_progress.more_checkpoints(replace(facts, record=record, checkpoints=[one] * present), 8) == more
