"""What the folder of a run must be: writable, of one command at a time, and no part of what is read."""

import errno
import fnmatch
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ingot.data.remote import is_remote
from ingot.data.sources import Corpus
from ingot.recipe import InputError, Recipe
from ingot.runs import MANIFEST, STARTED, RunFolder, open_run

LOCK = ".lock"
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)


def own_output(corpus: Corpus, folder: Path) -> Iterator[str]:
    """Says which sources would take in what this very run writes."""
    for i, source in enumerate(corpus.sources):
        if source.path is not None and not is_remote(source.path) and _reaches(source.path, folder):
            yield f"run.dir: {folder} lies where data.sources.{i}.path reads ({source.path}); choose a folder outside"


def _reaches(path: str, folder: Path) -> bool:
    """Whether a path or glob also names files in a folder."""
    pattern = [*Path(os.path.abspath(path)).parts, *(["**"] if os.path.isdir(path) else [])]
    for part, wanted in zip(Path(os.path.abspath(folder)).parts, pattern, strict=False):
        if wanted == "**":
            return not part.startswith(".")
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(pattern) > len(Path(os.path.abspath(folder)).parts)


@contextmanager
def open_alone(recipe: Recipe) -> Iterator[RunFolder]:
    """Opens a run folder, with other commands kept out of it.

    Raises: InputError when it cannot be written, or another command works in it.
    """
    place = recipe.run.dir
    with naming_unwritable(place), ExitStack() as held:
        stay_alone(place, held)
        before = _inode(place)
        with open_run(recipe) as folder:
            if not folder.complete and _inode(place) != before:
                stay_alone(place, held)  # a new folder, perhaps in the place of one that was set aside
            yield folder


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.is_dir() else None


@contextmanager
def naming_unwritable(folder: Path) -> Iterator[None]:
    """Turns the error of a run folder that cannot be made or written into an InputError that names it."""
    try:
        yield
    except OSError as error:
        path, place = os.path.abspath(error.filename or ""), os.path.abspath(folder)
        inside = error.errno != errno.ENOENT and path.startswith(place + os.sep)
        if error.errno not in UNWRITABLE or not (inside or place == path or place.startswith(path + os.sep)):
            raise
        raise InputError(
            f"run.dir: {folder} cannot be written: {error.strerror} ({path}); choose another folder"
        ) from None


def stay_alone(folder: Path, held: ExitStack) -> None:
    """Keeps other commands out of a run folder until `held` is closed or this process ends, however it ends.

    Raises: InputError when another command works in it.
    """
    if sys.platform == "win32" or not any((folder / name).is_file() for name in (STARTED, MANIFEST)):
        return  # nothing of ours to protect yet
    import fcntl

    path = folder / LOCK
    try:
        file = held.enter_context(open(path, "a+", encoding="utf-8"))  # noqa: SIM115 - held closes it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = path.read_text(encoding="utf-8").strip() or "another command"
        raise InputError(f"run.dir: {who} works in {folder}; wait until it ends, or choose another folder") from None
    except OSError:
        return  # not writable, as whoever writes here says, or a file system without locks
    if not _is_at(path, file):  # whoever had it has just removed it
        stay_alone(folder, held)
        return
    with suppress(OSError):  # a full disk; the lock holds without a name
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    held.callback(lambda: path.unlink() if _is_at(path, file) else None)


def _is_at(path: Path, file: TextIO) -> bool:
    return path.is_file() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
