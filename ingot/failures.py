"""How a command ends: failures that one line tells, signals, and exit codes."""

import atexit
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from ingot.logs import num_processes
from ingot.recipe_yaml import InputError

# module -> the extra of setup.cfg that brings it
EXTRAS = {
    "trl": "train", "peft": "train", "deepspeed": "train", "bitsandbytes": "train", "lm_eval": "eval",
    "fastapi": "serve", "uvicorn": "serve", "gradio": "serve", "openai": "serve", "httpx": "serve", "optuna": "search",
    "ray": "ray",
}  # fmt: skip


# what the system says when there is no room: on the disk, in a quota, or for a file of this size
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class RunFailed(Exception):
    """A run cannot go on, for a reason that one line tells; what was saved is kept."""


class LostProcess(RunFailed):
    """Another process of the same run has ended or does not answer."""


class DiskFull(RunFailed):
    """There is no room for what must be written; the message names the path, the bytes needed and those free."""


class NotFinite(RunFailed, FloatingPointError):
    """A loss, a gradient or a weight is NaN or infinite; the message names the step and the rows."""


def end_with(action: Callable[[], Any]) -> NoReturn:
    """Runs an action and ends the process with its exit code.

    One of several processes ends before the destructors of torch's libraries run: with torch 2.11 they may abort it,
    and its launcher then ends the first process while that still writes the result.
    """
    code = 3

    def end_now() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    if num_processes() > 1:
        atexit.register(end_now)  # registered first, called last, after threads and workers have ended
    try:
        code = exit_code_of(action)
    except SystemExit as ending:  # such as after --help
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    sys.exit(code)


def exit_code_of(action: Callable[[], Any]) -> int:
    """Runs an action and turns its end into an exit code: 0 done, 2 wrong input, 3 failed, 130 interrupted."""
    try:
        action()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            traceback.print_exc()
            return 3
        print(f"error: {error.name} is not installed; install it with: pip install -e '.[{extra}]'", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if (line := _told(error)) is None:
            traceback.print_exc()
        else:
            print(f"error: {line}", file=sys.stderr)
        return 3
    except KeyboardInterrupt as told:
        print(*told.args or ["interrupted; run the same command again to continue"], file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 3
    return 0


def _told(error: OSError) -> str | None:
    """What a line can say of an error of the system; None when only a traceback tells."""
    if error.errno in FULL:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; free some space and run the same command again"
    if error.errno in UNWRITABLE and error.filename:
        return f"{error.filename}: {error.strerror}; mount or own it so that it may be used, or choose another place"
    return None


@contextmanager
def interruptible() -> Iterator[None]:
    """Ends on SIGTERM and SIGUSR1 as on Ctrl-C, with a line; training takes the signals over while it trains."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGUSR1) if signal.getsignal(n) is signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
