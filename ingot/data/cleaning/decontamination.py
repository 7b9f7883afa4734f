"""Runs of words that a document shares with a benchmark: an index is built once, and every process looks up in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.cleaning.benchmarks import benchmark_files, benchmark_rows, name_of
from ingot.data.cleaning.section import Decontaminate
from ingot.data.cleaning.shingles import Hashes, Words, different, words_of
from ingot.runs import read_json, sha256_file, write_json

AT_ONCE = 1 << 20  # characters of a benchmark hashed at once
TABLE_BITS = 24  # a table of this many bits in an address sorts out nearly all runs of a document
SEPARATOR = "\n"
INFO = "benchmarks.json"


def decontamination_files(section: Decontaminate) -> Iterator[Path]:
    """Every file that the index is made from.

    Raises: InputError when a benchmark names no file.
    """
    for i, benchmark in enumerate(section.benchmarks):
        yield from benchmark_files(benchmark, f"data.decontaminate.benchmarks.{i}")


def benchmark_names(section: Decontaminate) -> list[str]:
    """The benchmarks in the order of the recipe."""
    names = [
        name_of(benchmark, path)
        for i, benchmark in enumerate(section.benchmarks)
        for path in benchmark_files(benchmark, f"data.decontaminate.benchmarks.{i}")
    ]
    return list(dict.fromkeys(names))


def build_index(section: Decontaminate, folder: Path) -> list[dict[str, Any]]:
    """Reads the benchmarks and writes their runs of words to `folder`; an index of the same files is kept.

    Returns: for every benchmark its name, rows, rows that are long enough to be found, and runs of words.
    Raises: InputError for a file that is not there or cannot be read.
    """
    made_of = _made_of(section)
    if (folder / INFO).is_file() and (found := read_json(folder / INFO))["made_of"] == made_of:
        return list(found["benchmarks"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)  # comes last, so that an index with it is whole
    parts = {name: _Part() for name in benchmark_names(section)}
    for i, benchmark in enumerate(section.benchmarks):
        for path in benchmark_files(benchmark, f"data.decontaminate.benchmarks.{i}"):
            parts[name_of(benchmark, path)].read(benchmark_rows(benchmark, path), section)
    keys = np.concatenate([part.keys() for part in parts.values()])
    owners = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part.keys()) for part in parts.values()])
    unique, first = np.unique(keys, return_index=True)
    np.save(folder / "heads.npy", different(np.concatenate([head for part in parts.values() for head in part.heads])))
    np.save(folder / "keys.npy", unique)
    np.save(folder / "owners.npy", owners[first])
    info = [
        {"name": name, "rows": part.rows, "rows_long_enough": part.found, "runs": len(part.keys())}
        for name, part in parts.items()
    ]
    write_json(folder / INFO, {"made_of": made_of, "benchmarks": info})
    return info


def _made_of(section: Decontaminate) -> dict[str, Any]:
    """What the index depends on: the recipe, and the content of the files."""
    keys = section.model_dump(mode="json", exclude={"action", "span_margin"})
    return {"keys": keys, "files": {str(path): sha256_file(path) for path in decontamination_files(section)}}


@dataclass
class _Part:
    """What is read of one benchmark."""

    rows: int = 0
    found: int = 0
    hashes: list[Hashes] = field(default_factory=list)  # of runs
    heads: list[Hashes] = field(default_factory=list)  # of the first words of these runs

    def read(self, rows: Iterator[list[str]], section: Decontaminate) -> None:
        texts: list[str] = []
        owners: list[int] = []
        size = 0
        for row in rows:
            texts += row
            owners += [self.rows] * len(row)
            size += sum(map(len, row))
            self.rows += 1
            if size >= AT_ONCE:
                self._add(texts, owners, section)
                texts, owners, size = [], [], 0
        self._add(texts, owners, section)

    def _add(self, texts: list[str], rows: list[int], section: Decontaminate) -> None:
        """Hashes many texts at once; a run that reaches from one text into the next does not count."""
        words = words_of(SEPARATOR.join(texts))
        starts = np.cumsum([0, *(len(text) + len(SEPARATOR) for text in texts)])
        text_of_word = np.searchsorted(starts, words.begins, "right") - 1
        num_words = np.bincount(text_of_word, minlength=len(texts))
        found = np.zeros(len(texts), bool)
        heads = words.runs(section.lengths[0])
        for length in section.lengths:
            runs = words.runs(length)
            first, last = text_of_word[: len(runs)], text_of_word[len(words.begins) - len(runs) :]
            inside = first == last
            if length < section.ngram:
                inside &= num_words[first] == length
            self.hashes.append(different(runs[inside]))
            self.heads.append(different(heads[: len(runs)][inside]))
            found[first[inside]] = True
        self.found += len(set(np.array(rows)[found].tolist())) if rows else 0

    def keys(self) -> Hashes:
        """The different runs."""
        self.hashes = [different(np.concatenate(self.hashes))]
        return self.hashes[0]


@dataclass(frozen=True)
class Match:
    """A stretch of a document, in characters, that a benchmark has too."""

    begin: int
    end: int
    benchmark: str


class BenchmarkIndex:
    """Looks documents up in an index; it is loaded when it is first used, and shared between processes."""

    def __init__(self, section: Decontaminate, folder: Path) -> None:
        self.section, self.folder = section, folder

    @cached_property
    def _loaded(self) -> tuple[Hashes, Hashes, NDArray[np.uint16], list[str]]:
        names = [entry["name"] for entry in read_json(self.folder / INFO)["benchmarks"]]
        heads, keys, owners = (np.load(self.folder / f"{name}.npy", "r") for name in ("heads", "keys", "owners"))
        return heads, keys, owners, names

    @cached_property
    def _table(self) -> NDArray[np.bool_]:
        """Where there is a head with these first bits."""
        table = np.zeros(1 << TABLE_BITS, bool)
        table[self._loaded[0] >> np.uint64(64 - TABLE_BITS)] = True
        return table

    def matches(self, text: str) -> list[Match]:
        """The stretches that a benchmark has too, in order; those that touch are one, named after its first."""
        words = words_of(text)
        begins = self._candidates(words)
        if not len(begins):
            return []
        hits = [hit for length in self.section.lengths for hit in self._hits(words, length, begins)]
        found: list[Match] = []
        for begin, end, benchmark in sorted(hits):
            if found and begin <= found[-1].end:
                found[-1] = Match(found[-1].begin, max(end, found[-1].end), found[-1].benchmark)
            else:
                found.append(Match(begin, end, benchmark))
        return found

    def _candidates(self, words: Words) -> NDArray[np.int64]:
        """The words that begin as a run in the index does."""
        heads = words.runs(self.section.lengths[0])
        maybe = np.flatnonzero(self._table[heads >> np.uint64(64 - TABLE_BITS)])
        return maybe[_find(heads[maybe], self._loaded[0]) >= 0]

    def _hits(self, words: Words, length: int, begins: NDArray[np.int64]) -> Iterator[tuple[int, int, str]]:
        """Begin, end and benchmark of every run of `length` words that is in the index."""
        _, keys, owners, names = self._loaded
        runs = words.runs(length)
        begins = begins[begins < len(runs)]
        places = _find(runs[begins], keys)
        for i, place in zip(begins[places >= 0].tolist(), places[places >= 0].tolist(), strict=True):
            yield int(words.begins[i]), int(words.ends[i + length - 1]), names[int(owners[place])]

    def cut(self, text: str) -> tuple[str, Counter[str]]:
        """The text without the matches and their margins, and how many were cut out for each benchmark."""
        parts, done = [], 0
        counts: Counter[str] = Counter()
        for match in self.matches(text):
            parts.append(text[done : max(done, match.begin - self.section.span_margin)])
            done = min(len(text), match.end + self.section.span_margin)
            counts[f"decontaminate: {match.benchmark}"] += 1
        return "".join([*parts, text[done:]]), counts


def _find(values: Hashes, ordered: Hashes) -> NDArray[np.int64]:
    """Where every value is in a sorted array, or -1."""
    if not len(ordered):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[places] == values, places, -1)
