"""Every key of every stage's recipe, misspelt by one letter: is the right one suggested?"""

import random
import string
import typing
from collections.abc import Callable, Iterator
from typing import Any

from ingot.cli import STAGES, recipe_class
from ingot.faults.workplace import Result, Workplace
from ingot.recipe import InputError, Section, build_recipe
from ingot.sections import expanded, field_names, section_of

ASKED = "every key of every recipe with one letter dropped, swapped or inserted: the right suggestion in at least 95%"
NEEDED = 0.95
Path = tuple[str | int, ...]


def known_keys(section: type[Section], at: Path = ()) -> Iterator[tuple[Path, set[str]]]:
    """The path of every key of a recipe, with the names beside it; 0 stands for an item of a list."""
    whole = expanded(section)
    names = set(field_names(whole))
    for name, field in whole.model_fields.items():
        key = field.alias or name
        yield (*at, key), names
        inner = section_of(field.annotation)
        if inner is not None and not _is_mapping(field.annotation):
            yield from known_keys(inner, (*at, key, 0) if _is_list(field.annotation) else (*at, key))


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is list or any(_is_list(a) for a in typing.get_args(annotation))


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict or any(_is_mapping(a) for a in typing.get_args(annotation))


def drop(key: str, rng: random.Random) -> str:
    """Leaves a letter out."""
    at = rng.randrange(len(key))
    return key[:at] + key[at + 1 :]


def swap(key: str, rng: random.Random) -> str:
    """Exchanges two neighbours."""
    at = rng.randrange(len(key) - 1)
    return key[:at] + key[at + 1] + key[at] + key[at + 2 :]


def insert(key: str, rng: random.Random) -> str:
    """Puts a letter in."""
    at = rng.randrange(len(key) + 1)
    return key[:at] + rng.choice(string.ascii_lowercase) + key[at:]


EDITS: tuple[Callable[[str, random.Random], str], ...] = (drop, swap, insert)


def suggestions(seed: int, stages: tuple[str, ...] = tuple(STAGES)) -> dict[str, Any]:
    """Misspells every key three times: how many there are, how often the right one is named, and the others.

    An edit that makes another known key, or the same one, is drawn anew; a key of one letter has only insertions.
    """
    rng = random.Random(f"{seed} keys")
    tried, missed = 0, []
    for stage in stages:
        for path, names in known_keys(recipe_class(stage)):
            for edit in EDITS:
                typo = _typo(str(path[-1]), names, edit, rng)
                if typo is None:
                    continue
                tried += 1
                said = refusal(stage, path, typo)
                if f"did you mean '{path[-1]}'?" not in said:
                    missed.append(f"{stage}: {'.'.join(map(str, path))} as {typo}: {said}")
    return {"edits": tried, "right": tried - len(missed), "share": round(1 - len(missed) / tried, 4), "missed": missed}


def _typo(key: str, names: set[str], edit: Callable[[str, random.Random], str], rng: random.Random) -> str | None:
    if len(key) < 2 and edit is not insert:
        return None
    found = (edit(key, rng) for _ in range(20))
    return next((typo for typo in found if typo and typo not in names), None)


def refusal(stage: str, path: Path, typo: str) -> str:
    """The line that a recipe with this key alone is refused with."""
    tree: Any = {typo: None}
    for part in reversed(path[:-1]):
        tree = [tree] if isinstance(part, int) else {part: tree}
    name = ".".join(map(str, (*path[:-1], typo)))
    try:
        build_recipe(recipe_class(stage), tree)
    except InputError as error:
        lines = [line.removeprefix("recipe: ") for line in str(error).split("\n")]
        return next((line for line in lines if line.startswith(f"{name}: ")), "nothing is said of it")
    return "it is accepted"


def recipe_keys(work: Workplace) -> Result:
    """All stages, or pretrain alone in the short form."""
    stages = ("pretrain",) if work.short else tuple(STAGES)
    measured = work.processes.call(suggestions, work.seed, stages)
    passed = measured["share"] >= NEEDED
    return {"name": "recipe_keys", "asked": ASKED, "measured": measured, "passed": passed}
