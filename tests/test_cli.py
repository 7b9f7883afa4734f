"""The `ingot` command: stages by name, recipes of variants, folders in place of recipes, exit codes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ingot import __version__, cli
from ingot.cli import STAGES, command, entry_point, load_stage, stage_of
from ingot.recipe import InputError, Recipe

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"
HEAVY = ("torch", "transformers", "trl", "peft", "datatrove", "datasets", "gradio", "fastapi", "lm_eval", "matplotlib")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that would have run."""
    recipes: list[Recipe] = []
    monkeypatch.setattr(cli, "run_stage", lambda recipe: recipes.append(recipe))
    return recipes


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_the_recipe_it_is_given(stage: str, ran: list[Recipe]) -> None:
    command([stage, "--config", str(QUICKSTART / f"{stage}.yaml"), "--run.dir=elsewhere"])
    assert ran[0].stage == stage and ran[0].run.dir == Path("elsewhere")
    assert type(ran[0]).__name__ == STAGES[stage][1] and ran[0].source == QUICKSTART / f"{stage}.yaml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pretrian", "pretrian: no such stage; did you mean 'pretrain'? there are train_tokenizer, prepare_data, "),
        ("zzz", "zzz: no such stage; there are train_tokenizer, "),
        ("pretrain2", "did you mean 'pretrain'?"),
        ("--config", "--config: no such stage"),
    ],
)
def test_an_unknown_stage_is_told_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        command([name, "--config", "x.yaml"])
    assert message in str(caught.value)


def test_variants_belong_to_their_stage(ran: list[Recipe]) -> None:
    assert [stage_of(name) for name in ("sft", "sft_lora", "dpo_strong")] == ["sft", "sft", "dpo"]
    recipe: Any = load_stage(QUICKSTART / "sft_lora.yaml", ["--model.r=4"])
    assert recipe.stage == "sft" and (recipe.model.adapter, recipe.model.r) == ("lora", 4)
    command(["sft_lora", "--config", str(QUICKSTART / "sft_lora.yaml")])
    assert ran[0].run.dir == Path("runs/quickstart/sft_lora")


def test_help_names_every_stage_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["help"]):
        command(words)
        text = capsys.readouterr().out
        assert all(f"\ningot {stage} " in text for stage in STAGES) and "ingot run FOLDER" in text
        assert "Pretrain a model from random weights" in text


def test_help_of_a_stage_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for stage, key in (("pretrain", "--run.global_batch_size"), ("chat", "--run.web"), ("serve", "--run.port")):
        with pytest.raises(SystemExit) as caught:
            command([stage, "--help"])
        assert caught.value.code == 0 and key in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    command(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("stage", ["chat", "serve"])
def test_a_folder_takes_the_place_of_a_recipe(stage: str, ran: list[Recipe]) -> None:
    for folder in ("runs/a/export", "2024", "a: b", "null"):
        command([stage, folder, "--run.port=1234"])
        recipe: Any = ran.pop()
        assert recipe.stage == stage and recipe.model.path == Path(folder) and recipe.run.port == 1234
    command([stage, "other", "--config", str(QUICKSTART / f"{stage}.yaml")])
    changed: Any = ran.pop()
    assert changed.model.path == Path("other") and changed.run.dir == Path("runs/quickstart") / stage


def test_a_folder_with_a_wrong_key_is_refused_in_the_same_words(ran: list[Recipe]) -> None:
    with pytest.raises(InputError, match=r"ingot serve: run\.port: expected .* at most 65535, got 'x'"):
        command(["serve", "folder", "--run.port=x"])
    with pytest.raises(InputError, match=r"ingot chat: model\.path: missing"):
        command(["chat"])


def test_only_chat_and_serve_take_a_folder() -> None:
    with pytest.raises(InputError, match="not an option"):
        command(["pretrain", "runs/a", "--config", str(QUICKSTART / "pretrain.yaml")])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pretrain"], 2, "error: pretrain: give a recipe: --config recipes/quickstart/pretrain.yaml"),
        (["pretrain", "--config", "absent.yaml"], 2, "error: absent.yaml: no such file"),
        (["run", "absent"], 2, "error: absent: no such folder of recipes"),
        (["--version"], 0, ""),
    ],
)
def test_exit_codes(
    words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ingot", *words])
    with pytest.raises(SystemExit) as caught:
        entry_point()
    assert caught.value.code == code and capsys.readouterr().err.startswith(message)


def test_a_wrong_recipe_of_any_stage_is_refused_before_anything_heavy_is_imported(root: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from ingot.cli import STAGES, command
from ingot.recipe import InputError
for stage in STAGES:
    try:
        command([stage, "--config", f"recipes/quickstart/{{stage}}.yaml", "--run.dri=x", "--bogus.key=1"])
    except InputError as error:
        assert "run.dri: no such key; did you mean 'dir'?" in str(error), error
        assert "bogus: no such key" in str(error), error
    else:
        raise AssertionError(stage)
found = {set(HEAVY)!r} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
