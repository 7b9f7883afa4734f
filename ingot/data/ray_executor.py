"""Tasks on a Ray cluster: the one that RAY_ADDRESS names, else one that is started on this machine for as long."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from datatrove.executor.ray import RayPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from ingot.data.pipeline import Documents

MEMORY_GB = 1.0  # that a task asks Ray for


class _Enter(PipelineStep):
    """The first step: relative paths mean the same on every machine that shares the file system."""

    name, type = "folder", "READER"

    def __init__(self) -> None:
        super().__init__()
        self.folder = os.getcwd()

    def run(self, data: Documents | None = None, rank: int = 0, world_size: int = 1) -> Documents:
        os.chdir(self.folder)
        return data


def run_on_ray(pipeline: Sequence[PipelineStep], num_tasks: int, logs: Path, workers: int | None) -> None:
    """Runs the tasks that are not completed; those that fail leave their errors in `logs`."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        RayPipelineExecutor(
            [_Enter(), *pipeline],
            tasks=num_tasks,
            workers=workers or -1,
            logging_dir=str(logs.resolve()),
            mem_per_cpu_gb=MEMORY_GB,
        ).run()
    finally:
        if started:
            ray.shutdown()
