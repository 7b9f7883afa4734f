"""SIGTERM, SIGINT and SIGUSR1 at any moment: a checkpoint of that step, a quick end, and nothing lost."""

import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.faults.compare import (
    corrupt,
    last_step,
    metrics_equal,
    newest_good,
    step_of,
    weights_hash,
)
from ingot.faults.processes import Run
from ingot.faults.workplace import Result, Subject, Workplace
from ingot.training.checkpoint_folders import STAGING

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MOMENTS = ("start", "step", "evaluation", "save")
SECONDS = 30  # within which a run has to end


@dataclass
class Heard:
    """What has been counted."""

    sent: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)
    seconds: list[tuple[float, str]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    equal: int = 0
    wrong: list[str] = field(default_factory=list)

    def measured(self) -> dict[str, Any]:
        """As numbers."""
        ordered = sorted(self.seconds) or [(0.0, "none")]
        return {
            "signals": self.sent, "moments": self.moments, "exit_codes": self.codes,
            "seconds_p95": round(ordered[int(0.95 * (len(ordered) - 1))][0], 2),
            "seconds_max": round(ordered[-1][0], 2), "slowest": ordered[-1][1],
            "most_steps_lost": max(self.lost, default=0), "equal_after_resume": self.equal, "wrong": self.wrong[:5],
        }  # fmt: skip


def sigterm(work: Workplace) -> Result:
    """Every signal in every kind of moment; long: also cold processes, sft, dpo and two processes."""
    drawn, heard = work.random("sigterm"), Heard()
    subjects = [work.usual if work.short else work.pretrain("signals", training__max_steps=40)]
    if not work.short:
        # several processes agree every few seconds, so this one runs longer than that
        longer = {"training__max_steps": 800, "training__eval_steps": 200, "training__save_steps": 200}
        several = work.pretrain("signals_ddp", num_processes=2, run__global_batch_size=8, **longer)
        subjects += [several, work.sft("signals_sft"), work.dpo("signals_dpo"), subjects[0]]
    for number in range(2 if work.short else 20):
        subject = subjects[number // 4 % len(subjects)]
        moment = MOMENTS[1] if work.short else MOMENTS[number % 4]
        one(work, subject, moment, SIGNALS[number % 3], number >= 16, drawn, heard)
        work.say(f"sigterm: {number + 1} sent, {heard.equal} continued to the same end")
    ok = not heard.wrong and heard.equal == heard.sent and max(heard.seconds, default=(0.0, ""))[0] < SECONDS
    asked = f"{heard.sent} signals: exit code 130 within {SECONDS} s, no step lost, resumed runs end equal"
    return {"name": "sigterm", "asked": asked, "measured": heard.measured(), "passed": ok}


def one(
    work: Workplace,
    subject: Subject,
    moment: str,
    number: signal.Signals,
    cold: bool,
    drawn: random.Random,
    heard: Heard,
) -> None:
    """Sends one signal to a run, looks at what it leaves, and lets it continue."""
    reference = work.reference(subject)
    folder = work.folder / f"signal-{heard.sent}"
    run = work.begin(subject, folder, cold=cold)
    reached = reach(run, moment, folder, subject, drawn)
    began = time.monotonic()
    for rank in range(len(run.members)):  # as a scheduler does: every process hears it
        run.send(number, rank)
    code = run.wait(120)
    how = f"{number.name} at {moment} of {subject.name}{', cold' if cold else ''}"
    if reached:
        heard.seconds.append((time.monotonic() - began, how))
    heard.sent += 1
    heard.moments[moment] = heard.moments.get(moment, 0) + 1
    name = f"{number.name}: {code}" if code or reached else "ended before"
    heard.codes[name] = heard.codes.get(name, 0) + 1
    note(run, folder, code, how, heard)
    work.finish(subject, folder)
    same = weights_hash(folder) == weights_hash(reference.folder) and metrics_equal(folder, reference.folder)
    heard.equal += same
    if not same:
        heard.wrong.append(f"{folder.name}: {number.name} at {moment}: does not end as the undisturbed run")


def reach(run: Run, moment: str, folder: Path, subject: Subject, drawn: random.Random) -> bool:
    """Lets the run come to a moment; False when it ended before."""
    training = subject.tree["training"]
    last = int(training["max_steps"])
    if moment == "start":
        return run.goes_on_for(drawn.uniform(0.05, 0.5))
    if moment == "save":
        return run.wait_until((folder / STAGING).exists) and run.goes_on_for(drawn.uniform(0, 0.03))
    every = int(training.get("eval_steps") or 1)
    step = drawn.randrange(every, last - every, every) if moment == "evaluation" else drawn.randrange(2, last - 8)
    return run.wait_until(lambda: last_step(folder) >= step)


def note(run: Run, folder: Path, code: int, what: str, heard: Heard) -> None:
    """Whether the end is right: 130 once it trains; before, nothing is there to lose."""
    heard.wrong += corrupt(folder)
    began = "step 1/" in run.text or last_step(folder) > 0
    if code not in (0, 130) and began:
        heard.wrong.append(f"{folder.name}: {what}: exit code {code}: {run.text[-300:]}")
    good = newest_good(folder)
    lost = last_step(folder) - (step_of(good) if good else 0)
    heard.lost.append(lost)
    if lost > 0 and code == 130:
        heard.wrong.append(f"{folder.name}: {what}: {lost} steps lost")
