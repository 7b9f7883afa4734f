"""What a folder was when it was written, from the record beside it: compared before it is used, or accepted anew.

A finished run has manifest.json, a checkpoint and an exported model checksums.json. A folder from elsewhere has
neither; then only what its files say of themselves can be checked.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.files import (
    CHECKSUMS,
    checked_records,
    describe_file,
    read_checksums,
    read_json,
    unlisted,
    write_checksums,
    write_json,
)
from ingot.hashing import changed_file, hash_files
from ingot.recipe import Recipe, stage_inputs
from ingot.recipe_yaml import InputError
from ingot.runs import MANIFEST, STARTED

NOT_RECORDED = ("README.md",)  # of an exported model: people edit it
PARTS = ("model", "adapter")  # folders of a run whose record is the run's manifest
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".distcp")
RESTORE = "restore it, or accept the folder as it is now with: ingot verify --accept"


@dataclass(frozen=True)
class Record:
    """The files that a folder should have: name -> {bytes, sha256}, relative to it."""

    source: Path  # manifest.json or checksums.json
    folder: Path
    files: dict[str, dict[str, Any]]

    @property
    def owner(self) -> Path:
        """The folder that the record lies in."""
        return self.source.parent


def record_of(folder: Path, unfinished: bool = False) -> Record | None:
    """The record of a folder; None where there is none.

    unfinished: the run that the folder belongs to is the one of this process, and has no manifest yet.
    Raises: InputError when the record is damaged, or the folder is part of a run that is not finished.
    """
    owner = folder.resolve().parent
    if folder.resolve().name in PARTS and (owner / MANIFEST).is_file():
        prefix = f"{folder.resolve().name}/"
        files = _manifest_files(owner / MANIFEST)
        inside = {n.removeprefix(prefix): entry for n, entry in files.items() if n.startswith(prefix)}
        return Record(_shown(folder, MANIFEST), folder, inside)
    if folder.resolve().name in PARTS and (owner / STARTED).is_file() and not unfinished:
        raise InputError(f"{folder}: its run is not finished, or a file of it was found changed; run the stage again")
    if (folder / MANIFEST).is_file():
        return Record(folder / MANIFEST, folder, _manifest_files(folder / MANIFEST))
    if (folder / CHECKSUMS).is_file():
        return Record(folder / CHECKSUMS, folder, read_checksums(folder / CHECKSUMS))
    return None


def _shown(folder: Path, name: str) -> Path:
    """A file beside a folder, under a path that begins as the user wrote it."""
    return (folder.parent if folder.name else folder.resolve().parent) / name


def _manifest_files(path: Path) -> dict[str, dict[str, Any]]:
    found = read_json(path)
    return checked_records(found.get("files") if isinstance(found, dict) else None, path)


def check_files(folder: Path, weights: bool = True, unfinished: bool = False) -> None:
    """Compares a folder with its record, where there is one; without `weights` only the small files.

    Raises: InputError that names the first file that is missing, changed or new, and the way out.
    """
    record = record_of(folder, unfinished)
    if record is None:
        return
    wanted = None if weights else (lambda name: not name.endswith(WEIGHTS))
    problem = next(problems(record, wanted), None)
    if problem is not None:
        raise InputError(f"{problem}; {RESTORE} {record.owner}")


def problems(record: Record, wanted: Callable[[str], bool] | None = None) -> Iterator[str]:
    """Every file that is not as the record says, with its path and what is wrong; sizes come first, they are quick."""
    files = {name: entry for name, entry in record.files.items() if wanted is None or wanted(name)}
    whole = {}
    for name, entry in files.items():
        path = record.folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{path} is not as it was written ({size:,} bytes, not {entry['bytes']:,})"
        else:
            whole[str(path)] = entry["sha256"]
    for name in new_files(record):
        if wanted is None or wanted(name):
            yield f"{record.folder / name} was not there when the folder was written"
    for path_text, _, digest in hash_files(list(whole)):
        if digest != whole[path_text]:
            yield f"{path_text} is not as it was written (its sha256 is another)"


def new_files(record: Record) -> Iterator[str]:
    """Files that a loader would open although the record does not have them; of a run only those of its results."""
    for name in unlisted(record.folder, record.files):
        top = Path(name).parts[0]
        if not (record.source.name == MANIFEST and top.startswith(("checkpoint-", "."))):
            yield name


def check_inputs_unchanged(recipe: Recipe) -> None:
    """Compares what earlier stages wrote, and this one will read, with their manifests.

    Of a result of more than 2 GiB, files older than the manifest are believed; `ingot verify` reads every byte.
    Raises: InputError that names the key and the first changed file.
    """
    for key, path, _ in stage_inputs(recipe):
        manifest = path / MANIFEST
        if manifest.is_file():
            changed = changed_file(path, _manifest_files(manifest), manifest.stat().st_mtime)
            if changed is not None:
                raise InputError(f"{key}: {changed}; {RESTORE} {path}")


def accept(folder: Path) -> list[str]:
    """Writes a folder's record anew, from its files as they are now. Returns what changed, a line for each file.

    A model or tokenizer folder without a record, or with a damaged one, gets one.
    Raises: InputError when the folder is none of these.
    """
    whole = _whole(folder)
    inner = [place for place in (whole, *(whole / part for part in PARTS)) if (place / CHECKSUMS).is_file()]
    changed = [line for place in inner for line in _accept_checksums(place)]
    if (whole / MANIFEST).is_file():
        return _rewrite(Record(whole / MANIFEST, whole, _manifest_files(whole / MANIFEST)))
    if not inner:
        if not any((whole / name).is_file() for name in ("config.json", "tokenizer.json")):
            raise InputError(f"{folder}: nothing here to record; name a run, a checkpoint, a model or a tokenizer")
        write_checksums(whole, NOT_RECORDED)
        return [f"{CHECKSUMS}: new, {len(read_checksums(whole / CHECKSUMS))} files recorded"]
    return changed


def _accept_checksums(folder: Path) -> list[str]:
    try:
        files = read_checksums(folder / CHECKSUMS)
    except InputError:
        write_checksums(folder, NOT_RECORDED)
        return [f"{CHECKSUMS}: it was damaged, written anew"]
    return _rewrite(Record(folder / CHECKSUMS, folder, files))


def _rewrite(record: Record) -> list[str]:
    """Brings a record up to date. Returns a line for each file that changed."""
    changed, files = [], dict(record.files)
    for name, entry in record.files.items():
        path = record.folder / name
        found = describe_file(path) if path.is_file() else None
        if found is None:
            del files[name]
            changed.append(f"{name}: gone")
        elif found != entry:
            files[name] = found
            changed.append(f"{name}: sha256 {entry['sha256'][:12]} -> {found['sha256'][:12]}")
    for name in new_files(record):
        files[name] = describe_file(record.folder / name)
        changed.append(f"{name}: new")
    if changed:
        is_manifest = record.source.name == MANIFEST
        write_json(record.source, {**read_json(record.source), "files": files} if is_manifest else files)
    return changed


def _whole(folder: Path) -> Path:
    """The run that a model folder is part of, or the folder itself."""
    resolved = folder.resolve()
    part = resolved.name in PARTS and (resolved.parent / MANIFEST).is_file()
    return _shown(folder, MANIFEST).parent if part else folder


def _record_to_verify(folder: Path) -> Record:
    """Raises: InputError for a folder without one."""
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; name a run, a checkpoint, a model or a tokenizer")
    record = record_of(_whole(folder))
    if record is None:
        raise InputError(
            f"{folder}: no {MANIFEST} or {CHECKSUMS} here, so nothing to compare with; record it as "
            f"it is now with: ingot verify --accept {folder}"
        )
    return record


def verify_command(arguments: Sequence[str]) -> None:
    """`ingot verify [--accept] FOLDER ...`: reads every file again; with --accept, what changed is taken as it is.

    Raises: InputError that names every file that is not as it was written.
    """
    parser = argparse.ArgumentParser(prog="ingot verify", description="Compares folders with what was written.")
    parser.add_argument("folders", nargs="+", type=Path, help="finished runs, checkpoints or exported models")
    parser.add_argument("--accept", action="store_true", help="take the files as they are now: an edit was meant")
    words = parser.parse_args(list(arguments))
    for folder in words.folders:
        if words.accept:
            changed = accept(folder)
            print("\n".join(f"{folder}: {line}" for line in changed) or f"{folder}: every file is as it was written")
            continue
        found = list(problems(_record_to_verify(folder)))
        if found:
            raise InputError("\n".join(found) + f"\nrestore them, or accept them with: ingot verify --accept {folder}")
        print(f"{folder}: every file is as it was written")
