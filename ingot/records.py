"""Records of what a run depends on: taking keys out of them, and telling two apart."""

from collections.abc import Mapping
from typing import Any

from ingot.recipe import Recipe, with_defaults


def drop(tree: Any, key: str) -> None:
    """Takes a dotted key out of a tree; an entry of a list becomes None."""
    head, _, rest = key.partition(".")
    if isinstance(tree, list):
        if rest:
            drop(tree[int(head)], rest)
        else:
            tree[int(head)] = None
    elif key in tree:
        del tree[key]
    elif rest and isinstance(tree.get(head), dict | list):
        drop(tree[head], rest)


def is_of(record: Mapping[str, Any], recipe: Recipe, wanted: Mapping[str, Any]) -> bool:
    """Whether a record has the identity that is wanted; a key that a later version brought stands at its default."""
    tree = record.get("recipe")
    if isinstance(tree, dict):
        record = {**record, "recipe": with_defaults(type(recipe), tree, wanted["recipe"])}
    return all(record.get(k) == v for k, v in wanted.items())


def shared(tree: Any, other: Any) -> Any:
    """A tree without the keys that another has not."""
    if isinstance(tree, dict) and isinstance(other, dict):
        return {key: shared(value, other[key]) for key, value in tree.items() if key in other}
    return tree


def differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """What changed between two records, one `key: old -> new` for each leaf."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in {**found, **wanted} if prefix or k in wanted]
        return [line for k in keys for line in differences(found.get(k), wanted.get(k), f"{prefix}{k}.")]
    name = prefix.rstrip(".").removeprefix("recipe.")
    if found == wanted:
        return []
    return [f"{name} changed" if name.startswith(("inputs.", "sources")) else f"{name}: {found!r} -> {wanted!r}"]
