"""Recipes: YAML and `--a.b=c` overrides become typed sections; every error is reported at once.

A recipe class has sections (`model`, `data`, `training`, `run`), each a strict pydantic model. An `UpstreamSection`
also takes the keys of an upstream class (`transformers.TrainingArguments`, ...) under their upstream names.
"""

import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from pydantic import ValidationError

from ingot.recipe_errors import describe, message, nearest, one_per_key
from ingot.recipe_yaml import InputError, apply_overrides, dump_yaml, read_yaml
from ingot.sections import (
    FilePath,
    Recipe,
    RunSection,
    Section,
    StageFolder,
    UpstreamSection,
    expanded,
    field_names,
    section_of,
)
from ingot.upstream import ELSEWHERE, fields_of

__all__ = [
    "FilePath", "InputError", "Recipe", "RunSection", "Section", "StageFolder", "UpstreamSection",
    "build_recipe", "describe_keys", "load_recipe", "main", "nearest", "stage_inputs", "to_tree", "with_defaults",
]  # fmt: skip

R = TypeVar("R", bound=Recipe)

# what a training stage does with an interrupted run whose recipe was another
SHORT_FORMS = {"--resume": "--run.if_changed=resume", "--restart": "--run.if_changed=restart"}


def build_recipe(recipe_class: type[R], tree: dict[str, Any], source: str = "recipe") -> R:
    """Checks a tree of keys and values against a recipe class.

    Raises: InputError with one line for every wrong key.
    """
    try:
        recipe = cast(R, expanded(recipe_class).model_validate(tree))
    except ValidationError as error:
        _refuse(source, [message(recipe_class, e) for e in one_per_key(error.errors())])
    problems = list(recipe.problems())
    if problems:
        _refuse(source, problems)
    return recipe


def _refuse(source: str, lines: Sequence[str]) -> NoReturn:
    unique = list(dict.fromkeys(lines))
    title = f"{source}: {len(unique)} errors\n" if len(unique) > 1 else f"{source}: "
    raise InputError(title + "\n".join(unique))


def load_recipe(recipe_class: type[R], path: Path, overrides: Sequence[str] = ()) -> R:
    """Reads a YAML recipe, applies `--a.b=c` overrides and checks the result.

    Raises: InputError that names the file and every wrong line or key.
    """
    recipe = build_recipe(recipe_class, apply_overrides(read_yaml(path), overrides), str(path))
    recipe._source = path
    return recipe


def to_tree(recipe: Section) -> dict[str, Any]:
    """The resolved recipe as plain values: own keys with their defaults, upstream keys as given."""
    tree: dict[str, Any] = {}
    own = type(recipe).model_fields
    upstream = set(fields_of(recipe.upstream)) if isinstance(recipe, UpstreamSection) else set()
    for name, field in own.items():
        if name in upstream and name not in recipe.model_fields_set:
            continue
        tree[field.alias or name] = _plain(getattr(recipe, name))
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return to_tree(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def stage_inputs(recipe: Section, prefix: str = "") -> Iterator[tuple[str, Path, StageFolder]]:
    """Every key that names the output of an earlier stage: (dotted key, path, marker); unset ones are left out."""
    for name, field in type(recipe).model_fields.items():
        key, value = f"{prefix}{field.alias or name}", getattr(recipe, name)
        items = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else None
        parts = [(key, value)] if items is None else [(f"{key}.{k}", v) for k, v in items.items()]
        for place, part in parts:
            if isinstance(part, Section):
                yield from stage_inputs(part, f"{place}.")
        for marker in (m for m in _markers(field) if value is not None):
            yield from ((place, Path(part), marker) for place, part in parts)


def _markers(field: Any) -> list[StageFolder]:
    """StageFolder marks on the field itself or inside `Annotated[...] | None`, `dict[str, ...]` and `list[...]`."""
    found = [m for m in field.metadata if isinstance(m, StageFolder)]
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        found += [m for m in typing.get_args(annotation)[1:] if isinstance(m, StageFolder)]
        pending += [a for a in typing.get_args(annotation) if typing.get_args(a)]
    return found


def with_defaults(section: type[Section], record: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A recorded tree with the keys that only `wanted` has at their defaults: a later version brought them."""
    filled = dict(record)
    given_or_not = set(fields_of(section.upstream)) if issubclass(section, UpstreamSection) else set()
    for name, field in section.model_fields.items():
        key, inner = field.alias or name, section_of(field.annotation)
        here, there = record.get(key), wanted.get(key)
        if inner is not None and isinstance(here, dict) and isinstance(there, dict):
            filled[key] = with_defaults(inner, here, there)
        elif inner is not None and isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
            filled[key] = [with_defaults(inner, h, t) for h, t in zip(here, there, strict=True)]
        elif key in wanted and key not in record and name not in given_or_not and not field.is_required():
            filled[key] = _plain(field.get_default(call_default_factory=True))
    return filled


def describe_keys(section: type[Section], prefix: str = "") -> str:
    """The keys of a recipe with types, defaults and meaning, for --help."""
    lines = []
    for name, field in section.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", _without_none(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            lines.append(describe_keys(inner, f"{key}."))
            continue
        default = (
            "required" if field.is_required() else f"default {_plain(field.get_default(call_default_factory=True))}"
        )
        lines.append(f"  --{key}  {describe(field.annotation)}, {default}\n      {field.description or ''}".rstrip())
    if issubclass(section, UpstreamSection):
        names = ", ".join(sorted(set(fields_of(section.upstream)) - set(ELSEWHERE)))
        lines.append(f"  --{prefix}*  any field of {section.upstream}:\n      {names}")
    return "\n".join(lines)


def _without_none(annotation: Any) -> Any:
    """X of `X | None`; anything else as it is."""
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    return options[0] if len(options) == 1 and type(None) in typing.get_args(annotation) else annotation


def main(recipe_class: type[R], run: Callable[[R], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """The body of every script: reads the command line, checks the recipe and its inputs, runs the stage, exits.

    Exit codes: 0 done, 2 wrong input, 3 the run failed, 130 interrupted.
    """
    from ingot.failures import end_with

    end_with(lambda: run(parse_command_line(recipe_class, sys.argv[1:] if argv is None else argv)))


def parse_command_line(recipe_class: type[R], argv: Sequence[str]) -> R:
    """`--config FILE [--a.b=c ...]` -> a checked recipe; `--help` and `--print-config` print and exit."""
    arguments = list(argv)
    if "--help" in arguments or "-h" in arguments:
        changed = "[--resume | --restart] " if "if_changed" in section_keys(recipe_class, "run") else ""
        print(f"usage: {recipe_class.stage} --config FILE [--print-config] {changed}[--section.key=value ...]\n")
        print(f"{recipe_class.__doc__}\n\nkeys:\n{describe_keys(recipe_class)}")
        sys.exit(0)
    show = "--print-config" in arguments
    arguments = [a for a in arguments if a != "--print-config"]
    config, overrides = _take_config(recipe_class.stage, [SHORT_FORMS.get(a, a) for a in arguments])
    recipe = load_recipe(recipe_class, config, overrides)
    if show:
        print(dump_yaml(to_tree(recipe)), end="")
        sys.exit(0)
    return recipe


def section_keys(recipe_class: type[Recipe], name: str) -> list[str]:
    """The keys of one section of a recipe."""
    section = section_of(recipe_class.model_fields[name].annotation)
    return [] if section is None else field_names(section)


def _take_config(stage: str, arguments: list[str]) -> tuple[Path, list[str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config=")), arguments[:i] + arguments[i + 1 :]
        if argument == "--config" and i + 1 < len(arguments):
            return Path(arguments[i + 1]), arguments[:i] + arguments[i + 2 :]
    raise InputError(f"{stage}: give a recipe: --config recipes/quickstart/{stage}.yaml (--help lists the keys)")
