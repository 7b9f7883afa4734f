"""What needs a GPU: its clock, kernels and readings, and steps that do not wait.

`pytest -m gpu tests/training/test_profiling_gpu.py`
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from ingot.runs import read_json
from ingot.training import pretrain_loop
from ingot.training.callbacks import read_metrics
from ingot.training.profiling import PHASES

from .conftest import Pretrain
from .pretrain_toys import NO_EVALUATION

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

ON_GPU: dict[str, Any] = {
    "training__use_cpu": None,
    "training__gradient_accumulation_steps": 2,
    "run__optimizer": None,
}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_a_profile_adds_up_and_changes_nothing(pretrain: Pretrain) -> None:
    plain, _ = pretrain("plain", **ON_GPU)
    folder, _ = pretrain("profiled", **ON_GPU, run__profile=5)
    found = read_json(folder / "profile.json")
    assert (found["device"], found["steps"]) == (torch.cuda.get_device_name(), 5)
    assert list(found["seconds"]) == list(PHASES) and min(found["seconds"].values()) >= 0
    assert sum(found["seconds"].values()) == pytest.approx(found["step_seconds"], rel=1e-3)
    assert min(found["seconds"][phase] for phase in ("forward", "backward", "optimizer")) > 0
    assert "of kernels on the GPU" in (folder / "kernels.md").read_text()
    assert (folder / "trace.json.gz").stat().st_size > 10_000
    assert losses(folder) == pytest.approx(losses(plain), abs=1e-5)


def test_the_metrics_tell_of_the_gpu(pretrain: Pretrain) -> None:
    folder, _ = pretrain(**ON_GPU)
    line = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line][-1]
    assert 0 < line["peak_memory_gib"] < torch.cuda.mem_get_info()[1] / 2**30 and line["step_seconds"] > 0
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("nvidia-ml-py is not installed")
    assert 0 <= line["gpu_utilization"] <= 100 and 10 < line["gpu_temperature"] < 110 and 10 < line["gpu_power"] < 2000


def test_no_step_waits_for_the_gpu(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoWaiting(TrainerCallback):
        """From the end of step 3 to that of step 9; none of these is logged."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if 3 <= state.global_step < 9 else "default")

    original = pretrain_loop.callbacks
    monkeypatch.setattr(pretrain_loop, "callbacks", lambda *args: [*original(*args), NoWaiting()])
    rare = {"training__logging_steps": 12, "training__save_steps": 12, "training__bf16": True}
    try:
        folder, _ = pretrain(**ON_GPU, **rare, **NO_EVALUATION, run__profile=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(losses(folder)) == 1 and read_json(folder / "profile.json")["steps"] == 4
