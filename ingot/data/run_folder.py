"""What the folder of a run must be: writable, and no part of what is read."""

import errno
import fnmatch
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingot.data.remote import is_remote
from ingot.data.sources import Corpus
from ingot.recipe import InputError, Recipe
from ingot.runs import RunFolder, open_run

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
def open_own(recipe: Recipe) -> Iterator[RunFolder]:
    """Opens a run folder.

    Raises: InputError when it cannot be written, or another command works in it.
    """
    with naming_unwritable(recipe.run.dir), open_run(recipe) as folder:
        yield folder


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
