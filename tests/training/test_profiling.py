"""Where the time of a step goes: on request, adding up to the step, and without changing the run."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from ingot.recipe import InputError
from ingot.runs import read_json
from ingot.training.profiling import PHASES, PhaseClock, StepProfile, kernel_table, means, window

from .conftest import Pretrain
from .pretrain_toys import pretrain_recipe
from .test_callbacks import lines  # noqa: F401 - fixture
from .test_pretrain import lines_of

FILES = ("profile.json", "profile.png", "kernels.md", "trace.json.gz")


def test_a_profile_adds_up_and_changes_nothing(pretrain: Pretrain, lines: Any) -> None:  # noqa: F811
    changes: dict[str, Any] = {"training__gradient_accumulation_steps": 2, "training__eval_steps": 5}
    plain, _ = pretrain("plain", **changes)
    folder, _ = pretrain("profiled", **changes, run__profile=4)
    found = read_json(folder / "profile.json")
    assert (found["device"], found["processes"], found["micro_batches"]) == ("CPU", 1, 2)
    assert (found["first_step"], found["steps"]) == (5, 4)
    assert list(found["seconds"]) == list(PHASES) and min(found["seconds"].values()) > 0
    assert sum(found["seconds"].values()) == pytest.approx(found["step_seconds"], rel=1e-6)
    assert sum(found["shares"].values()) == pytest.approx(1)
    said = next(line for line in lines() if line.startswith("a step takes "))
    assert f"forward {found['shares']['forward']:.1%}" in said
    assert all((folder / name).stat().st_size > 100 for name in FILES)
    assert not any((plain / name).exists() for name in FILES)
    assert "![profile](profile.png)" in (folder / "report.md").read_text()
    assert "aten::" in (folder / "kernels.md").read_text()
    names = [
        event.get("name", "")
        for event in json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    ]
    # of step 9; step 10 is traced to its first micro-batch
    assert sum(name.startswith("Optimizer.step") for name in names) == 1
    told = [line for line in lines_of(folder) if line.keys() == {"step", "epoch"}]
    assert len(told) == 1 and [line for line in lines_of(folder) if line not in told] == lines_of(plain)


def test_a_short_run_is_profiled_as_far_as_it_goes(pretrain: Pretrain, lines: Any) -> None:  # noqa: F811
    folder, _ = pretrain(run__profile=True, training__max_steps=1, training__eval_steps=1, training__warmup_steps=0)
    assert read_json(folder / "profile.json")["steps"] == 1
    assert not (folder / "kernels.md").exists() and "[kernels.md]" not in (folder / "report.md").read_text()
    assert "run.profile: 1 steps are left, of which 1 are timed; none is left to trace" in lines()
    pretrain(run__profile=True, training__max_steps=1, training__eval_steps=1, training__warmup_steps=0)
    assert "run.profile: the run is complete, so no step is left to profile; name another run.dir" in lines()


def test_nothing_is_timed_unless_it_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    assert pretrain_recipe(corpus, tmp_path).run.profile is False
    for wrong in (0, -3, "yes"):
        with pytest.raises(InputError, match="run.profile"):
            pretrain_recipe(corpus, tmp_path, run__profile=wrong)


@pytest.mark.parametrize(
    ("left", "wanted", "expected"),
    [(1000, 20, (5, 20)), (26, 20, (5, 20)), (12, 20, (4, 7)), (3, 20, (1, 1)), (2, 20, (0, 1)), (1, 20, (0, 1))],
)
def test_what_fits_into_the_steps_that_are_left(left: int, wanted: int, expected: tuple[int, int]) -> None:
    assert window(left, wanted) == expected


def test_the_phases_of_a_step_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = PhaseClock(on_gpu=False)
    times = iter([0.0, 1.0, 3.0, 3.5, 10.0, 11.0, 20.0, 22.0])
    clock._now = lambda: next(times)
    clock.enter("forward")  # before the first step, of an evaluation
    clock.begin_step()
    for phase in ("forward", "data", "forward"):
        clock.enter(phase)
    clock.begin_step()
    clock.end_step()
    clock.enter("forward")  # of an evaluation
    clock.begin_step()
    clock.end_step()
    first, second, third = clock.steps()
    assert first == {"data": 1.5, "forward": 8.5, "backward": 0, "optimizer": 0, "other": 0, "step": 10}
    assert (second["data"], second["step"], third["step"]) == (1, 1, 2)
    found = means([first, second, third])
    assert (found["steps"], found["slowest_step_seconds"]) == (3, 10)
    assert found["step_seconds"] == pytest.approx(13 / 3) == pytest.approx(sum(found["seconds"].values()))


def test_kernels_are_told_without_ranges_and_operators(tmp_path: Path) -> None:
    def event(key: str, device: DeviceType, time: float, named: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, count=2, device_type=device, is_user_annotation=named,
            self_device_time_total=time, self_cpu_time_total=time,
        )  # fmt: skip

    events = [
        event("gemm|a", DeviceType.CUDA, 3000), event("softmax", DeviceType.CUDA, 1000),
        event("Optimizer.step", DeviceType.CUDA, 9000, named=True), event("aten::mm", DeviceType.CPU, 8000),
    ]  # fmt: skip
    page = kernel_table(events, 26)
    assert "of step 26" in page and "4.0 ms of kernels on the GPU" in page
    assert page.split("\n")[-3:] == ["| `gemm/a` | 2 | 3.00 | 75.0% |", "| `softmax` | 2 | 1.00 | 25.0% |", ""]
    assert "9.0 ms of operators on the CPU" not in page and "aten::mm" in kernel_table(events[-1:], 26)


def test_training_that_ends_before_the_window_is_told(tmp_path: Path, lines: Any) -> None:  # noqa: F811
    profile = StepProfile(tmp_path, on_gpu=False, wanted=5)
    profile.begin_step(0, 100)
    profile.end_step(last=True)
    assert profile.done and profile.write(1) is None and not (tmp_path / "profile.json").exists()
    assert lines() == ["run.profile: training ended before step 6, the first to be timed"]
