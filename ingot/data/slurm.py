"""Tasks as a Slurm job array: submitted by datatrove, waited for here, taken up again when the driver is restarted."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from ingot.data.execution import DataRun
from ingot.data.executors import raise_failures
from ingot.data.tasks import Task
from ingot.files import read_json, write_json
from ingot.recipe import InputError
from ingot.runs import get_logger

logger = get_logger(__name__)

JOB = "job.json"
ARRAY = 1000  # array tasks of a job, which clusters allow
POLL = 10.0  # seconds between looks at the queue
GRACE = 30.0  # seconds that a shared file system may take to show the last files


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor with a driver that waits for the end."""

    def __init__(
        self, pipeline: list[PipelineStep], tasks: Sequence[Task], logs: Path, run: DataRun, desc: str
    ) -> None:
        asked = run.slurm
        assert asked is not None
        programs = Path(sys.executable).parent
        self.logs, self.desc, self.shown, self.jobs = logs, desc, list(tasks), list[str]()
        super().__init__(
            [*pipeline],
            tasks=len(tasks),
            time=asked.time,
            partition=asked.partition,
            cpus_per_task=asked.cpus_per_task,
            mem_per_cpu_gb=asked.mem_per_cpu_gb,
            workers=run.workers or -1,
            job_name=f"ingot-{logs.name}",
            qos=asked.qos,  # type: ignore[arg-type]  # None leaves it to the cluster
            env_command=asked.env_command or f'export PATH="{programs}:$PATH"',
            sbatch_args={"chdir": os.getcwd(), **asked.sbatch},
            logging_dir=str(logs.resolve()),
            tasks_per_job=asked.tasks_per_job or -(-len(tasks) // ARRAY),
            max_array_launch_parallel=True,
            job_id_retriever=self._remember,
        )

    def launch_merge_stats(self) -> None:
        """Leaves out datatrove's second job: the driver adds up what the tasks found."""

    def run_and_wait(self) -> None:
        """Submits what is missing, unless a job of an earlier driver still runs, and waits until it has ended.

        Raises: InputError when Slurm refuses the job, or when tasks are missing at its end.
        """
        submitted = self.logs / JOB
        if submitted.is_file() and _in_queue(read_json(submitted)["jobs"]):
            self.jobs = read_json(submitted)["jobs"]
            logger.info("%s: job %s is still there, waiting for it", self.desc, ",".join(self.jobs))
        else:
            self._submit()
            write_json(submitted, {"jobs": self.jobs})
        self._wait()
        submitted.unlink()
        hint = f", see {self.slurm_logs_folder}; they may need more run.slurm.time or run.slurm.mem_per_cpu_gb"
        raise_failures(self.logs, self.shown, self.desc, hint)

    def _submit(self) -> None:
        try:
            self.launch_job()
        except FileNotFoundError:
            raise InputError("run.executor: no sbatch here; start this where Slurm jobs are submitted") from None
        except subprocess.CalledProcessError as error:
            raise InputError(f"run.slurm: sbatch refused the job (exit code {error.returncode}); see above") from None
        logger.info("%s: submitted as job %s", self.desc, ",".join(self.jobs))

    def _remember(self, output: str) -> str:
        """The job's number in what sbatch says."""
        self.jobs.append(output.split()[-1])
        return self.jobs[-1]

    def _wait(self) -> None:
        missing = -1
        while _in_queue(self.jobs):
            if (now := len(self.get_incomplete_ranks())) != missing:
                missing = now
                logger.info("%s: %d of %d tasks are done", self.desc, self.tasks - missing, self.tasks)
            time.sleep(POLL)
        end = time.monotonic() + GRACE
        while self.get_incomplete_ranks() and not any((self.logs / "failures").glob("*")) and time.monotonic() < end:
            time.sleep(min(POLL, 1.0))


def _in_queue(jobs: Sequence[str]) -> bool:
    """Whether Slurm still has one of the jobs; a squeue that fails for another reason is asked again later."""
    found = subprocess.run(
        ["squeue", "--noheader", "--jobs", ",".join(jobs), "--format", "%T"], capture_output=True, text=True
    )
    if found.returncode:
        return "invalid job id" not in found.stderr.lower()
    return bool(found.stdout.strip())
