"""Runs in processes of their own: warm ones, forked from a server that has imported everything, and cold ones."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from ingot.faults import inside

# what the server imports before it forks; nothing of it computes, so no thread of torch is lost in a fork
PRELOADED = (
    "ingot.plots", "matplotlib.pyplot", "ingot.training.pretrain_loop", "ingot.training.finetune_report",
    "ingot.training.trl_trainers", "ingot.training.prediction", "ingot.training.encoding", "ingot.training.sft",
    "ingot.training.dpo", "ingot.data.prepare_data", "ingot.data.writing", "ingot.data.summary", "deepspeed",
)  # fmt: skip
LIMIT = 300  # seconds after which a process that should have ended counts as hanging


@dataclass(frozen=True)
class Member:
    """One process of a run: forked from the server, or started as a user starts it."""

    process: "BaseProcess | subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid or 0

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def descendants(self) -> list[int]:
        """What it started and what that started: ranks of a launcher, workers of the data loader."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []


@dataclass
class Run:
    """One start of a command, in one or several processes, and what it says."""

    members: Sequence[Member]
    log: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """What all processes have said until now."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def codes(self) -> list[int | None]:
        """The exit code of every process; None for those that run."""
        return [member.code() for member in self.members]

    def running(self) -> bool:
        """Whether any process runs."""
        return None in self.codes()

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code: of the first process that failed, or 0.

        Raises: TimeoutError, when everything has been killed, if it does not end within `limit` seconds.
        """
        self.wait_until(lambda: False, limit)
        codes = [code or 0 for code in self.codes()]
        self.kill()
        return next((code for code in codes if code), 0)

    def wait_until(self, happens: Callable[[], bool], limit: float = LIMIT) -> bool:
        """Waits for something; False when all processes ended first.

        Raises: TimeoutError, when everything has been killed, if neither is so within `limit` seconds.
        """
        until = time.monotonic() + limit
        while not happens():
            if not self.running():
                return happens()
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"nothing within {limit:.0f} s; it said: {self.text[-300:]}")
            time.sleep(0.0005)
        return True

    def goes_on_for(self, seconds: float) -> bool:
        """Lets it run; False when it has ended by then."""
        until = time.monotonic() + seconds
        return self.wait_until(lambda: time.monotonic() >= until) and self.running()

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        """Sends a signal to one process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.members[rank].pid, number)

    def kill(self, ranks: Sequence[int] | None = None) -> None:
        """SIGKILL to these processes, or to all and to what they started."""
        below = [] if ranks is not None else [pid for m in self.members for pid in m.descendants()]
        for rank in range(len(self.members)) if ranks is None else ranks:
            self.send(signal.SIGKILL, rank)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while ranks is None and self.running():
            time.sleep(0.0005)


class Processes:
    """Starts runs, and leaves none of them behind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[Run]()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        self.gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ.update(
            OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
            DS_ACCELERATOR="cpu", MPLBACKEND="agg",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip

    def warm_up(self) -> None:
        """Starts the server, which imports for seconds while this process does other things."""
        from multiprocessing import forkserver

        forkserver.ensure_running()

    def _log(self) -> Path:
        path = self.folder / "logs" / f"{len(self.started):04}.txt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    def _keep(self, members: Sequence[Member], log: Path) -> Run:
        self.started.append(Run(members, log))
        return self.started[-1]

    def warm(self, words: Sequence[str], num: int = 1, hooks: inside.Hooks | None = None, strategy: str = "") -> Run:
        """Forks `ingot WORDS`, as process 0 to num - 1 of a group when there are several."""
        log = self._log()
        members = []
        for environment in ranks(num, strategy):
            arguments = (list(words), str(log), environment, hooks or {})
            process = self.context.Process(target=inside.command_in_child, args=arguments)
            process.start()
            members.append(Member(process))
        return self._keep(members, log)

    def cold(self, words: Sequence[str], with_gpus: bool = False) -> Run:
        """Starts a Python with these words, such as `-m ingot.cli pretrain ...`, in a session of its own."""
        log = self._log()
        root = str(Path(inside.__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths}
        if with_gpus:
            environment.pop("CUDA_VISIBLE_DEVICES")
            environment |= {"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus is not None else {}
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words], env=environment,
                stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self._keep([Member(process)], log)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns in a warm process; what needs torch is done there.

        Raises: RuntimeError with its traceback when it fails.
        """
        receiving, sending = self.context.Pipe(duplex=False)
        process = self.context.Process(target=inside.call_in_child, args=(sending, function, arguments))
        process.start()
        sending.close()
        done, value = receiving.recv()
        process.join()
        if not done:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """Kills what still runs."""
        for run in self.started:
            if run.running():
                run.kill()


def ranks(num: int, strategy: str = "") -> list[dict[str, str]]:
    """What a launcher sets for each of its processes; one process needs nothing."""
    if num == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    if strategy:
        shared |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": strategy}
        shared |= {"ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file", "ACCELERATE_MIXED_PRECISION": "no"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(num: int, *words: str, strategy: str = "", options: Sequence[str] = ()) -> list[str]:
    """`accelerate launch` of an `ingot` command in several processes on CPUs, for `Processes.cold`."""
    how = ["--use_deepspeed", "--deepspeed_config_file", strategy] if strategy else ["--multi_gpu"]
    how += ["--num_processes", str(num), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    how += ["--main_process_port", str(free_port()), *options]
    return ["-m", "accelerate.commands.launch", *how, "-m", "ingot.cli", *words]
