"""Where the data stage's work is done: the `run` section of its recipe. Light to import; `executors` does the work."""

import os
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from ingot.recipe import RunSection, Section


class Slurm(Section):
    """What a Slurm job asks for; one array task works on one part of the corpus after another."""

    partition: str = Field(description="partition to submit to")
    time: str = Field(description="time limit of one array task, such as 04:00:00")
    cpus_per_task: int = Field(
        default=1, gt=0, description="cores of a task; more than one only speeds up large files"
    )
    mem_per_cpu_gb: int = Field(default=2, gt=0, description="memory for each of them, in GB")
    qos: str | None = Field(default=None, description="quality of service; unset: the cluster's")
    tasks_per_job: int | None = Field(
        default=None, gt=0, description="parts that one array task does; unset: as many as keep the array below 1,001"
    )
    sbatch: dict[str, str | int] = Field(
        default={}, description="further directives, such as account: NAME; given to sbatch as they are"
    )
    env_command: str | None = Field(
        default=None,
        description="command that a task runs first, such as `module load python`; unset: finds this Python",
    )


class DataRun(RunSection):
    """The run folder, and where the work is done."""

    how: ClassVar[tuple[str, ...]] = ("dir", "executor", "workers", "slurm")
    executor: Literal["local", "slurm", "ray"] = Field(default="local", description="where tasks run")
    workers: int | None = Field(
        default=None,
        gt=0,
        description="tasks at the same time; unset: one for each core, on a cluster as many as it has",
    )
    slurm: Slurm | None = Field(default=None, description="the Slurm job, with executor: slurm")

    def problems(self) -> Iterator[str]:
        """Contradictions between the keys."""
        if self.executor == "slurm" and self.slurm is None:
            yield "run.slurm: missing; executor: slurm needs at least partition and time"
        if self.executor != "slurm" and self.slurm is not None:
            yield f"run.slurm: has no effect with executor: {self.executor}; set executor: slurm, or remove it"

    def threads(self, num_tasks: int) -> int:
        """Threads of the tokenizer in each task: cores that other tasks leave."""
        if self.executor == "slurm":
            assert self.slurm is not None
            return self.slurm.cpus_per_task
        return 1 if self.executor == "ray" else max(1, num_cores() // self._local_workers(num_tasks))

    def _local_workers(self, num_tasks: int) -> int:
        return max(1, min(num_tasks, self.workers or num_cores()))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
