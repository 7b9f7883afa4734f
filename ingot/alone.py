"""One command at a time in a run folder."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ingot.recipe_yaml import InputError

WORKING = ".working"  # in a run folder while a command writes there; one that was killed leaves it behind, unlocked


def check_alone(folder: Path) -> None:
    """Raises: InputError when another process works in a run folder."""
    if (folder / WORKING).is_file():
        with suppress(OSError), open(folder / WORKING, "a", encoding="utf-8") as file:
            _lock(file, folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps the commands of other processes out of a run folder; a lock ends with its process, however that ends.

    The system's record locks: children, such as those that load data, do not inherit them.
    Raises: InputError when another process works there.
    """
    path = folder / WORKING
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held until the end
    except OSError:  # a full or read-only disk: whoever writes there says so
        yield
        return
    with file:
        _lock(file, folder)
        with suppress(OSError):
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if path.is_file() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                path.unlink()


def _lock(file: TextIO, folder: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        who = (folder / WORKING).read_text(encoding="utf-8") or "another process"
        raise InputError(
            f"run.dir: {who} works in {folder}; wait until it ends, or choose another folder with --run.dir"
        ) from None
    except OSError:  # a file system without locks
        return
