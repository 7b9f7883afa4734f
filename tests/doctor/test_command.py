"""The command line of `ingot doctor`, its pages and its exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingot.cli import command
from ingot.doctor import command as doctor
from ingot.doctor.findings import Finding, fail, ok, warn
from ingot.recipe import InputError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shrot"], "--shrot is no option; there are --short, --json"),
        (["--config", "x.yaml"], "name that folder, too"),
        (["runs/x", "--training.max_steps=5"], "changes a key of a recipe; name it with --config RECIPE"),
        (["runs/x", "--short"], "--short is for the machine"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        command(["doctor", *words])
    assert message in str(caught.value)


def test_the_words_are_taken_apart() -> None:
    request = doctor.parse(["runs/x", "--config=a.yaml", "--json", "--run.dir", "y", "--training.seed=2"])
    assert request == doctor.Request(
        [Path("runs/x")], json=True, config=Path("a.yaml"), overrides=("--run.dir", "y", "--training.seed=2")
    )


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    command(["doctor", "--help"])
    assert "Exit code 0 when nothing fails, 3 otherwise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "code", "last"),
    [
        ([ok("memory", "much")], 0, "nothing fails"),
        ([ok("memory", "much"), warn("ninja", "absent", "pip")], 0, "nothing fails, 1 to know about"),
        ([ok("memory", "much"), fail("disk", "full", "free")], 3, "1 of 2 checks fail; mend those first"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_says_whether_something_fails(
    found: list[Finding],
    code: int,
    last: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def machine(short: bool) -> Iterator[Finding]:
        asked.append(short)
        yield from found

    monkeypatch.setattr(doctor, "machine_findings", machine)
    words = ["doctor", "--short", *["--json"] * as_json]
    if code:
        with pytest.raises(SystemExit) as ended:
            command(words)
        assert ended.value.code == code
    else:
        command(words)
    page = capsys.readouterr().out
    assert asked == [True]
    if as_json:
        assert json.loads(page)["ok"] == (code == 0) and len(json.loads(page)["findings"]) == len(found)
    else:
        assert page.endswith(last + "\n")


def test_a_recipe_is_for_one_run(complete: Path) -> None:
    with pytest.raises(InputError, match="holds several runs; name the one that x.yaml is for"):
        command(["doctor", str(complete.parent), "--config=x.yaml"])


def test_a_folder_of_runs_is_shown_run_by_run(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (complete.parent / "foreign").mkdir()
    with pytest.raises(SystemExit):  # the toys' inputs have no recipe.yaml
        command(["doctor", str(complete.parent), "--json"])
    runs = json.loads(capsys.readouterr().out)["runs"]
    states = {Path(run["folder"]).name: run["state"] for run in runs}
    assert states["pretrain"] == "complete" and "foreign" not in states
    (complete.parent / "foreign").rmdir()


def test_the_json_of_an_interrupted_run_says_where_it_continues(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(["doctor", str(interrupted), "--json"])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["state"], run["continues_from"], run["max_steps"], run["reached"]) == ("interrupted", 8, 12, 10)
    assert [c["step"] for c in run["checkpoints"] if c["problem"] is None][-1] == 8
    assert run["command"].startswith("ingot pretrain --config ")


def test_a_broken_run_ends_with_3(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in interrupted.glob("checkpoint-*"):
        (checkpoint / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        command(["doctor", str(interrupted)])
    assert ended.value.code == 3 and "every checkpoint is damaged" in " ".join(capsys.readouterr().out.split())
