"""sha256 of many files: in parallel, with progress, and not again while a file keeps its size and time.

A run folder remembers the hashes of its sources in sources.json; folders set aside (DIR.old-N) lend theirs.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ingot.files import read_json, sha256_file, write_json
from ingot.recipe_yaml import InputError

SOURCES = "sources.json"
FRESH = 2 * 10**9  # nanoseconds; a file written this recently may change again without a new time
SAVE_EVERY = 60.0  # seconds
TRUSTED = 2 << 30  # bytes; a larger result is not read whole again while its files are older than its manifest
Stamp = tuple[int, int]  # bytes, time of the last change in nanoseconds


def hash_sources(paths: Iterable[Path], folder: Path, save: bool) -> dict[str, str]:
    """The sha256 of every file by its path, those remembered in `folder` or one set aside from it not read again.

    `save` writes what was found to the folder's sources.json, now and then while it goes on.
    Raises: InputError for a file that cannot be read.
    """
    names = list(dict.fromkeys(str(path) for path in paths))
    known = _remembered(folder)
    found: dict[str, str] = {}
    pending = []
    for name in names:
        entry = known.get(name)
        if entry is not None and list(_stamp(name)) == entry[:2]:
            found[name] = entry[2]
        else:
            pending.append(name)
    memory = {name: known[name] for name in found}
    saved = time.monotonic()
    for name, stamp, digest in hash_files(pending):
        found[name] = digest
        if stamp is not None:
            memory[name] = [*stamp, digest]
        if save and time.monotonic() - saved > SAVE_EVERY:
            _save(folder, memory)
            saved = time.monotonic()
    if save and names and (pending or not (folder / SOURCES).is_file()):
        _save(folder, memory)
    return {name: found[name] for name in names}


def _save(folder: Path, memory: dict[str, list[Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SOURCES, memory)


def _remembered(folder: Path) -> dict[str, list[Any]]:
    """What this folder and those set aside from it know, the newest knowledge first."""
    merged: dict[str, list[Any]] = {}
    for place in (folder, *set_aside(folder)):
        if (place / SOURCES).is_file():
            merged = {**read_json(place / SOURCES), **merged}
    return merged


def set_aside(folder: Path) -> list[Path]:
    """The folders DIR.old-N that earlier recipes left, the newest first."""
    pattern = re.compile(re.escape(folder.name) + r"\.old-(\d+)")
    if not folder.parent.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.parent.iterdir() if (m := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _stamp(name: str) -> Stamp:
    try:
        status = os.stat(name)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def hash_files(names: list[str]) -> Iterator[tuple[str, Stamp | None, str]]:
    """Name, stamp (None when it may not be trusted) and sha256 of every file, in parallel and as they are done."""
    from ingot.runs import progress

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        futures = [pool.submit(_hash_one, name) for name in names]
        try:
            for future in progress(as_completed(futures), total=len(futures), desc="hashing files"):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _hash_one(name: str) -> tuple[str, Stamp | None, str]:
    began = time.time_ns()
    stamp = _stamp(name)
    try:
        digest = sha256_file(Path(name))
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    safe = stamp == _stamp(name) and stamp[1] < began - FRESH
    return name, stamp if safe else None, digest


def changed_file(folder: Path, files: Mapping[str, Mapping[str, Any]], since: float | None = None) -> str | None:
    """The first file of a result that is gone or not as it was written, with the reason; None when all is well.

    files: name -> {bytes, sha256}. Sizes come first, for they are quick. With `since` (the time of the manifest), a
    result of more than 2 GiB is believed where files are older than that; without it every byte is read.
    """
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != record["bytes"]:
            return f"{path} has {path.stat().st_size:,} bytes and not {record['bytes']:,}"
    large = sum(record["bytes"] for record in files.values()) > TRUSTED
    skip = {n for n in files if large and since is not None and (folder / n).stat().st_mtime <= since}
    for name, _, digest in hash_files([str(folder / n) for n in files if n not in skip]):
        if digest != files[str(Path(name).relative_to(folder))]["sha256"]:
            return f"{name} is not as it was written (its sha256 is another)"
    return None
