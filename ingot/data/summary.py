"""What prepare_data tells about a corpus: data.json with every source and shard, the stage's results, the report."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.data.parts import Parts
from ingot.data.selection import Selection
from ingot.data.shard_writer import PartialFile
from ingot.data.splits import SPLITS
from ingot.data.tasks import Task
from ingot.data.writing import DROPPED_TEXTS, Tokens
from ingot.runs import versions

COUNTS = ("documents", "bytes", "tokens")
NOT_RESULTS = ("dtype", "splits", "end_of_document", "sources", "versions")


@dataclass
class Sources:
    """The sources of a corpus, to be described file by file; `hashes` are by path."""

    tasks: Sequence[Task]
    hashes: Mapping[str, str]

    def described(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Every source with its bytes, sha256, documents that were read, and drops by reason; found: by task."""
        units = [unit for task in self.tasks for unit in task.units]
        read = [count for part in found for count in part["read"]]
        dropped = [counts for part in found for counts in part["dropped"]]
        rows: dict[str, dict[str, Any]] = {}
        for unit, documents, counts in zip(units, read, dropped, strict=True):
            row = rows.setdefault(unit.name, {"name": unit.place, **self._file(unit.path, unit.size)})
            row["documents"] = row.get("documents", 0) + documents
            row["dropped"] = dict(Counter(row.get("dropped", {})) + Counter(counts))
        return list(rows.values())

    def _file(self, path: str | None, size: int | None) -> dict[str, Any]:
        if path is None or os.path.isdir(path):
            inside = {name: self.hashes[name] for name in self.hashes if path and name.startswith(f"{path}/")}
            return {"files": inside} if inside else {}
        return {"bytes": size, "sha256": self.hashes.get(path)}


def summarise(
    chosen: Selection, tokens: Tokens, parts: Parts, sources: Sources
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Joins the tasks' held-out texts and adds everything up.

    Returns: the content of data.json; and for every shard, by its name in the folder, its bytes and sha256.
    """
    found = [parts.read(rank) for rank in range(len(chosen.tasks))]
    dropped = sum((Counter(counts) for part in found for counts in part["dropped"]), Counter[str]())
    summary = {
        "documents_read": sum(sum(part["read"]) for part in found),
        "dropped": dict(dropped),
        "cleaned": dict(sum((Counter(part["cleaned"]) for part in found), Counter[str]())),
        "splits": {split: _split(parts, found, i) for i, split in enumerate(SPLITS)},
        "sources": sources.described(found),
        "dtype": tokens.dtype.str,
        "vocab_size": tokens.vocab_size,
        "end_of_document": tokens.end_of_document,
        "tokenizer_sha256": tokens.sha256,
        "versions": versions(),
    }
    if chosen.benchmarks:
        summary["benchmarks"] = chosen.benchmarks
    return summary, _known(parts, found)


def _split(parts: Parts, found: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any]:
    """The totals and shards of a split."""
    shards = [part["shards"][index] for part in found]
    for rank, shard in enumerate(shards):
        shard["name"] = parts.path(rank, f"{SPLITS[index]}.bin").stem  # a shard that was taken over had another rank
    shards = [shard for shard in shards if shard["documents"]]
    if index:
        role = f"{SPLITS[index]}.jsonl"
        _join((parts.path(rank, role) for rank in range(len(found))), parts.root / role)
    return {**{key: sum(shard[key] for shard in shards) for key in COUNTS}, "shards": shards}


def _join(paths: Iterable[Path], path: Path) -> None:
    """One file from several, without holding them in memory."""
    whole = PartialFile(path)
    for part in paths:
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                whole.write(block)
    whole.close()


def _known(parts: Parts, found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    known = {}
    for rank, part in enumerate(found):
        for role, record in part["files"].items():
            if role == DROPPED_TEXTS or role.endswith((".bin", ".ends")):
                known[str(parts.path(rank, role).relative_to(parts.root))] = record
    return known


def results_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest and `ingot run` show of a summary."""
    results = {key: value for key, value in summary.items() if key not in NOT_RESULTS}
    results["num_sources"] = len(summary["sources"])
    results["splits"] = {name: _without_shards(entry) for name, entry in summary["splits"].items()}
    return results


def _without_shards(entry: Mapping[str, Any]) -> dict[str, Any]:
    predicted = max(1, entry["tokens"] - entry["documents"])
    counts = {key: entry[key] for key in COUNTS}
    return {**counts, "bytes_per_token": round(entry["bytes"] / predicted, 4)}


def report(summary: Mapping[str, Any]) -> str:
    """The counts as a page of Markdown."""
    lines = ["# Data\n", "| split | documents | bytes | tokens | bytes per token |", "|---|---:|---:|---:|---:|"]
    for name, entry in summary["splits"].items():
        counts = _without_shards(entry)
        numbers = " | ".join(f"{counts[key]:,}" for key in COUNTS)
        lines.append(f"| {name} | {numbers} | {counts['bytes_per_token']:.3f} |")
    lines.append(f"\n{summary['documents_read']:,} documents were read. Dropped:\n")
    lines += [f"- {reason}: {count:,}" for reason, count in summary["dropped"].items()] or ["- none"]
    if summary["cleaned"]:
        lines.append("\nChanged in the documents that are kept:\n")
        lines += [f"- {what}: {count:,}" for what, count in summary["cleaned"].items()]
    for split, seen in summary["seen_in_training"].items():
        lines.append(
            f"\nOf the {split} text, {seen['mean']:.2%} of the 16-token spans also occur in training documents "
            f"(at most {seen['largest']:.2%} of one document's)."
        )
    return "\n".join(lines) + "\n"
