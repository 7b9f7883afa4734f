"""The text side of recipes."""

import re
from pathlib import Path

import pytest

from ingot.recipe_yaml import InputError, apply_overrides, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("3e-4", 0.0003), ("no", "no"), ("yes", "yes"), ("true", True), ("null", None), ("0x10", 16)],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text, "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\n", "line 3"),
        ("a: 1\na: 2\n", "line 2"),
        ("a: &x 1\nb: *x\n", "line 2: aliases are not supported"),
        ("a: !!python/object:os.system x\n", "line 1"),
        ("a:\n\t- 1\n", "line 2"),
        ("- 1\n", "expected sections such as `run:`, got list"),
        ("", "got an empty file"),
        ("a: \x00\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_yaml(path)


def test_a_folder_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ingot run"):
        read_yaml(tmp_path)


def test_overrides_make_sections_and_leave_the_tree_alone() -> None:
    tree = {"a": {"b": 1}}
    changed = apply_overrides(tree, ["--a.b=2", "--c.d.e", "x y", "--f=-1"])
    assert changed == {"a": {"b": 2}, "c": {"d": {"e": "x y"}}, "f": -1}
    assert tree == {"a": {"b": 1}}


def test_overrides_reach_into_lists() -> None:
    tree = {"a": [{"b": 1, "c": 2}, {"b": 3}], "n": ["x", "y"]}
    changed = apply_overrides(tree, ["--a.1.b=4", "--a.0.d.e=5", "--n.1=z"])
    assert changed == {"a": [{"b": 1, "c": 2, "d": {"e": 5}}, {"b": 4}], "n": ["x", "z"]}
    assert tree == {"a": [{"b": 1, "c": 2}, {"b": 3}], "n": ["x", "y"]}
    for words, message in (
        ("--a.2.b=4", "--a.2.b: 'a.2' is no item of a list of 2; they are numbered from 0"),
        ("--a.b=4", "'a.b' is no item of a list"),
        ("--n.0.b=4", "'n.0' is not a section of the recipe"),
        ("--n.-1=4", "'n.-1' is no item"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            apply_overrides(tree, [words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--a..b=1"], "--a..b: not a key"),
        (["--=1"], "--: not a key"),
        (["a.b=1"], "a.b=1: not an option"),
        (["--a.b"], "--a.b: needs a value"),
        (["--a.b", "--c=1"], "--a.b: needs a value"),
        (["--a.b.c=1"], "'a.b' is not a section"),
        (["--a.b=[1"], "--a.b"),
    ],
)
def test_wrong_overrides(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides({"a": {"b": 1}}, words)
    assert message in str(caught.value)


def test_text_on_the_command_line_has_no_comments() -> None:
    assert apply_overrides({}, ["--run.dir=exp #3", "--a='x # y'"]) == {"run": {"dir": "exp #3"}, "a": "x # y"}
