"""Which files a source names, what is in them by their names, and where large ones may be cut."""

import errno
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from ingot.data.remote import is_remote, list_remote, open_remote
from ingot.recipe import InputError
from ingot.runs import get_logger, read_json

logger = get_logger(__name__)

Format = Literal["text", "jsonl", "csv", "parquet", "arrow"]
FORMATS: dict[str, Format] = {
    ".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv",
    ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")
UNIT_BYTES = 256 << 20  # a file of at least twice as many bytes is cut into parts of about so many


@dataclass(frozen=True)
class FoundFile:
    """A file by its path or URL, with its bytes where they are known; `stamp` changes when a remote one does."""

    path: str
    size: int | None
    stamp: str | None = None


def find_files(path: str, dataset_split: str, format: Format | None, key: str) -> list[FoundFile]:
    """The files that a path, glob, folder or URL names, sorted by name.

    Raises: InputError, beginning with `key`, when there is none or a folder needs a word more.
    """
    if not path:
        raise InputError(f"{key}.path: is empty; name a file, glob, folder or URL")
    if is_remote(path):
        found = [FoundFile(entry.path, entry.size, entry.stamp) for entry in list_remote(path)]
        if len(found) > 1 and "*" not in path:
            found = _of_one_format(found, path, format, key)
        looked = ""
    elif _is_dir(Path(path)):
        folder = Path(path)
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return [_local(p) for p in _dataset_files(folder, dataset_split, key)]
        found = _of_one_format([_local(p) for p in sorted(_walk(folder, ()))], path, format, key)
        looked = " in this folder"
    else:
        found = [_local(p) for p in sorted(_matches(path)) if not _is_dir(p)]
        looked = f" (looked from {Path.cwd()})"
    if not found:
        raise InputError(f"{key}.path: no file matches {path}{looked}")
    return found


def _local(path: Path) -> FoundFile:
    """Raises: InputError for what is no regular file, such as a broken link or a pipe."""
    try:
        regular = path.is_file()
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; remove it from the sources") from None
    if not regular:
        raise InputError(f"{path}: not a regular file; remove it from the sources")
    return FoundFile(path.as_posix(), size)


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files below a folder but hidden ones, links to folders followed; `above` are the folders around it.

    Raises: InputError for a folder that cannot be read: its files would be missing in silence.
    """
    real = folder.resolve()
    if real in above:
        logger.info("%s: leads back to a folder around it and is left out", folder)
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if _is_dir(path):
            yield from _walk(path, (*above, real))
        else:
            yield path


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {error.strerror}; allow it, or leave it out of the sources")


def _searched(parts: tuple[str, ...]) -> Iterator[Path]:
    """The folders that a glob looks into, by the parts of its pattern."""
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    last = len(parts) + (parts[-1] == "**")
    for end in range(max(1, first), last):
        yield from map(Path, glob.glob(os.path.join(*parts[:end], ""), recursive=True))


def _matches(pattern: str) -> list[Path]:
    """The paths that a glob matches, or the file whose name it is.

    Raises: InputError for a folder on the way that cannot be read: `glob` would pass over it in silence.
    """
    if Path(pattern).is_file():
        return [Path(pattern)]
    for folder in _searched(Path(pattern).parts):
        if not os.access(folder, os.R_OK | os.X_OK):
            raise _unreadable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return list(map(Path, glob.glob(pattern, recursive=True)))


def _of_one_format(files: list[FoundFile], folder: str, format: Format | None, key: str) -> list[FoundFile]:
    """The files of a folder that can be read: those of its one format; what is left out is said."""
    known = {file.path: format_by_name(file.path) for file in files}
    kinds = sorted({kind for kind in known.values() if kind is not None})
    if format is None and len(kinds) > 1:
        raise InputError(f"{key}.path: {folder} holds {' and '.join(kinds)} files; set format, or name them by a glob")
    wanted = (format, None) if format is not None else (kinds[0],) if kinds else ()
    chosen = [file for file in files if known[file.path] in wanted]
    if files and not chosen:
        raise InputError(f"{key}.path: no file in {folder} has a name that says its format; set format")
    if len(chosen) < len(files):
        logger.info("%s: %d of %d files are left out by their names", folder, len(files) - len(chosen), len(files))
    return chosen


def _dataset_files(folder: Path, split: str, key: str) -> list[Path]:
    """The arrow files of a dataset written by `save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        folder = folder / split
        if not folder.is_dir():
            names = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
            raise InputError(f"{key}.dataset_split: {folder.parent} has no split '{split}'; it has {', '.join(names)}")
    elif split != "train":
        raise InputError(f"{key}.dataset_split: {folder} was saved without splits; remove dataset_split")
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder / 'state.json'}: missing, and it lists the files of the dataset; save it again")
    return [folder / name for name in _names_in_state(folder / "state.json")]


def _names_in_state(path: Path) -> list[str]:
    """The files of a saved dataset; others beside them, such as the cache of `map`, are not part of it."""
    state = read_json(path)
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not files:
        raise InputError(f"{path}: lists no arrow files; save the dataset again")
    return [file["filename"] for file in files]


def suffixes_of(path: str) -> list[str]:
    """The suffixes of a file's name in lower case, a URL's query left out."""
    name = path.partition("?")[0] if is_remote(path) else path
    return [suffix.lower() for suffix in PurePosixPath(name).suffixes]


def format_by_name(path: str) -> Format | None:
    """The format that a file's name says, if any."""
    plain = [suffix for suffix in suffixes_of(path) if suffix not in COMPRESSED]
    return FORMATS.get(plain[-1]) if plain else None


def compression_of(path: str) -> str | None:
    """.gz, .zst or None."""
    last = suffixes_of(path)[-1:]
    return last[0] if last and last[0] in COMPRESSED else None


def open_file(path: str) -> BinaryIO:
    """Opens a local or remote file for reading its bytes as they are."""
    return open_remote(path) if is_remote(path) else open(path, "rb")


def byte_bounds(size: int) -> list[int]:
    """Where a file of lines is cut: the first bytes of its parts and its size; a pure function of the size."""
    num_parts = max(1, size // UNIT_BYTES)
    return [i * size // num_parts for i in range(num_parts + 1)]


def row_group_bounds(path: str) -> list[int]:
    """Where a parquet file is cut: the first row groups of its parts, and their number; nothing for a damaged one."""
    import pyarrow.parquet

    try:
        with open_file(path) as raw, pyarrow.parquet.ParquetFile(raw) as file:
            sizes = [_compressed_bytes(file.metadata.row_group(i)) for i in range(file.num_row_groups)]
    except (OSError, pyarrow.ArrowException):
        return []  # whoever reads it says what is wrong
    bounds, size = [0], 0
    for i, group in enumerate(sizes[:-1], 1):
        size += group
        if size >= UNIT_BYTES:
            bounds.append(i)
            size = 0
    return [*bounds, len(sizes)]


def _compressed_bytes(group: Any) -> int:
    return sum(group.column(i).total_compressed_size for i in range(group.num_columns))
