"""Recipes as text: sections of keys, each with the reason for its value beside it."""

import json
import re
from collections.abc import Iterable
from typing import Any

Row = tuple[str, Any, str]  # key, value, why
COLUMN = 28  # where comments begin


class Raw(str):
    """A value that is YAML already."""


def quoted(value: Any) -> str:
    """A value as YAML 1.2: numbers and plain words as they are, other text in quotes."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _number(value)
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][\w./-]*", text) and text.lower() not in ("true", "false", "null", "yes", "no")
    return text if isinstance(value, int) or plain else json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    """Always with a point, so that it is read as one: 0.1, 6.0e-4; below a hundredth with two digits."""
    text = f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.6g}"
    mantissa, e, exponent = text.partition("e")
    mantissa += "" if "." in mantissa else ".0"
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def section(name: str, rows: Iterable[Row]) -> str:
    """One section of a recipe; the comments stand below each other."""
    lines = [f"{name}:"]
    for key, value, why in rows:
        line = f"  {key}: {quoted(value)}"
        lines.append(f"{line:<{COLUMN - 1}} # {why}" if why else line)
    return "\n".join(lines)


def recipe(title: str, *sections: str) -> str:
    """A whole file: what it is in comments, then its sections."""
    heading = "\n".join(f"# {line}".rstrip() for line in title.split("\n"))
    return heading + "\n" + "\n\n".join(sections) + "\n"
