"""The text side of recipes: YAML 1.2 files and `--a.b=c` overrides to plain trees, and back."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

MAX_DEPTH = 30


class InputError(ValueError):
    """A mistake of the user's, told in words that name the file, key or row and the way out."""


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    return yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a recipe file: a mapping of sections.

    Raises: InputError that names the file and, for a syntax error, its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a recipe file in it, or use `ingot run {path}`") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        found = "an empty file" if tree is None else type(tree).__name__
        raise InputError(f"{path}: expected sections such as `run:`, got {found}")
    return tree


def parse_yaml(text: str, source: str) -> Any:
    """One YAML 1.2 document as plain values: `no` is text, `1e-3` a number; aliases and doubled keys are refused."""
    try:
        depth = 0
        for event in _yaml().parse(text):
            line = event.start_mark.line + 1
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                message = f"not valid YAML for a recipe: nested more than {MAX_DEPTH} deep"
                raise InputError(f"{source}, line {line}: {message}")
            if isinstance(event, AliasEvent):
                raise InputError(f"{source}, line {line}: aliases are not supported; write the value out")
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{line}: not valid YAML: {_first_line(error.problem or error.context)}") from None
    except (YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: not valid YAML: {_first_line(str(error) or type(error).__name__)}") from None


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def dump_yaml(tree: dict[str, Any]) -> str:
    """A tree of plain values as YAML text, keys in order."""
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()


def split_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--a.b=c` and `--a.b c` as (dotted key, text of the value).

    Raises: InputError for a word that is neither.
    """
    pairs, pending = [], list(arguments)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--") or word == "--":
            raise InputError(f"{word}: not an option; overrides look like --training.learning_rate=3e-4")
        key, separator, value = word[2:].partition("=")
        if not separator:
            if not pending or pending[0].startswith("--"):
                raise InputError(f"--{key}: needs a value: --{key}=VALUE")
            value = pending.pop(0)
        pairs.append((key, value))
    return pairs


def apply_overrides(tree: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """A copy of the tree with the overrides put in; values are YAML scalars, lists or mappings."""
    for key, text in split_overrides(arguments):
        if not all(key.split(".")):
            raise InputError(f"--{key}: not a key; overrides look like --training.learning_rate=3e-4")
        tree = _put(tree, key, _value(text, f"--{key}"), key)
    return dict(tree)


def _value(text: str, source: str) -> Any:
    """A YAML value; plain text stays as it was typed, because `#` begins no comment on a command line."""
    value = parse_yaml(text, source)
    return text if isinstance(value, str) and text[:1] not in ("'", '"') else value


def _put(node: Any, key: str, value: Any, whole: str) -> Any:
    """The node with a value at a dotted key; a name with dots in it is found when it is there (`qwen3-0.6b`)."""
    head, _, rest = key.partition(".")
    if isinstance(node, list):
        return _put_in_list(node, head, rest, value, whole)
    if not rest or key in node:
        return {**node, key: value}
    inner = node.get(head)
    if inner is not None and not isinstance(inner, dict | list):
        raise InputError(f"--{whole}: '{whole.removesuffix(f'.{rest}')}' is not a section of the recipe")
    return {**node, head: _put({} if inner is None else inner, rest, value, whole)}


def _put_in_list(items: list[Any], head: str, rest: str, value: Any, whole: str) -> list[Any]:
    """The list with a value at the item whose number is `head`, counted from 0, or at a key in that item."""
    name = whole.removesuffix(f".{rest}") if rest else whole
    if not head.isdecimal() or int(head) >= len(items):
        raise InputError(f"--{whole}: '{name}' is no item of a list of {len(items)}; they are numbered from 0")
    at = int(head)
    if rest and not isinstance(items[at], dict | list):
        raise InputError(f"--{whole}: '{name}' is not a section of the recipe")
    return [*items[:at], _put(items[at], rest, value, whole) if rest else value, *items[at + 1 :]]
