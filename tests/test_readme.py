"""What the README and the troubleshooting page tell to type is accepted; the tree that is shown is the tree."""

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TROUBLES = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in a page's bash blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.strip().split("\n"):
            words = shlex.split(line, comments=True)
            if words:
                yield words


COMMANDS = list({" ".join(words): words for page in (README, TROUBLES) for words in commands(page)}.values())


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "make"], ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


PLANS = [words for words in COMMANDS if words[:2] == ["ingot", "plan"]]


@pytest.mark.parametrize("words", PLANS, ids=" ".join)
def test_a_plan_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ingot.cli import command

    monkeypatch.chdir(ROOT)
    command([str(tmp_path / "recipes") if word == "recipes/my-model" else word for word in words[1:]])
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_the_plans_shown_are_the_plans_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ingot.cli import command

    monkeypatch.chdir(ROOT)
    shown = [words for words in commands(README) if words[:3] == ["ingot", "plan", "model"]]
    assert len(shown) == 3
    for words in shown:
        command(words[1:])
        page = capsys.readouterr().out.rstrip()
        assert page[page.index("Memory of") :] in README, words


def is_stage(words: list[str]) -> bool:
    return "--config" in words and words[1] not in ("plan", "doctor")


@pytest.mark.parametrize("words", [w for w in COMMANDS if is_stage(w)], ids=" ".join)
def test_a_stage_takes_its_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ingot.cli import command

    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        if words[0] == "accelerate":
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
            script = next(w for w in words if w.startswith("scripts/"))
            monkeypatch.setattr(sys, "argv", [*words[words.index(script) :], "--print-config"])
            runpy.run_path(script, run_name="__main__")
        else:
            assert words[0] == "ingot"
            command([*words[1:], "--print-config"])
    assert ended.value.code == 0 and "run:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[:2] == ["ingot", "run"]], ids=" ".join)
def test_a_chain_can_be_planned(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ingot.chain import parse, plan_chain

    monkeypatch.chdir(ROOT)
    assert len(plan_chain(parse(words[2:]))) == 7


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[:2] == ["ingot", "doctor"]], ids=" ".join)
def test_the_doctor_takes_its_command(words: list[str]) -> None:
    from ingot.cli import load_stage
    from ingot.doctor.command import parse

    request = parse(words[2:])
    assert request.config is None or load_stage(ROOT / request.config, request.overrides)


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[:2] == ["ingot", "benchmark"]], ids=" ".join)
def test_a_benchmark_takes_its_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from ingot.cli import command

    assert words[-1] == "--help"
    with pytest.raises(SystemExit) as ended:
        command(words[1:])
    assert ended.value.code == 0 and "usage: ingot benchmark" in capsys.readouterr().out


FOLDERS = ("inspect", "verify", "serve", "chat")


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[1] in FOLDERS and "--config" not in w], ids=" ".join)
def test_a_command_on_a_folder_names_what_is_not_there(words: list[str]) -> None:
    from ingot.cli import command
    from ingot.recipe import InputError

    with pytest.raises(InputError, match="no-runs/"):
        command([re.sub(r"^runs/", "no-runs/", word) for word in words[1:]])


def test_every_command_is_of_a_known_kind() -> None:
    known = {"make", "ingot", "accelerate", "source"}
    assert {words[0] for words in COMMANDS} <= known


def test_the_tree_names_what_exists() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    folder = Path()
    for line in tree.strip().split("\n"):
        for name in re.split(r"\s{2,}", line.strip())[:-1]:
            folder = Path(name) if not line.startswith(" ") else folder
            path = ROOT / name if not line.startswith(" ") else ROOT / folder / name
            assert path.exists(), path


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"\b(?:OUT|QUICKSTART)_[A-Z]+", README)


def test_pictures_exist() -> None:
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file() and (ROOT / name).read_bytes().startswith(b"\x89PNG")
