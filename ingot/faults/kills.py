"""SIGKILL at seeded random moments, a share of them inside a save; the run is resumed after each until it is done."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.faults.compare import corrupt, last_step, metrics_equal, newest_good, step_of, weights_hash
from ingot.faults.processes import Run
from ingot.faults.workplace import Reference, Result, Subject, Workplace
from ingot.training.checkpoint_folders import STAGING

PER_RUN = 6  # kills that one run has to survive
UNFINISHED = ("continuing from ", "complete and unchanged", "step 1/")


@dataclass
class Tally:
    """What has been counted."""

    kills: int = 0
    in_save: int = 0
    cold: int = 0
    one_rank: int = 0
    corrupt: list[str] = field(default_factory=list)
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # in saves: 1.0 is as many steps as lie between two
    runs: int = 0
    equal_weights: int = 0
    equal_metrics: int = 0

    def measured(self) -> dict[str, Any]:
        """As numbers; the first lines of what went wrong."""
        return {
            "kills": self.kills, "in_the_save": self.in_save, "cold_processes": self.cold, "one_rank": self.one_rank,
            "corrupt": len(self.corrupt), "resumed": self.resumed, "most_steps_lost": max(self.lost, default=0),
            "runs": self.runs, "equal_weights": self.equal_weights, "equal_metrics": self.equal_metrics,
            "wrong": [*self.corrupt, *self.wrong][:5],
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How many kills, how many at least inside a save, and which share in processes that are started anew."""

    name: str
    kills: int
    in_save: int = 0
    cold_every: int = 0  # of so many starts one is cold; 0: none


def survive(work: Workplace, plan: Plan, subjects: Sequence[Subject]) -> Result:
    """Kills runs of these subjects in turn, each several times, and holds every finished one against its reference."""
    drawn, tally = work.random(plan.name), Tally()
    while tally.kills < plan.kills or tally.in_save < plan.in_save:
        if tally.runs >= 3 * plan.kills:  # most runs are killed at least once, unless something is wrong
            tally.wrong.append("the runs end before they are killed")
            break
        subject = subjects[tally.runs % len(subjects)]
        OneRun(work, subject, work.folder / f"{plan.name}-{tally.runs}", tally, drawn).survive(plan)
        work.say(f"{plan.name}: {tally.kills} of {plan.kills} kills, {tally.in_save} in a save, {tally.runs} runs")
    ok = not tally.corrupt and not tally.wrong and tally.resumed == tally.kills
    ok = ok and tally.equal_weights == tally.equal_metrics == tally.runs
    asked = f"{plan.kills} kills, {plan.in_save} in the save: 0 corrupt, all resumed, weights and metrics equal"
    return {"name": plan.name, "asked": asked, "measured": tally.measured(), "passed": ok}


@dataclass
class OneRun:
    """A run that is killed until it has survived enough."""

    work: Workplace
    subject: Subject
    folder: Path
    tally: Tally
    drawn: random.Random
    pending: int = 0  # kills after which no start has said yet from where it continues
    expected: Path | None = None  # the checkpoint that has to be continued

    def survive(self, plan: Plan) -> None:
        """Kills, resumes, and compares what comes out."""
        reference = self.work.reference(self.subject)
        left = min(PER_RUN, max(1, plan.kills - self.tally.kills))
        while left and self._kill(reference, plan):
            left -= 1
        if self.pending or left == 0:
            self._judge(self._last())
        self.tally.runs += 1
        weights = weights_hash(self.folder) == weights_hash(reference.folder)
        lines = metrics_equal(self.folder, reference.folder)
        self.tally.equal_weights += weights
        self.tally.equal_metrics += lines
        if not weights or not lines:
            what = "metrics" if weights else "weights"
            self.tally.wrong.append(f"{self.folder.name}, {self.subject.name}: other {what} than undisturbed")

    def _last(self) -> Run:
        run = self.work.begin(self.subject, self.folder)
        if (code := run.wait()) != 0:
            self.tally.wrong.append(f"{self.folder.name}: ended with {code}: {run.text[-200:]}")
        return run

    def _kill(self, reference: Reference, plan: Plan) -> bool:
        """One start and one kill; False when it came to its end before."""
        in_save = self.drawn.random() < 0.5 or self.tally.kills >= plan.kills
        cold = bool(plan.cold_every) and self.drawn.randrange(plan.cold_every) == 0
        run = self.work.begin(self.subject, self.folder, cold=cold)
        reached = self._reach_save(run, reference) if in_save else self._reach_moment(run, reference, cold)
        ranks = self._ranks(run, cold)
        if reached:
            run.kill(ranks)
        run.wait()  # of two processes the other ends by itself
        self._judge(run)
        if reached:
            self._count(cold, ranks is not None)
        elif (code := run.codes()[0]) != 0:
            self.tally.wrong.append(f"{self.folder.name}: ended with {code}: {run.text[-200:]}")
        return reached

    def _ranks(self, run: Run, cold: bool) -> list[int] | None:
        """All processes, or one of several; before they have met, another would wait for it as for a slow machine."""
        several = self.subject.num_processes > 1 and not cold and "step " in run.text
        return [self.drawn.randrange(self.subject.num_processes)] if several and self.drawn.random() < 0.5 else None

    def _reach_save(self, run: Run, reference: Reference) -> bool:
        """Lets the run come into one of its next saves, somewhere between its beginning and its end."""
        staging = self.folder / STAGING
        for _ in range(self.drawn.randint(0, 2)):
            if not run.wait_until(lambda: not staging.exists()) or not run.wait_until(staging.exists):
                return False
        if not run.wait_until(lambda: not staging.exists()) or not run.wait_until(staging.exists):
            return False
        return run.goes_on_for(self.drawn.uniform(0, 0.8 * reference.save_seconds))

    def _reach_moment(self, run: Run, reference: Reference, cold: bool) -> bool:
        """Lets the run go on for a time; a cold one has the imports before it, which nothing can happen to."""
        if cold and not run.wait_until(lambda: "step " in run.text or "continuing" in run.text):
            return False
        return run.goes_on_for(self.drawn.uniform(0, 0.8 * reference.seconds))

    def _judge(self, run: Run) -> None:
        """Whether a start that came as far as training continued from the right checkpoint."""
        if not self.pending or not any(sign in run.text for sign in UNFINISHED):
            return
        right = self.expected is None or f"continuing from {self.expected}\n" in run.text
        if right or "complete and unchanged" in run.text:
            self.tally.resumed += self.pending
        else:
            self.tally.wrong.append(f"{self.folder.name}: did not continue from {self.expected}: {run.text[-200:]}")
        self.pending = 0

    def _count(self, cold: bool, one_rank: bool) -> None:
        """Looks at what the kill left."""
        tally = self.tally
        tally.kills, tally.cold, tally.one_rank = tally.kills + 1, tally.cold + cold, tally.one_rank + one_rank
        tally.in_save += (self.folder / STAGING).exists()
        tally.corrupt += corrupt(self.folder)
        self.pending += 1
        self.expected = newest_good(self.folder)
        lost = last_step(self.folder) - (step_of(self.expected) if self.expected else 0)
        tally.lost.append(max(0, lost))
        # a save in the background ends while the next steps are made
        bound = self.subject.save_steps * (2 if self.subject.tree["run"].get("background_save") else 1)
        if lost > bound:
            tally.wrong.append(f"{self.folder.name}: {lost} steps lost, {bound} lie between two saves")
