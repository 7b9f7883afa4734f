"""`run.profile`: where the time of a step goes, and which kernels take it.

Phases: `data` is the wait for the loader and the copy to the device; `forward` the model and its loss; `backward` the
gradients, with their exchange between processes; `optimizer` clipping, its step and zeroing the gradients; `other` the
rest. A step with several micro-batches has the sums over them.
"""

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.autograd import DeviceType

from ingot.plots import plot_bars
from ingot.runs import get_logger, is_main_process, num_processes, read_json, write_json, write_text

logger = get_logger(__name__)

PHASES = ("data", "forward", "backward", "optimizer", "other")
STEPS, WARM_UP = 20, 5  # steps that are timed unless the recipe says how many, and those that come before
PROFILE, PLOT, KERNELS, TRACE = "profile.json", "profile.png", "kernels.md", "trace.json.gz"
ROWS, WIDTH = 15, 100  # kernels in the table, and characters of their names


class PhaseClock:
    """When each phase of each step began.

    On a GPU these are events in its queue, which nothing waits for: a phase lasts from where the GPU came to its
    beginning to where it came to that of the next, so work that the GPU did not have to wait for costs nothing.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._now = _gpu_event if on_gpu else time.perf_counter
        self._steps: list[list[tuple[str, Any]]] = []
        self._runs = False

    def begin_step(self) -> None:
        """Ends the step before, and begins one with its data."""
        mark = self._now()
        if self._runs:
            self._steps[-1].append(("", mark))
        self._steps.append([("data", mark)])
        self._runs = True

    def enter(self, phase: str) -> None:
        """Ends the phase before; between steps nothing happens."""
        if self._runs:
            self._steps[-1].append((phase, self._now()))

    def end_step(self) -> None:
        """What comes until the next step begins is part of none."""
        self.enter("")
        self._runs = False

    def steps(self) -> list[dict[str, float]]:
        """Seconds of every phase, and `step`, from beginning to end; waits for the GPU."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return [_seconds(marks) for marks in self._steps]


def _gpu_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    """Seconds; events tell milliseconds."""
    return float(end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000)


def _seconds(marks: list[tuple[str, Any]]) -> dict[str, float]:
    found = dict.fromkeys(PHASES, 0.0)
    for (phase, begin), (_, end) in zip(marks, marks[1:], strict=False):
        found[phase] += _between(begin, end)
    return found | {"step": _between(marks[0][1], marks[-1][1])}


def window(left: int, wanted: int) -> tuple[int, int]:
    """Of the steps that are left, how many pass before the timed ones, and how many are timed; one more is traced."""
    before = min(WARM_UP, left // 3)
    return before, max(1, min(wanted, left - before - 1))


class StepProfile:
    """Times the phases of some steps; then traces kernels, from the last micro-batch of a step into the next step."""

    def __init__(self, folder: Path, on_gpu: bool, wanted: int) -> None:
        """`wanted`: steps to time."""
        self.folder, self.on_gpu, self.wanted = folder, on_gpu, wanted
        self.done = False
        self._clock = PhaseClock(on_gpu)
        self._first = self._end = -1  # the first step that is timed and the first that is not any more, from 0
        self._trace: torch.profiler.profile | None = None
        self._traced_step = 0

    def begin_step(self, step: int, last: int) -> None:
        """A step begins, after so many of `last`."""
        if self._first < 0:
            self._plan(step, last)
        if self._first <= step < self._end:
            self._clock.begin_step()
        else:
            self._clock.end_step()

    def _plan(self, step: int, last: int) -> None:
        before, timed = window(last - step, self.wanted)
        self._first, self._end = step + before, step + before + timed
        if timed < self.wanted:
            told = "; none is left to trace" if self._end >= last else ""
            logger.info("run.profile: %d steps are left, of which %d are timed%s", last - step, timed, told)

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._clock.enter(phase)

    def begin_micro_batch(self, step: int, last: bool) -> None:
        """`last`: the optimizer's step comes after it. After the timed steps the trace begins here."""
        if last and step >= self._end and self._trace is None:
            kinds = torch.profiler.ProfilerActivity
            self._trace = torch.profiler.profile(activities=[kinds.CPU, *[kinds.CUDA] * self.on_gpu])
            self._traced_step = step
            self._trace.start()

    def end_micro_batch(self, step: int) -> None:
        """The first one of the step after ends the trace."""
        self.enter("other")
        if self._trace is not None and step > self._traced_step:
            self._end_trace(self._trace)

    def end_step(self, last: bool) -> None:
        """The step ends before its evaluation and its checkpoint, or the run does."""
        self._clock.end_step()
        if self._trace is not None:
            self._end_trace(self._trace)
        self.done = self.done or last

    def _end_trace(self, trace: torch.profiler.profile) -> None:
        if self.done:
            return
        trace.stop()
        trace.export_chrome_trace(str(self.folder / TRACE))
        write_text(self.folder / KERNELS, kernel_table(trace.key_averages(), self._traced_step + 1))
        self.done = True

    def write(self, micro_batches: int) -> dict[str, Any] | None:
        """Writes and says the means over the timed steps; None where training ended before them."""
        steps = self._clock.steps()
        if not steps:
            logger.warning("run.profile: training ended before step %d, the first to be timed", self._first + 1)
            return None
        device = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        where = {"device": device, "processes": num_processes(), "micro_batches": micro_batches}
        found: dict[str, Any] = {**where, "first_step": self._first + 1, **means(steps)}
        write_json(self.folder / PROFILE, found)
        shares = ", ".join(f"{phase} {share:.1%}" for phase, share in found["shares"].items())
        logger.info("a step takes %.4g ms: %s", 1000 * found["step_seconds"], shares)
        return found


def means(steps: list[dict[str, float]]) -> dict[str, Any]:
    """`steps`, `step_seconds`, `slowest_step_seconds`, and the `seconds` and `shares` of the phases."""
    step = fmean(times["step"] for times in steps)
    seconds = {phase: fmean(times[phase] for times in steps) for phase in PHASES}
    return {
        "steps": len(steps), "step_seconds": step, "slowest_step_seconds": max(times["step"] for times in steps),
        "seconds": seconds, "shares": {phase: value / step for phase, value in seconds.items()},
    }  # fmt: skip


def kernel_table(events: Any, step: int) -> str:
    """The kernels with the most time on the GPU as Markdown; without a GPU, the operators with the most on the CPU."""
    on_gpu = {e.key: (e.count, e.self_device_time_total) for e in events if _is_kernel(e)}
    on_cpu = {e.key: (e.count, e.self_cpu_time_total) for e in events if e.device_type == DeviceType.CPU}
    what, rows = ("kernels", on_gpu) if on_gpu else ("operators", on_cpu)
    total = sum(time for _, time in rows.values())  # microseconds
    most = sorted(rows.items(), key=lambda row: -row[1][1])[:ROWS]
    head = (
        f"# The {what} that take the most time\n\nFrom the last micro-batch of step {step} to the first of the next "
        f"step: {total / 1000:.1f} ms of {what} on the {'GPU' if on_gpu else 'CPU'}. `{TRACE}` shows them in order "
        "(open it in Perfetto or chrome://tracing).\n\n| | calls | ms | share |\n|---|---:|---:|---:|\n"
    )
    return head + "".join(
        f"| `{name[:WIDTH].replace('|', '/')}` | {count} | {time / 1000:.2f} | {time / total:.1%} |\n"
        for name, (count, time) in most
    )


def _is_kernel(event: Any) -> bool:
    """Whether it ran on the GPU; ranges that were named in the code are shown there too."""
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation and event.self_device_time_total > 0


def step_profile(asked: bool | int, folder: Path, on_gpu: bool) -> StepProfile | None:
    """What `run.profile` asks for; of several processes the first is profiled."""
    if asked is False or not is_main_process():
        return None
    return StepProfile(folder, on_gpu, STEPS if asked is True else asked)


def profile_report(folder: Path) -> list[str]:
    """Sections of the report, with a plot; none where nothing was profiled."""
    if not (folder / PROFILE).is_file():
        return []
    found = read_json(folder / PROFILE)
    milliseconds = {phase: 1000 * value for phase, value in found["seconds"].items()}
    plot_bars(milliseconds, folder / PLOT, f"A step: {1000 * found['step_seconds']:.4g} ms", "milliseconds")
    rows = "".join(f"| {p} | {value:.2f} | {found['shares'][p]:.1%} |\n" for p, value in milliseconds.items())
    text = (
        f"Means of {found['steps']} steps from step {found['first_step']} on, {found['micro_batches']} micro-batches "
        f"each, on {found['device']}."
    )
    kernels = f" The kernels: [{KERNELS}]({KERNELS})." if (folder / KERNELS).is_file() else ""
    table = f"| | ms | share |\n|---|---:|---:|\n{rows}".rstrip()
    return ["## Where the time of a step goes", text + kernels, table, f"![profile]({PLOT})"]
