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

from ingot.faults.compare import corrupt, last_step, metrics_equal, newest_good, weights_hash
from ingot.faults.workplace import Result, Subject, Workplace
from ingot.training.checkpoints import STAGING

SIZE = 48 << 20  # bytes of the disk
NUMBER = re.compile(r"\d[\d,.]* ?(bytes|kB|KB|KiB|MB|MiB|GB|GiB)")


def full_disk(work: Workplace) -> Result:
    """Fills a small file system at seeded moments, once before the run begins."""
    subject, drawn = work.pretrain("full_disk", training__max_steps=32), work.random("full_disk")
    reference, counts = work.reference(subject).folder, dict.fromkeys(("met", "named", "kept", "equal"), 0)
    times, wrong = 1 if work.short else 10, list[str]()
    with small_disk(work.folder / "disk") as disk:
        if disk is None:
            return _result(times, {"skipped": "a small file system can be mounted by root alone"}, True)
        for number in range(times):
            wrong += one(work, subject, reference, disk / f"run-{number}", drawn, counts)
            work.say(f"full_disk: {number + 1} of {times}, {counts['equal']} ended equal")
        predicted = hopeless(work, subject, disk)
    measured = {**counts, "predicted_before_the_start": not predicted, "wrong": [*wrong, *predicted][:5]}
    passed = not wrong and not predicted and set(counts.values()) == {times}
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


def free(disk: Path) -> int:
    """Bytes that can be written."""
    return shutil.disk_usage(disk).free


def fill(disk: Path, leave: int) -> Path:
    """Fills the disk with a file up to so many free bytes; returns it."""
    path = disk / "filler"
    with contextlib.suppress(OSError), open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free(disk) - leave))
    return path


def one(
    work: Workplace, subject: Subject, reference: Path, folder: Path, drawn: random.Random, counts: dict[str, int]
) -> list[str]:
    """One run that meets a full disk. Returns what is wrong."""
    disk, staging = folder.parent, folder / STAGING
    run = work.begin(subject, folder)
    run.wait_until(lambda: newest_good(folder) is not None)
    size = sum(p.stat().st_size for p in reference.glob("checkpoint-*/**/*") if p.is_file()) // 2
    in_save = drawn.random() < 0.5  # else between two saves, when it can be predicted
    run.wait_until(lambda: staging.exists() == in_save)
    filler = fill(disk, int(drawn.uniform(0, 0.8) * size))
    code = run.wait()
    text, wrong = run.text, corrupt(folder)
    counts["met"] += code in (2, 3)
    error = next((line for line in reversed(text.splitlines()) if line.startswith("error: ")), "")
    named = str(folder) in error and len(NUMBER.findall(error)) >= 2 and "Traceback" not in text
    counts["named"] += named
    if not named:
        wrong.append(f"{folder.name}: code {code} at step {last_step(folder)}: {text[-600:]}")
    counts["kept"] += newest_good(folder) is not None
    filler.unlink(missing_ok=True)
    again = work.begin(subject, folder)
    if again.wait() != 0:
        wrong.append(f"{folder.name}: after freeing: {again.text[-300:]}")
    counts["equal"] += weights_hash(folder) == weights_hash(reference) and metrics_equal(folder, reference)
    shutil.rmtree(folder)
    return wrong


def hopeless(work: Workplace, subject: Subject, disk: Path) -> list[str]:
    """A disk on which the run's checkpoints cannot fit: told before the first step."""
    filler = fill(disk, 100_000)
    run = work.begin(subject, disk / "hopeless")
    code, text = run.wait(), run.text
    filler.unlink()
    error = next((line for line in text.splitlines() if line.startswith("error: ")), "")
    if code == 2 and "step 1/" not in text and len(NUMBER.findall(error)) >= 2 and str(disk) in error:
        return []
    return [f"hopeless from the beginning: code {code}: {text[-400:]}"]
