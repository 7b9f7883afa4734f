"""Recipes: strict, typed, all errors at once, the nearest right key."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from ingot.data.prepare_data import DataRecipe
from ingot.recipe import (
    FilePath,
    InputError,
    Recipe,
    Section,
    StageFolder,
    UpstreamSection,
    build_recipe,
    load_recipe,
    main,
    parse_command_line,
    stage_inputs,
    to_tree,
    with_defaults,
)


class Part(Section):
    """One of several folders."""

    folder: Annotated[FilePath, StageFolder("prepare_data")]
    weight: float = 1.0


class ToyData(Section):
    """Toy data."""

    shards: Annotated[FilePath, StageFolder("prepare_data")] = Field(description="shards")
    seq_length: int = Field(256, gt=0)
    names: list[str] = []
    others: dict[str, Annotated[FilePath, StageFolder("pretrain", hub=True)]] = {}
    more: list[Annotated[FilePath, StageFolder("sft")]] | None = None
    parts: list[Part] = []


class ToyTraining(UpstreamSection, upstream="transformers.TrainingArguments"):
    """Toy training."""


class ToyRecipe(Recipe, stage="toy"):
    """Does a toy."""

    data: ToyData
    training: ToyTraining


GOOD: dict[str, Any] = {"data": {"shards": "a"}, "training": {"learning_rate": 1e-3}, "run": {"dir": "r"}}


def errors_of(**changes: Any) -> str:
    """The message for the good recipe with some sections changed."""
    with pytest.raises(InputError) as caught:
        build_recipe(ToyRecipe, {**GOOD, **changes})
    return str(caught.value)


def test_upstream_keys_pass_through_and_defaults_are_filled() -> None:
    recipe = build_recipe(ToyRecipe, GOOD)
    assert recipe.training.upstream_values() == {"learning_rate": 1e-3}
    assert recipe.data.seq_length == 256
    assert to_tree(recipe)["training"] == {"learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"learning_rte": 1}, "training.learning_rte: no such key; did you mean 'learning_rate'?"),
        ("training", {"bf16": "no"}, "training.bf16: expected true/false, got 'no'"),
        ("training", {"learning_rate": "abc"}, "training.learning_rate: expected a number above 0, got 'abc'"),
        (
            "training",
            {"per_device_train_batch_size": -4},
            "training.per_device_train_batch_size: expected a whole number",
        ),
        ("training", {"max_steps": 2.5}, "training.max_steps: expected a whole number, got 2.5"),
        ("training", {"lr_scheduler_type": "cosin"}, "did you mean 'cosine'?"),
        ("training", {"max-steps": 5}, "training.max-steps: no such key; did you mean 'max_steps'?"),
        ("training", {"output_dir": "x"}, "training.output_dir: not a key of a recipe: the run folder is `run.dir`"),
        ("training", {"learning_rate": float("nan")}, "training.learning_rate: expected a number"),
        ("data", {"shards": "a", "seq_length": True}, "data.seq_length: expected a whole number above 0, got True"),
        ("data", {"shards": "a", "seq_length": 0}, "data.seq_length: expected a whole number above 0, got 0"),
        ("data", {"shards": "a", "names": [1]}, "data.names.0: expected text, got 1"),
        ("data", {"shards": "a", "learning_rate": 1}, "data.learning_rate: no such key here; did you mean 'training."),
        ("data", {}, "data.shards: missing; add it to the recipe or give --data.shards=..."),
        ("data", None, "data: expected a mapping with the keys shards, seq_length"),
    ],
)
def test_every_mistake_has_its_line(section: str, values: Any, message: str) -> None:
    assert message in errors_of(**{section: values})


def test_all_errors_come_at_once() -> None:
    text = errors_of(training={"learning_rte": 1, "bf16": "no"}, data={"shard": "a"}, rn={})
    found = ("training.learning_rte", "training.bf16", "data.shard:", "data.shards: missing", "rn: no such key")
    assert all(part in text for part in found) and text.startswith("recipe: 5 errors")


def test_a_missing_section_says_what_belongs_there() -> None:
    with pytest.raises(InputError, match="run: missing; the recipe needs a `run:` section with dir"):
        build_recipe(ToyRecipe, {k: v for k, v in GOOD.items() if k != "run"})


def test_inputs_are_found_with_their_keys() -> None:
    recipe = build_recipe(ToyRecipe, {**GOOD, "data": {"shards": "a", "others": {"x": "b"}}})
    assert [(key, str(path)) for key, path, _ in stage_inputs(recipe)] == [
        ("data.shards", "a"),
        ("data.others.x", "b"),
    ]


def test_inputs_are_found_in_lists() -> None:
    data = {"shards": "a", "more": ["b", "c"], "parts": [{"folder": "d"}, {"folder": "e", "weight": 2}]}
    recipe = build_recipe(ToyRecipe, {**GOOD, "data": data})
    found = [(key, str(path), marker.stages[0]) for key, path, marker in stage_inputs(recipe)][1:]
    assert found == [
        ("data.more.0", "b", "sft"), ("data.more.1", "c", "sft"),
        ("data.parts.0.folder", "d", "prepare_data"), ("data.parts.1.folder", "e", "prepare_data"),
    ]  # fmt: skip


def test_a_record_of_an_earlier_version_has_later_keys_at_their_defaults() -> None:
    wanted = to_tree(build_recipe(ToyRecipe, {**GOOD, "data": {"shards": "a", "parts": [{"folder": "d"}]}}))
    record = {**wanted, "data": {"shards": "a", "parts": [{"folder": "d"}], "seq_length": 256}}
    assert with_defaults(ToyRecipe, record, wanted) == wanted
    changed = build_recipe(ToyRecipe, {**GOOD, "data": {"shards": "a", "names": ["x"]}})
    assert with_defaults(ToyRecipe, record, to_tree(changed)) != to_tree(changed)
    given = build_recipe(ToyRecipe, {**GOOD, "training": {"learning_rate": 1e-3, "bf16": True}})
    assert "bf16" not in with_defaults(ToyRecipe, record, to_tree(given))["training"]


def test_load_applies_overrides(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("data: {shards: a}\ntraining:\n  learning_rate: 3e-4\nrun: {dir: r}\n")
    recipe = load_recipe(ToyRecipe, path, ["--training.max_steps=7", "--data.seq_length", "8", "--data.names=[a, b]"])
    assert recipe.training.upstream_values() == {"learning_rate": 3e-4, "max_steps": 7}
    assert (recipe.data.seq_length, recipe.data.names) == (8, ["a", "b"])
    assert recipe.source == path


def test_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    from ingot.recipe_yaml import dump_yaml

    recipe = build_recipe(ToyRecipe, GOOD)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(to_tree(recipe)))
    assert to_tree(load_recipe(ToyRecipe, path)) == to_tree(recipe)


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--config", "absent.yaml"], 2), ([], 2)])
def test_exit_codes(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(ToyRecipe, lambda recipe: {}, words)
    assert caught.value.code == code


def test_help_lists_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(ToyRecipe, lambda recipe: {}, ["--help"])
    text = capsys.readouterr().out
    assert "--data.seq_length  a whole number, default 256" in text and "learning_rate" in text


def test_print_config_shows_the_resolved_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("data: {shards: a}\ntraining: {}\nrun: {dir: r}\n")
    with pytest.raises(SystemExit) as caught:
        main(ToyRecipe, lambda recipe: {}, ["--config", str(path), "--print-config"])
    assert caught.value.code == 0 and "seq_length: 256" in capsys.readouterr().out


def test_nearly_every_misspelt_training_key_gets_the_right_suggestion() -> None:
    from ingot.recipe_errors import nearest
    from ingot.upstream import fields_of

    known = set(fields_of("transformers.TrainingArguments"))
    tried = right = 0
    for key in sorted(known):
        middle = len(key) // 2
        swapped = key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :]
        for wrong in {key[:middle] + key[middle + 1 :], swapped, key + "s", "x" + key} - known:
            tried += 1
            right += nearest(wrong, known) == key
    assert right / tried >= 0.95, f"{right} of {tried}"


def test_resume_and_restart_are_short_forms(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ingot.training.pretrain import PretrainRecipe

    words = ["--config", str(root / "recipes/quickstart/pretrain.yaml")]
    assert parse_command_line(PretrainRecipe, words).run.on_change() == "refuse"
    assert parse_command_line(PretrainRecipe, [*words, "--resume"]).run.on_change() == "resume"
    assert parse_command_line(PretrainRecipe, ["--restart", *words]).run.on_change() == "restart"
    with pytest.raises(SystemExit):
        parse_command_line(PretrainRecipe, ["--help"])
    assert "[--resume | --restart]" in capsys.readouterr().out
    config = root / "recipes/quickstart/prepare_data.yaml"
    with pytest.raises(InputError, match="run.if_changed: no such key"):
        parse_command_line(DataRecipe, ["--config", str(config), "--resume"])
