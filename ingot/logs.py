"""Lines for people: the logger and the progress of long work, on the main process alone."""

import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def get_logger(name: str) -> logging.Logger:
    """A logger whose lines go to the terminal (on the main process) and to the run folder's log."""
    root = logging.getLogger("ingot")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(lambda record: is_main_process() or record.levelno >= logging.ERROR)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(name if name.startswith("ingot") else f"ingot.{name}")


def is_main_process() -> bool:
    """Whether this is the first of all processes (rank 0)."""
    return int(os.environ.get("RANK", "0")) == 0


def num_processes() -> int:
    """The number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


logger = get_logger(__name__)


def progress(items: Iterable[T], total: int | None = None, desc: str = "") -> Iterator[T]:
    """Yields the items with a progress bar on a terminal and a plain line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=desc, disable=not is_main_process())
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            logger.info("%s: %d%s", desc, done, f" of {total}" if total else "")
        yield item


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that a full disk does not disturb: its lines are on the terminal, too."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Passes over what a full disk or a limit on files makes of a line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to(path: Path) -> logging.Handler:
    """Adds a file to which every line goes; it is cut at 10 MB, and three old ones are kept."""
    handler = _LogFile(path, maxBytes=10_000_000, backupCount=3, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.getLogger("ingot").addHandler(handler)
    return handler
