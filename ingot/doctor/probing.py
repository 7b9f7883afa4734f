"""Runs a check in a Python process of its own, so that what crashes or hangs there is only a finding here."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ingot

HOME = Path(ingot.__file__).resolve().parent.parent  # where the packages lie, installed or not


def environment(**added: str) -> dict[str, str]:
    """This process's environment, offline, for a child that has to find Ingot wherever it starts."""
    path = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **added}


class Probe:
    """A child that prints a JSON value a line."""

    def __init__(self, words: Sequence[str], log: Path, added: Mapping[str, str] | None = None) -> None:
        """`words`: what comes after `python`; all that is not JSON goes to `log`."""
        self.log = log
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *words], stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True,
                env=environment(**(added or {})), start_new_session=True,
            )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def values(self, timeout: float) -> Iterator[Any]:
        """Every value, as it comes.

        Raises: TimeoutError when none comes for `timeout` seconds.
        """
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"no answer in {timeout:.0f} s") from None
            if line is None:
                return
            if line.startswith("{"):
                yield json.loads(line)

    def end(self) -> int:
        """Ends the child, and what it started, if they still run; returns the exit code, below 0 for a signal."""
        if self.process.poll() is None:
            try:
                self.process.wait(5 if self._lines.empty() else 0.1)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def complaint(self) -> str:
        """The last line that the child wrote to its log."""
        lines = [x.strip() for x in self.log.read_text(encoding="utf-8", errors="replace").split("\n") if x.strip()]
        return lines[-1][:300] if lines else "it printed nothing"


def ended(code: int) -> str:
    """How a process ended, in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def ask(function: str, log: Path, timeout: float) -> Any:
    """The value that `module:function` returns in a process of its own, as JSON.

    Raises: RuntimeError with its last words when it fails, TimeoutError when it hangs.
    """
    module, name = function.split(":")
    probe = Probe(["-c", f"import json; from {module} import {name}; print(json.dumps({{'value': {name}()}}))"], log)
    found: list[Any] = []
    try:
        found.extend(value["value"] for value in probe.values(timeout))
    finally:
        code = probe.end()
    if not found:
        raise RuntimeError(f"{ended(code)}: {probe.complaint()}")
    return found[0]
