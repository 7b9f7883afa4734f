"""Files that are written whole or not at all, and known again by their sha256."""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingot.failures import FULL, DiskFull
from ingot.recipe_yaml import InputError

CHECKSUMS = "checksums.json"
# Files that some loader opens by their name alone: one that nobody wrote on purpose would be used without a word.
OPENED = re.compile(
    r"config\.json|generation_config\.json|adapter_config\.json|tokenizer.*|special_tokens_map\.json|latest|"
    r"added_tokens\.json|vocab\..*|merges\..*|chat_template.*|spiece\..*|sentencepiece\..*|\.metadata|"
    r".*_state\.json|.*\.index\.json|.*\.(safetensors|bin|pt|pth|ckpt|pkl|pickle|distcp|py|jinja)"
)
THREADS = 4  # that hash the files of a folder; a checkpoint has two large ones
LARGE = 16 << 20  # bytes; a larger file that stays as it is is read once in a process
SETTLED = 2.0  # seconds; a file written this recently may change again without a new time
_known: dict[str, tuple[tuple[int, ...], str]] = {}  # path -> (stamp, sha256) of large files


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turns a full disk, or a limit that was reached, into DiskFull, which names the path and the bytes that are free.

    Raises: DiskFull.
    """
    try:
        yield
    except Exception as error:
        if not says_full(error):
            raise
        place = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
        raise DiskFull(
            f"{path}: cannot be written: {reason} ({free:,} bytes are free); free some space and run the same command "
            "again, what is finished is kept"
        ) from None


def says_full(error: BaseException) -> bool:
    """Whether an error comes of a full disk or a limit on files: the system's, safetensors' or torch's.

    One that has been told already (DiskFull) is not told again in other words.
    """
    if isinstance(error, DiskFull):
        return False
    if isinstance(error, OSError):
        return error.errno in FULL
    # torch.save: "PytorchStreamWriter failed writing file ...", "... inline_container.cc:...] unexpected pos"
    signs = ("os error 28", "os error 122", "No space left", "failed writing file", "unexpected pos")
    return any(sign in str(error) for sign in signs)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def append_text(path: Path, text: str) -> None:
    """Adds text at the end of a file, all of it or nothing.

    Raises: OSError when it cannot be written; the file is then as it was.
    """
    with open(path, "ab") as file:
        size = file.tell()
        try:
            file.write(text.encode())
            file.flush()
        except OSError:
            os.truncate(path, size)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises: InputError that names the file when it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None


def sha256_file(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal; a large file is not read again while it stays as it is."""
    stamp = _stamp(path)
    found = _known.get(str(path))
    if found is not None and found[0] == stamp:
        return found[1]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp[1] >= LARGE and stamp == _stamp(path) and stamp[3] < (time.time() - SETTLED) * 1e9:
        _known[str(path)] = (stamp, digest)
    return digest


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does: inode, bytes, and the times of content and inode in nanoseconds."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_json(value: Any) -> str:
    """The sha256 of a value's canonical JSON text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_checksums(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Records size and sha256 of a folder's files in it, but for those to `leave_out`; makes all of it durable."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    names = {str(p.relative_to(folder)): p for p in files}
    listed = {name: path for name, path in names.items() if name not in leave_out}
    with ThreadPoolExecutor(THREADS) as pool:  # hashing and waiting for the disk at once
        synced = [pool.submit(sync, path) for path in files]
        records = list(pool.map(describe_file, listed.values()))
        for done in synced:
            done.result()
    write_json(folder / CHECKSUMS, dict(zip(listed, records, strict=True)))
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checksums(path: Path) -> dict[str, dict[str, Any]]:
    """The checksums that `write_checksums` left: name -> {bytes, sha256}.

    Raises: InputError that names the file when it is missing or holds anything else.
    """
    found = checked_records(read_json(path), path)
    if not found:
        raise InputError(f"{path}: names no file; it was damaged or edited")
    return found


def checked_records(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The value as name -> {bytes, sha256}.

    Raises: InputError that names the file it comes from when it is none, or names a file outside the folder.
    """
    if isinstance(found, dict) and all(_is_record(name, entry) for name, entry in found.items()):
        return found
    raise InputError(f"{path}: not a list of files with bytes and sha256; it was damaged or edited")


def _is_record(name: str, entry: Any) -> bool:
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and isinstance(entry, dict) and type(entry.get("bytes")) is int and type(entry.get("sha256")) is str


def unlisted(folder: Path, names: Collection[str]) -> Iterator[str]:
    """The files of a folder that a loader would open although they are not among `names`."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if OPENED.fullmatch(path.name) and name not in names and path.is_file():
            yield name


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_checksums` recorded: the first bad file; None when it is whole."""
    try:
        checksums = read_checksums(folder / CHECKSUMS)
    except InputError as error:
        return f"{folder / CHECKSUMS} is missing" if not (folder / CHECKSUMS).is_file() else str(error)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: compare(folder / name, checksums[name]), checksums)
        if (problem := next(filter(None, found), None)) is not None:
            return problem
    added = next(unlisted(folder, checksums), None)
    return None if added is None else f"{folder / added} was not there when the folder was written"


def compare(path: Path, recorded: Mapping[str, Any]) -> str | None:
    """How a file differs from its record, with its path; None when it does not. The size comes first: it is quick."""
    if not path.is_file():
        return f"{path} is missing"
    if (size := path.stat().st_size) != recorded["bytes"]:
        return f"{path} is not as it was written ({size:,} bytes, not {recorded['bytes']:,})"
    return None if sha256_file(path) == recorded["sha256"] else f"{path} is not as it was written"


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
