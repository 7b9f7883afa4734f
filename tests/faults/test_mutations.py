"""The suite that damages files finds what it should: each kind of damage, and loads that say nothing."""

import random
from pathlib import Path

import pytest

from ingot.faults import edits, mutations
from ingot.faults.inputs import mutate_inputs, run_command
from ingot.faults.mutations import mutate_checkpoints
from ingot.faults.recipe_keys import known_keys, suggestions
from ingot.training.pretrain import PretrainRecipe


@pytest.mark.timeout(300)
def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    found = mutate_checkpoints(tmp_path / "work", 60, seed=1)
    assert found["wrong"] == [] and found["refused"] + found["unchanged"] == 60 and found["refused"] > 50
    assert len(found["kinds"]) > 12
    whole = {p.name for p in (tmp_path / "work/whole").rglob("*")}
    assert "optimizer.pt" in whole and "training_args.bin" not in whole  # a pickle that nothing needs


def test_a_loader_that_looks_at_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1, "b": "x"}')
    blind = mutations.Subject("blind", folder, ".", lambda path: str(sorted(p.name for p in path.iterdir())))
    monkeypatch.setattr(mutations, "make_subjects", lambda folder: [blind])
    monkeypatch.setattr(mutations, "_cases", lambda subjects, count, rng: iter(
        [mutations.Case(blind, "config.json", how, edits.BYTES[how], False) for how in ("flip_bit", "delete")]
    ))  # fmt: skip
    found = mutate_checkpoints(tmp_path / "work", 2, seed=0)
    assert (found["silent"], found["unchanged"]) == (1, 1) and found["wrong"][0].startswith("silent: blind: config")


def test_an_error_without_a_file_counts_as_unnamed(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def load(path: Path) -> str:
        raise KeyError("a")

    case = mutations.Case(mutations.Subject("x", folder, ".", load), "config.json", "empty", edits.empty, False)
    assert mutations._try(case, tmp_path / "copy", "", random.Random(0)) == ("unnamed", "KeyError: 'a'")


@pytest.mark.parametrize("how", edits.BYTES)
def test_every_kind_of_damage_changes_the_folder(how: str, tmp_path: Path) -> None:
    for name, text in (("a.json", '{"key": "value"}'), ("b.json", "other")):
        (tmp_path / name).write_text(text)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    edits.BYTES[how](tmp_path / "a.json", random.Random(3))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} != before


@pytest.mark.timeout(300)
def test_damaged_inputs_end_with_exit_code_2(tmp_path: Path) -> None:
    found = mutate_inputs(tmp_path / "work", 30, seed=2)
    assert found["wrong"] == [] and found["refused"] > 20 and found["refused"] + found["accepted"] == 30


def test_a_traceback_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> None:
        raise KeyError("a")

    monkeypatch.setattr("ingot.cli.command", broken)
    outcome, said, _ = run_command(["chat"])
    assert outcome == "failed" and "KeyError" in said


def test_misspelt_keys_are_told_the_right_one() -> None:
    paths = {path for path, _ in known_keys(PretrainRecipe)}
    assert {("data", "mixture", 0, "weight"), ("training", "learning_rate"), ("model", "hidden_size")} <= paths
    found = suggestions(0)
    assert found["edits"] > 2000 and found["share"] >= 0.95
