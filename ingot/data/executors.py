"""Runs the tasks of a pipeline: in local processes, as a Slurm job or on a Ray cluster.

Finished tasks are not repeated.

A task that fails leaves its error in `failures/`; whoever started the pipeline raises it as one line.
"""

import copy
import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import Stats

from ingot.data.execution import DataRun
from ingot.data.pipeline import Documents
from ingot.data.tasks import Task
from ingot.files import read_json, write_json
from ingot.recipe import InputError
from ingot.runs import get_logger, progress

logger = get_logger(__name__)

PRELOADED = ["ingot.data.writing", "tokenizers"]  # imported once for all local processes


class ReportErrors(PipelineStep):
    """The last step: writes down what went wrong, where the process that started the pipeline looks for it."""

    name, type = "errors", "WRITER"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        try:
            yield from data
        except Exception as error:
            _report(self.folder, rank, error)
            raise


def _failure(folder: Path, rank: int) -> Path:
    return folder / "failures" / f"{rank:05d}.json"


def _report(folder: Path, rank: int, error: Exception) -> None:
    wrong_input = isinstance(error, InputError)
    try:
        _failure(folder, rank).parent.mkdir(parents=True, exist_ok=True)
        write_json(
            _failure(folder, rank),
            {"wrong_input": wrong_input, "message": str(error) if wrong_input else f"{type(error).__name__}: {error}"},
        )
    except (OSError, InputError) as second:  # on a full disk the task's own log has to do
        print(f"{error} (not reported to {folder}: {second})", file=sys.stderr)


def run_tasks(
    steps: Sequence[PipelineStep], tasks: Sequence[Task], missing: Sequence[int], logs: Path, run: DataRun, desc: str
) -> None:
    """Runs the steps for the tasks that are missing.

    Raises: InputError with a task's own message, or with the way out when a process died.
    """
    if not missing:
        return
    _expect(logs, len(tasks), missing)
    pipeline = [*steps, ReportErrors(logs)]
    if run.executor == "slurm":
        from ingot.data.slurm import SlurmExecutor

        SlurmExecutor(pipeline, tasks, logs, run, desc).run_and_wait()
    elif run.executor == "ray":
        from ingot.data.ray_executor import run_on_ray

        run_on_ray(pipeline, len(tasks), logs, run.workers)
    else:
        LocalExecutor(pipeline, tasks, run._local_workers(len(missing)), logs, desc).run()
    raise_failures(logs, tasks, desc)


def _expect(logs: Path, num_tasks: int, missing: Sequence[int]) -> None:
    """Makes datatrove's list of completed tasks say what our own records say, and forgets old failures."""
    completions = logs / "completions"
    completions.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in completions.iterdir()}
    done = {f"{rank:05d}" for rank in set(range(num_tasks)) - set(missing)}
    for name in there - done:
        (completions / name).unlink()
    for name in done - there:
        (completions / name).touch()
    for rank in missing:
        _failure(logs, rank).unlink(missing_ok=True)


def raise_failures(logs: Path, tasks: Sequence[Task], desc: str, hint: str = "") -> None:
    """Raises the first failure of the tasks that are not completed.

    Raises: InputError, which is one line; RuntimeError for a fault of ours.
    """
    names = {path.name for path in (logs / "completions").iterdir()}
    incomplete = [rank for rank in range(len(tasks)) if f"{rank:05d}" not in names]
    failures = [rank for rank in incomplete if _failure(logs, rank).is_file()]
    more = f" ({len(failures):,} of {len(tasks):,} tasks failed)" if len(failures) > 1 else ""
    for failure in (read_json(_failure(logs, rank)) for rank in failures):
        raise (InputError if failure["wrong_input"] else RuntimeError)(f"{failure['message']}{more}")
    if incomplete:
        first = tasks[incomplete[0]].place
        raise InputError(
            f"{desc}: {len(incomplete):,} of {len(tasks):,} tasks did not finish (the first reads {first})"
            f"{hint}; run the same command again, finished tasks are kept"
        )


class LocalExecutor(PipelineExecutor):
    """Runs tasks in local processes; unlike datatrove's own it notices a process that dies, and says so."""

    def __init__(
        self, pipeline: list[PipelineStep], tasks: Sequence[Task], workers: int, logs: Path, desc: str
    ) -> None:
        super().__init__([*pipeline], str(logs))
        self.steps, self.places = pipeline, [task.place for task in tasks]
        self.workers, self.desc = workers, desc

    @property
    def world_size(self) -> int:
        return len(self.places)

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost", datatrove_cpus_per_task="-1", datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1", datatrove_executor="LOCAL",
        )  # fmt: skip

    def run_rank(self, rank: int) -> None:
        """Runs one task with statistics of its own."""
        fresh = [copy.copy(step) for step in self.steps]
        for step in fresh:
            step.stats = Stats(repr(step))
        self.pipeline = [*fresh]
        self._run_for_rank(rank, local_rank=1)

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        done = self._in_processes(ranks) if self.workers > 1 else self._here(ranks)
        for _ in progress(done, total=len(ranks), desc=self.desc):
            pass

    def _here(self, ranks: list[int]) -> Iterator[int]:
        for rank in ranks:
            self.run_rank(rank)
            yield rank

    def _in_processes(self, ranks: list[int]) -> Iterator[int]:
        """Keeps every process busy with one rank at a time; yields the ranks that are done.

        Raises: what a task raised; InputError when a process died.
        """
        pending = list(reversed(ranks))
        workers = [_Worker(self) for _ in range(self.workers)]
        try:
            for worker in workers:
                worker.give(pending)
            while busy := {thing: w for w in workers if w.rank is not None for thing in w.waited}:
                for worker in {busy[thing] for thing in wait(list(busy))}:
                    yield self._result_of(worker)
                    worker.give(pending)
        finally:
            for worker in workers:
                worker.stop()

    def _result_of(self, worker: "_Worker") -> int:
        assert worker.rank is not None
        try:
            error = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode or 0
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended ({code})"
            raise InputError(
                f"{self.desc}: a process {how} while it worked on {self.places[worker.rank]}; the machine may be out "
                f"of memory: run the same command again with run.workers below {self.workers}, finished tasks are kept"
            ) from None
        if error is not None:
            raise error
        return worker.rank


class _Worker:
    """A process that does one task after another."""

    def __init__(self, executor: LocalExecutor) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, executor), daemon=True)
        self.process.start()
        other.close()
        self.rank: int | None = None

    @property
    def waited(self) -> list[Any]:
        """What becomes ready when the task is done or the process has died."""
        return [self.connection, self.process.sentinel]

    def give(self, pending: list[int]) -> None:
        """Takes the next rank, if there is one."""
        self.rank = pending.pop() if pending else None
        if self.rank is not None:
            self.connection.send(self.rank)

    def stop(self) -> None:
        """Ends the process, whatever it does; what it has not finished is done again another time."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(connection: Connection, executor: LocalExecutor) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    _end_with_parent()
    gc.freeze()  # what was imported stays; no need to look at it again
    while True:
        try:
            rank = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        answer: Exception | None = None
        try:
            executor.run_rank(rank)
        except Exception as error:
            known = isinstance(error, InputError)
            answer = error if known else RuntimeError(f"{type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except BrokenPipeError:  # whoever waits for it has ended
            return


def _end_with_parent() -> None:
    """Asks Linux to kill this process when the one that forked it ends, as that does when the driver is gone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
