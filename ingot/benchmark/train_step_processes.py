"""Starts each case in a process of its own, and has the next one import in the meantime."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from ingot.benchmark.train_step_cases import ROOT, Case, base_tree, recipe_tree, seq_length_of
from ingot.benchmark.train_step_child import CASE, LOG, RECIPE, ROW, RUN, last_lines
from ingot.faults.processes import free_port
from ingot.files import read_json, write_json, write_text
from ingot.recipe_yaml import InputError, dump_yaml

CHILD = "ingot.benchmark.train_step_child"
MACHINE_SECONDS = 300  # in which a machine can say what it is; the first imports of a fresh one take long


class Started:
    """A process that writes to a log; `folder` is where a waiting one is told of its case."""

    def __init__(self, words: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log, self.began = log, time.monotonic()
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def tell(self, folder: Path) -> None:
        """Has a waiting process run a case."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; its log says why
            self.process.stdin.write(f"{folder}\n".encode())
            self.process.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Whether it ended in time; kills it, and all that it started, when it did not."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        with contextlib.suppress(ProcessLookupError):  # what it has left behind: workers of loaders and compilers
            os.killpg(self.process.pid, signal.SIGKILL)
        return True

    def kill(self) -> None:
        """Ends it with everything below it."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Workshop:
    """Runs cases one after the other in a folder; leaves no process behind."""

    def __init__(self, folder: Path, ahead: bool) -> None:
        """`ahead`: a process for the next case is started early, where CPU cores are not what is measured."""
        self.folder, self.ahead, self.number = folder, ahead, 0
        self.running: Started | None = None
        self.spare: Started | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        for process in (self.running, self.spare):
            if process is not None and process.process.poll() is None:
                process.kill()

    def run(self, case: Case, timeout: float) -> dict[str, Any]:
        """The row of a case: what it measured, or `error`."""
        folder = self.folder / f"{self.number:03}"
        self.number += 1
        folder.mkdir()
        try:
            self._write(case, folder)
        except InputError as error:
            return {"error": " ".join(str(error).split())[:400]}
        began = time.monotonic()
        self.running = self._start(case, folder)
        in_time = self.running.wait(timeout)
        row = self._row(folder, self.running.log, None if in_time else timeout)
        shutil.rmtree(folder / RUN, ignore_errors=True)
        return {**row, "wall_seconds": round(time.monotonic() - began, 1)}

    def _write(self, case: Case, folder: Path) -> None:
        from ingot.benchmark.train_step_corpus import write_corpus

        rows = int(base_tree(case)["model"].get("vocab_size", 0))
        if rows < 1:
            raise InputError(f"{case.recipe}: model.vocab_size: missing")
        corpus = write_corpus(self.folder / "corpora", case.corpus, rows, seq_length_of(case))
        write_text(folder / RECIPE, dump_yaml(recipe_tree(case, corpus, folder / RUN)))
        write_json(folder / CASE, case.settings())

    def _start(self, case: Case, folder: Path) -> Started:
        environment = environment_of(case.num_processes)
        if case.strategy != "single":
            return Started(launch(case, folder), folder / LOG, environment)
        ready = self.spare or self._waiting(environment)
        self.spare = None
        ready.tell(folder)
        os.symlink(ready.log, folder / LOG)
        if self.ahead:
            self.spare = self._waiting(environment)
        return ready

    def _waiting(self, environment: dict[str, str]) -> Started:
        (self.folder / "logs").mkdir(exist_ok=True)
        log = self.folder / "logs" / f"{time.monotonic_ns()}.txt"
        return Started(["-m", CHILD, "--wait"], log, environment)

    @staticmethod
    def _row(folder: Path, log: Path, timeout: float | None) -> dict[str, Any]:
        if (folder / ROW).is_file():
            return dict(read_json(folder / ROW))
        lines = last_lines(log.read_text(encoding="utf-8", errors="replace").splitlines()) or ["it said nothing"]
        late = "" if timeout is None else f"not done within {timeout:.0f} s; its last line: "
        return {"error": late + lines[-1], "log": lines}


def launch(case: Case, folder: Path) -> list[str]:
    """The words that start a case under a strategy, after `python`."""
    config = ROOT / "accelerate_configs" / f"{case.strategy}.yaml"
    how = ["--config_file", str(config), "--num_processes", str(case.num_processes)]
    how += ["--main_process_port", str(free_port())]
    return ["-m", "accelerate.commands.launch", *how, "-m", CHILD, str(folder)]


def environment_of(num_processes: int) -> dict[str, str]:
    """The project on the path, nothing asked of the Hub, and one GPU for a process that is alone."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = {"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": paths}
    if num_processes == 1:
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def ask_machine(folder: Path) -> dict[str, Any]:
    """What `train_step_child.machine` says, from a process of its own: looking takes memory of the GPU.

    Raises: InputError when it says nothing.
    """
    log = folder / "machine.txt"
    words = [sys.executable, "-m", CHILD, "--machine"]
    with open(log, "wb") as errors:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment_of(0), timeout=MACHINE_SECONDS
        )
    if done.returncode:
        raise InputError(f"torch does not run here: {log.read_text(errors='replace').strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.decode().strip().splitlines()[-1]))
