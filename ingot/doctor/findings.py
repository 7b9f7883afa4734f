"""What a check found, in one line: its state, what it is about, and the way out."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
COLOURS = {"ok": "32", "warn": "33", "fail": "31"}
WIDTH = 119
INDENT = 6  # columns of the status


@dataclass(frozen=True)
class Finding:
    """One fact about the machine or a run; `way` says what to do when the status is not ok."""

    status: Status
    what: str
    text: str
    way: str = ""


def ok(what: str, text: str) -> Finding:
    """A fact with nothing to do about it."""
    return Finding("ok", what, text)


def warn(what: str, text: str, way: str) -> Finding:
    """A fact that stands in the way of something that not everyone needs."""
    return Finding("warn", what, text, way)


def fail(what: str, text: str, way: str) -> Finding:
    """A fact that stands in the way."""
    return Finding("fail", what, text, way)


def examined(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds; one that cannot end is itself a finding, and the others go on."""
    try:
        yield from check()
    except Exception as error:
        yield fail(name, f"this check could not end: {type(error).__name__}: {error}", "report it with this line")


def shown(finding: Finding, width: int) -> str:
    """The lines of one finding on a terminal; `width`: columns of its name."""
    status = finding.status
    coloured = f"\033[{COLOURS[status]}m{status:<4}\033[0m" if sys.stdout.isatty() else f"{status:<4}"
    indent = " " * (INDENT + width + 2)
    body = textwrap.wrap(finding.text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    lines = [f"{coloured}  {finding.what:<{width}}  {body[0]}", *(indent + line for line in body[1:])]
    if finding.way:
        lines.append(f"{indent}-> {finding.way}")
    return "\n".join(lines)


def as_tree(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings for --json."""
    return [asdict(finding) for finding in findings]


def fails(findings: Iterable[Finding]) -> bool:
    """Whether one of them stands in the way."""
    return any(finding.status == "fail" for finding in findings)


def gigabytes(number: float) -> str:
    """Bytes as people read them: 1.5 GB, 12 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
