"""What a wrong recipe is told: one line for every key, with the nearest right one."""

import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic_core import ErrorDetails

from ingot.sections import Recipe, Section, UpstreamSection, expanded, field_names, section_of
from ingot.upstream import ELSEWHERE


def one_per_key(errors: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """A union yields an error for every member; keep the first of each key, cut at the part that pydantic adds."""
    kept: dict[tuple[Any, ...], ErrorDetails] = {}
    for error in errors:
        kept.setdefault(_key_path(error["loc"]), error)
    return list(kept.values())


def _key_path(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The path without the type names that pydantic adds for members of a union."""
    return tuple(p for p in location if isinstance(p, int) or "[" not in p and p not in _TYPE_NAMES)


_TYPE_NAMES = {"bool", "int", "float", "str", "none", "constrained-str", "constrained-int", "constrained-float"}


def message(recipe_class: type[Recipe], error: ErrorDetails) -> str:
    """One line on a validation error: the dotted key, what is wrong and the way out."""
    path = _key_path(error["loc"])
    name = ".".join(str(p) for p in path)
    if error["type"] == "extra_forbidden":
        return f"{name}: {_unknown(recipe_class, path)}"
    if error["type"] == "missing":
        return f"{name}: {_missing(recipe_class, path)}"
    if error["type"] == "too_short" and not error["input"]:
        return f"{name}: is empty; give at least {error['ctx']['min_length']}"
    if error["type"] in ("value_error", "assertion_error"):
        return f"{name}: {error['msg'].removeprefix('Value error, ')}"
    expected = _describe_field(recipe_class, path) or error["msg"]
    near = nearest(str(error["input"]), set(re.findall(r"[\w-]+", expected))) if "one of" in expected else None
    hint = f"; did you mean '{near}'?" if near else ""
    return f"{name}: expected {expected}, got {error['input']!r}{hint}"


def _missing(recipe_class: type[Recipe], path: tuple[int | str, ...]) -> str:
    section = _section_at(recipe_class, path)
    if section is not None:
        keys = ", ".join(_required_names(section)) or "its keys"
        return f"missing; the recipe needs a `{path[-1]}:` section with {keys}"
    return f"missing; add it to the recipe or give --{'.'.join(map(str, path))}=..."


def _required_names(section: type[Section]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items() if field.is_required()]


def _unknown(recipe_class: type[Recipe], path: tuple[int | str, ...]) -> str:
    """What to say of an unknown key: where else it is set, the nearest key here, or the section that has it."""
    key, parent = str(path[-1]), _section_at(recipe_class, path[:-1])
    known = set(field_names(parent)) if parent else set()
    if parent is not None and issubclass(parent, UpstreamSection) and key in ELSEWHERE:
        return f"not a key of a recipe: {ELSEWHERE[key]}"
    near = nearest(key, known)
    if near:
        return f"no such key; did you mean '{near}'?"
    others = [
        s
        for s, f in recipe_class.model_fields.items()
        if (c := section_of(f.annotation)) and key in field_names(expanded(c))
    ]
    if others:
        return f"no such key here; did you mean '{others[0]}.{key}'?"
    shown = ", ".join(sorted(known)) if len(known) <= 20 else f"{len(known)} keys, see --help"
    return f"no such key; the section has: {shown}"


def nearest(key: str, known: set[str]) -> str | None:
    """The known key that a misspelt one most likely meant, or None."""
    folded = {k.lower().replace("-", "_"): k for k in sorted(known)}
    match = difflib.get_close_matches(key.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return folded[match[0]] if match else None


def _field_at(recipe_class: type[Section], path: tuple[int | str, ...]) -> Any:
    """The pydantic field at a path of keys, or None; list indexes are passed over."""
    section: type[Section] | None = expanded(recipe_class)
    found = None
    for part in (p for p in path if isinstance(p, str)):
        if section is None:
            return None
        fields = {f.alias or name: f for name, f in section.model_fields.items()}
        found = fields.get(part)
        inner = section_of(found.annotation) if found else None
        section = expanded(inner) if inner else None
    return found


def _section_at(recipe_class: type[Section], path: tuple[int | str, ...]) -> type[Section] | None:
    if not any(isinstance(p, str) for p in path):
        return expanded(recipe_class)
    field = _field_at(recipe_class, path)
    inner = section_of(field.annotation) if field else None
    return expanded(inner) if inner else None


def _describe_field(recipe_class: type[Section], path: tuple[int | str, ...]) -> str | None:
    field = _field_at(recipe_class, path)
    if field is None:
        return None
    annotation = field.annotation
    if path and isinstance(path[-1], int):  # an element of a list
        lists = [a for a in (annotation, *typing.get_args(annotation)) if typing.get_origin(a) is list]
        annotation = typing.get_args(lists[0])[0] if lists else annotation
    bounds = [f"{_BOUND_WORDS[n]} {getattr(m, n)}" for m in field.metadata for n in _BOUND_WORDS if n in dir(m)]
    return " ".join([describe(annotation), " and ".join(bounds)]).rstrip()


_BOUND_WORDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
_TYPE_WORDS: dict[Any, str] = {
    bool: "true/false", int: "a whole number", float: "a number", str: "text", Path: "a path",
    type(None): "null", list: "a list", dict: "a mapping", Any: "a value",
}  # fmt: skip


def describe(annotation: Any) -> str:
    """A type in words, for an error message."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [describe(a) for a in arguments if a is not type(None)]
        return " or ".join(sorted(set(words), key=words.index))
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"a mapping with the keys {', '.join(field_names(annotation))}"
    return _TYPE_WORDS.get(origin or annotation, str(annotation))
