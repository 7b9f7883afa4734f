"""One process of two dies: the other ends soon, and a launcher that restarts them continues the run."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ingot.faults.compare import corrupt, last_step, metrics_equal, weights_hash
from ingot.faults.processes import Run, launch
from ingot.faults.workplace import Result, Subject, Workplace
from ingot.training.checkpoint_folders import STAGING

SECONDS = 60  # within which the other process has to end


def rank_death(work: Workplace) -> Result:
    """Kills rank 0 or 1 in a step or inside a save, without a launcher and under one that restarts."""
    subject = work.pretrain("rank_death", num_processes=2, run__global_batch_size=8)
    reference, drawn = work.reference(subject).folder, work.random("rank_death")
    seconds, wrong = list[float](), list[str]()
    cases = [(rank, in_save) for rank in (0, 1) for in_save in (False, True)]
    for number, (rank, in_save) in enumerate(cases * 2):
        folder = work.folder / f"rank-{number}"
        run = work.begin(subject, folder)
        reached = run.wait_until(moment(folder, in_save, drawn.randrange(2, 20)))
        run.kill([rank])
        began = time.monotonic()
        run.wait()
        seconds.append(time.monotonic() - began)
        wrong += judge(run, reached, 1 - rank, folder)
        work.finish(subject, folder)
        wrong += ends_equal(folder, reference)
        work.say(f"rank_death: {number + 1} of {2 * len(cases)}: the other ended after {seconds[-1]:.1f} s")
    restarted = [restart(work, subject, reference, rank, in_save) for rank, in_save in ((1, False), (0, True))]
    wrong += [line for _, lines in restarted for line in lines]
    measured = {
        "deaths": len(seconds) + len(restarted), "seconds_until_the_other_ended_max": round(max(seconds), 1),
        "restarted_by_the_launcher": sum(not lines for _, lines in restarted),
        "seconds_from_death_to_next_step": [round(s, 1) for s, _ in restarted], "wrong": wrong[:5],
    }  # fmt: skip
    asked = f"the other process ends within {SECONDS} s; with --max_restarts 1 the run goes on and ends equal"
    return {"name": "rank_death", "asked": asked, "measured": measured, "passed": not wrong and max(seconds) < SECONDS}


def moment(folder: Path, in_save: bool, step: int) -> Callable[[], bool]:
    """Whether a run is in a save, or has made a step."""
    return (folder / STAGING).exists if in_save else lambda: last_step(folder) >= step


def judge(run: Run, reached: bool, other: int, folder: Path) -> list[str]:
    """What is wrong with how the other process ended."""
    code, wrong = run.codes()[other], corrupt(folder)
    if not reached:
        wrong.append(f"{folder.name}: ended before it was killed")
    elif code != 3 or "another process of this run ended" not in run.text:
        wrong.append(f"{folder.name}: process {other} ended with {code}: {run.text[-200:]}")
    return wrong


def ends_equal(folder: Path, reference: Path) -> list[str]:
    """What differs from the undisturbed run."""
    same = weights_hash(folder) == weights_hash(reference) and metrics_equal(folder, reference)
    return [] if same else [f"{folder.name}: does not end as the undisturbed run"]


def restart(work: Workplace, subject: Subject, reference: Path, rank: int, in_save: bool) -> tuple[float, list[str]]:
    """One death under `accelerate launch --max_restarts 1`: seconds until the next step, and what is wrong."""
    folder = work.folder / f"restart-{rank}"
    options = ["--max_restarts", "1", "--monitor_interval", "1"]
    run = work.processes.cold(launch(2, *work.words(subject, folder), options=options))
    run.wait_until(moment(folder, in_save, 9))
    began = time.monotonic()
    before = last_step(folder)
    for pid in pids_of_rank(run.members[0].pid, rank):
        os.kill(pid, signal.SIGKILL)
    run.wait_until(lambda: "continuing from" in run.text and last_step(folder) > before)
    seconds = time.monotonic() - began
    code: Any = run.wait()
    wrong = [] if code == 0 else [f"{folder.name}: the launcher ended with {code}: {run.text[-300:]}"]
    return seconds, wrong + ends_equal(folder, reference)


def pids_of_rank(launcher: int, rank: int) -> list[int]:
    """The process that a launcher made this rank; not its own children."""
    found = []
    for child in psutil.Process(launcher).children():
        if child.environ().get("RANK") == str(rank):
            found.append(child.pid)
    return found
