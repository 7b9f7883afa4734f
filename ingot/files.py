"""Files that are written whole or not at all, and known again by their sha256."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingot.recipe_yaml import InputError

CHECKSUMS = "checksums.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turns a full disk, or a limit that was reached, into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; free some space and run the same command again, "
            "what is finished is kept"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises: InputError that names the file when it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None


def sha256_file(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a value's canonical JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Records size and sha256 of every file of a folder in it, and makes all of it durable."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {str(p.relative_to(folder)): describe_file(p) for p in files})
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_checksums` recorded: the first bad file; None when it is whole."""
    if not (folder / CHECKSUMS).is_file():
        return f"{folder / CHECKSUMS} is missing"
    try:
        checksums = read_json(folder / CHECKSUMS)
    except InputError as error:
        return str(error)
    for name, recorded in checksums.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if describe_file(path) != recorded:
            return f"{path} is not as it was written"
    return None


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
