"""How the units of a corpus are shared out among tasks, and the keys by which a task's finished work is known again.

Both are pure functions of the files and the recipe: the machine and its number of cores change nothing.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.data.sources import Corpus, Unit
from ingot.runs import sha256_file, sha256_json

ONE_EACH = 64  # up to so many units, each is a task
FIRST_BITS = 6  # above that, they fall into 64 groups by the hash of their names
TASK_BYTES = 1 << 30  # a larger group is halved, by the next bit
EXPANSION = 3  # bytes of text in a byte of a compressed file, roughly
PACKED = (".gz", ".zst", ".xz", ".bz2", ".parquet")
VERSION = 1  # of what is written; a change makes everything anew
_Weighed = tuple[int, float, Unit]  # hash of the name, bytes of text, unit


@dataclass(frozen=True)
class Task:
    """Units that one process reads one after another."""

    units: tuple[Unit, ...]

    @property
    def place(self) -> str:
        """What a message calls this task."""
        more = f" and {len(self.units) - 1} more" if len(self.units) > 1 else ""
        return f"{self.units[0].place}{more}"


def make_tasks(units: Sequence[Unit]) -> list[Task]:
    """Up to 64 units are a task each; more are grouped so that an added file touches one task, or splits it."""
    if len(units) <= ONE_EACH:
        return [Task((unit,)) for unit in units]
    shares: dict[int, list[_Weighed]] = {}
    for unit, weight in zip(units, _text_bytes(units), strict=True):
        bits = _bits(unit)
        shares.setdefault(bits >> 64 - FIRST_BITS, []).append((bits, weight, unit))
    groups = (group for share in sorted(shares) for group in _halved(shares[share], FIRST_BITS))
    return [Task(tuple(unit for _, _, unit in group)) for group in groups]


def _bits(unit: Unit) -> int:
    name = f"{unit.name}:{unit.start}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _halved(group: list[_Weighed], depth: int) -> Iterator[list[_Weighed]]:
    if len(group) <= 1 or depth == 64 or sum(weight for _, weight, _ in group) <= TASK_BYTES:
        yield from [group] if group else []
        return
    for side in (0, 1):
        yield from _halved([member for member in group if member[0] >> 63 - depth & 1 == side], depth + 1)


def _text_bytes(units: Sequence[Unit]) -> list[float]:
    """About how much text each unit holds; a part of a parquet file is counted in row groups, other parts in bytes."""
    whole: dict[str, int] = {}
    for unit in units:
        whole[unit.name] = max(whole.get(unit.name, 1), unit.stop or 1)
    shares = ((unit.stop - unit.start) / whole[unit.name] if unit.stop is not None else 1.0 for unit in units)
    return [
        (unit.size or 0) * share * (EXPANSION if str(unit.path).endswith(PACKED) else 1)
        for unit, share in zip(units, shares, strict=True)
    ]


def text_key(task: Task, hashes: Mapping[str, str], corpus: Corpus, cleaning: Any) -> str:
    """Identifies the documents of a task: what its files hold, how they are read and how they are cleaned.

    `cleaning` is whatever else cleaning depends on, such as the content of benchmarks.
    """
    units = [[unit.name, unit.start, unit.stop, _content(unit, hashes), _reading(unit)] for unit in task.units]
    rules = corpus.model_dump(mode="json", include={"filters", "decontaminate", "pii"})
    return sha256_json([VERSION, units, rules, cleaning])


def _content(unit: Unit, hashes: Mapping[str, str]) -> Any:
    """The hash of a unit's file or, where there is none to hash, the best name of its content."""
    if unit.path is None:
        return [unit.source.hub, unit.source.subset, unit.source.revision, unit.source.dataset_split]
    if unit.source.builtin is not None:  # its table and its list of hashes
        return sorted(digest for name, digest in hashes.items() if name.startswith(f"{unit.path}/"))
    return hashes.get(unit.path) or [unit.path, unit.size]


def _reading(unit: Unit) -> Any:
    settings = unit.source.model_dump(mode="json", exclude={"path"})
    template = unit.source.conversations and unit.source.conversations.chat_template
    if template and template.is_dir():
        template = template / "chat_template.jinja"
    return [settings, sha256_file(template) if template and template.is_file() else None]


def judged_key(text: str, corpus: Corpus) -> str:
    """Identifies what the first pass notes about a task's documents."""
    split = corpus.split.model_dump(mode="json", include={"group", "stratify", "seed"})
    asked = corpus.model_dump(mode="json", include={"dedup", "minhash"})
    return sha256_json([text, split, asked])


def shards_key(text: str, decisions: str, tokenizer: Sequence[Any], corpus: Corpus) -> str:
    """Identifies a task's shards: its text, which documents go where, and the tokenizer with its end token."""
    kept = corpus.model_dump(mode="json", include={"keep_dropped"})
    return sha256_json([text, decisions, list(tokenizer), kept])
