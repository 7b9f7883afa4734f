"""A disk that fills up while a run saves: the message, what is kept, and the end after space was freed."""

import contextlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingot.faults.compare import corrupt, last_step, metrics_equal, newest_good, newest_step, weights_hash
from ingot.faults.workplace import Result, Subject, Workplace
from ingot.training.checkpoint_folders import STAGING

SIZE = 48 << 20  # bytes of the disk
PAGE = 4096  # bytes
NUMBER = re.compile(r"\d[\d,.]* ?(bytes|kB|KB|KiB|MB|MiB|GB|GiB)")


def full_disk(work: Workplace) -> Result:
    """Fills a small file system at seeded moments, once before the run begins."""
    subject, drawn = work.usual, work.random("full_disk")
    reference, counts = work.reference(subject).folder, dict.fromkeys(("met", "named", "kept", "equal"), 0)
    times, wrong = 1 if work.short else 10, list[str]()
    with small_disk(work.folder / "disk") as disk:
        if disk is None:
            return _result(times, {"skipped": "a small file system can be mounted by root alone"}, True)
        for number in range(3 * times):  # a run may end before its disk is full
            if counts["met"] < times:
                wrong += one(work, subject, reference, disk / f"run-{number}", drawn, counts)
                work.say(f"full_disk: {counts['met']} of {times}, {counts['equal']} ended equal")
        predicted = hopeless(work, subject, disk)
        patience = [] if work.short else waited(work, subject, reference, disk / "waits")
    wrong += predicted + patience
    measured: dict[str, Any] = {**counts, "predicted_before_the_start": not predicted, "wrong": wrong[:5]}
    measured |= {} if work.short else {"waited_for_room_and_went_on": not patience}
    passed = not wrong and set(counts.values()) == {times}
    return _result(times, measured, passed)


def _result(times: int, measured: dict[str, Any], passed: bool) -> Result:
    asked = f"{times} x: path, needed and free bytes named, the last checkpoint kept, after freeing it ends equal"
    return {"name": "full_disk", "asked": asked, "measured": measured, "passed": passed}


@contextmanager
def small_disk(path: Path) -> Iterator[Path | None]:
    """A file system of its own of 48 MB; None where it may not be mounted."""
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "ingot-faults", str(path)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


class Filler:
    """Another user of the disk, who takes what becomes free up to so many bytes."""

    def __init__(self, disk: Path, leave: int) -> None:
        self.disk, self.leave, self.path = disk, leave, disk / "filler"

    def fill(self) -> bool:
        """Takes what is free now; False when there was nothing to take."""
        free = shutil.disk_usage(self.disk).free
        if free <= self.leave + PAGE:
            return False
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free - self.leave)
        return True

    def go(self) -> None:
        """Gives everything back."""
        self.path.unlink(missing_ok=True)


def one(
    work: Workplace, subject: Subject, reference: Path, folder: Path, drawn: random.Random, counts: dict[str, int]
) -> list[str]:
    """One run that meets a full disk, between two saves or inside one. Returns what is wrong."""
    run = work.begin(subject, folder, "--run.wait_for_disk=0")
    run.wait_until(lambda: newest_step(folder) > 0)
    size = sum(p.stat().st_size for p in reference.glob("checkpoint-*/**/*") if p.is_file()) // 2
    in_save = drawn.random() < 0.5
    run.wait_until(lambda: (folder / STAGING).exists() == in_save)
    filler = Filler(folder.parent, int(drawn.uniform(0, 0.8) * size))
    run.wait_until(lambda: filler.fill() and False)
    code, text, wrong = run.wait(), run.text, corrupt(folder)
    if code == 0:
        filler.go()
        shutil.rmtree(folder)
        return wrong
    counts["met"] += 1
    # of the report and its plot, after the last checkpoint, no size is known before
    ended = newest_step(folder) == subject.tree["training"]["max_steps"]
    named = says_so(text, folder, 1 if ended else 2)
    counts["named"] += named
    if not named:
        wrong.append(f"{folder.name}: code {code} at step {last_step(folder)}: {text[-600:]}")
    counts["kept"] += newest_good(folder) is not None
    filler.go()
    again = work.begin(subject, folder)
    if again.wait() != 0:
        wrong.append(f"{folder.name}: after freeing: {again.text[-300:]}")
    counts["equal"] += weights_hash(folder) == weights_hash(reference) and metrics_equal(folder, reference)
    shutil.rmtree(folder)
    return wrong


def says_so(text: str, folder: Path, sizes: int = 2) -> bool:
    """Whether the last line names the folder, the bytes needed and those free, and there is no traceback."""
    error = next((line for line in reversed(text.splitlines()) if line.startswith("error: ")), "")
    return str(folder) in error and len(NUMBER.findall(error)) >= sizes and "Traceback" not in text


def waited(work: Workplace, subject: Subject, reference: Path, folder: Path) -> list[str]:
    """A run that may wait for room goes on by itself when there is some."""
    run = work.begin(subject, folder, "--run.wait_for_disk=120")
    run.wait_until(lambda: newest_step(folder) > 0)
    filler = Filler(folder.parent, 50_000)
    run.wait_until(lambda: filler.fill() and False or "waiting" in run.text)
    filler.go()
    code = run.wait()
    same = weights_hash(folder) == weights_hash(reference) and metrics_equal(folder, reference)
    shutil.rmtree(folder)
    return [] if code == 0 and same else [f"waiting for room: code {code}: {run.text[-400:]}"]


def hopeless(work: Workplace, subject: Subject, disk: Path) -> list[str]:
    """A disk on which the run's checkpoints cannot fit: told before the first step."""
    filler = Filler(disk, 100_000)
    filler.fill()
    run = work.begin(subject, disk / "hopeless")
    code, text = run.wait(), run.text
    filler.go()
    if code == 2 and "step 1/" not in text and says_so(text, disk / "hopeless"):
        return []
    return [f"hopeless from the beginning: code {code}: {text[-400:]}"]
