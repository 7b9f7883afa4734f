"""The planner's memory estimate against the peak of real training steps: `python -m ingot.benchmark.memory`.

On a GPU every case trains a few steps through pretraining's own trainer, in its own process, and the estimate is held
against `torch.cuda.max_memory_allocated`. Without one the same steps run on fake tensors, whose bytes are counted:
such rows say "simulated".
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Condition
from typing import Any

import torch

from ingot.benchmark.memory_cases import CASES, Case, make_trainer
from ingot.planning.architecture import architecture_of_config
from ingot.planning.memory_estimate import WORKSPACES, MemoryEstimate, estimate_memory
from ingot.recipe_yaml import InputError
from ingot.runs import get_logger, write_json
from ingot.training.quiet import keep_quiet

logger = get_logger(__name__)

STEPS = 3
H200 = 150_110_000_000  # bytes; what a simulation takes for the GPU's memory
ROOM = 0.93  # of a GPU's memory, for the cases that run on it at the same time


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.one:
        write_json(arguments.out, _measured(next(case for case in CASES if case.name == arguments.one)))
        return 0
    cases = [case for case in CASES if not arguments.cases or any(word in case.name for word in arguments.cases)]
    if not cases:
        raise InputError(f"--cases: none of the {len(CASES)} cases has {' or '.join(arguments.cases)} in its name")
    on_gpu = torch.cuda.is_available() and not arguments.simulate
    began = time.monotonic()
    keep_quiet()
    with contextlib.redirect_stdout(sys.stderr):  # only results go to stdout
        rows = _measure_all(cases, arguments.jobs) if on_gpu else _simulate_all(cases, arguments.total_memory)
    results = {
        "device": torch.cuda.get_device_name() if on_gpu else "simulated",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "largest_miss": max((abs(row["miss"]) for row in rows if "miss" in row), default=None),
        "cases": rows,
    }
    if arguments.out:
        write_json(arguments.out, results)
    print(json.dumps(results, indent=1) if arguments.json else table(results))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ingot benchmark memory", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--cases", action="append", default=[], help="only cases with this in their name, repeatable")
    parser.add_argument("--simulate", action="store_true", help="count the bytes of fake tensors even on a GPU")
    parser.add_argument("--total-memory", type=int, default=H200, help="bytes of the simulated GPU; an H200's")
    parser.add_argument("--jobs", type=int, default=3, help="cases on the GPU at the same time, where they fit")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the case to measure in this process
    return parser


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table; GiB, and the miss of the estimate in percent of the peak."""
    kind = "simulated" if results["device"] == "simulated" else "measured"
    lines = [
        f"{results['device']}, torch {results['torch']}, {results['seconds']} s",
        "",
        f"| case | {kind} GiB | reserved GiB | estimated GiB | miss | peak at |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in results["cases"]:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['error']} | | | | |")
            continue
        peak, estimate = (f"{row[key] / 2**30:.2f}" for key in ("peak_bytes", "estimated_bytes"))
        reserved = f"{row['reserved_bytes'] / 2**30:.2f}" if "reserved_bytes" in row else ""
        lines.append(f"| {row['case']} | {peak} | {reserved} | {estimate} | {row['miss']:+.2%} | {row['moment']} |")
    return "\n".join(lines)


def _row(case: Case, estimate: MemoryEstimate, estimated: int, peak: int, **more: int) -> dict[str, Any]:
    return {
        "case": case.name, "peak_bytes": peak, "estimated_bytes": estimated, "miss": estimated / peak - 1,
        "moment": estimate.moment, "by_part": estimate.by_part, **more,
    }  # fmt: skip


def _estimate(case: Case, total_memory: int) -> MemoryEstimate:
    return estimate_memory(architecture_of_config(case.config), case.setup, total_memory)


def _simulate_all(cases: Sequence[Case], total_memory: int) -> list[dict[str, Any]]:
    """Each case on fake tensors; cuBLAS's workspaces are none of them, so the estimate goes without."""
    from ingot.benchmark.memory_simulation import simulate

    rows = []
    for case in cases:
        if problem := _missing(case) or ("fp8 cannot be simulated" if case.fp8 else None):
            rows.append({"case": case.name, "error": problem})
            continue
        case = replace(case, compiled=False)  # fake tensors cannot be compiled for a GPU
        estimate = _estimate(case, total_memory)
        peak = simulate(case, total_memory)["peak_bytes"]
        rows.append(_row(case, estimate, estimate.peak_bytes - WORKSPACES, peak))
        logger.info("%s: simulated", case.name)
    return rows


def _missing(case: Case) -> str | None:
    """Why a case cannot run here."""
    if "8bit" in case.optimizer and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return None


class Room:
    """The GPU's memory, shared by the cases that run at the same time."""

    def __init__(self, free: int) -> None:
        self.free, self.total, self.changed = free, free, Condition()

    def take(self, wanted: int) -> int:
        """Waits until so much is free (all of it, for a case that needs more) and returns what was taken."""
        wanted = min(wanted, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        return wanted

    def give(self, taken: int) -> None:
        """Gives it back."""
        with self.changed:
            self.free += taken
            self.changed.notify_all()


def _measure_all(cases: Sequence[Case], jobs: int) -> list[dict[str, Any]]:
    """Each case on the GPU in a process of its own, several at a time where the estimates leave room."""
    total = torch.cuda.get_device_properties(0).total_memory
    room = Room(int(ROOM * total))

    def measure(case: Case) -> dict[str, Any]:
        if problem := _missing(case):
            return {"case": case.name, "error": problem}
        taken = room.take(int(1.1 * _estimate(case, total).peak_bytes) + 2**30)
        try:
            return _in_own_process(case)
        finally:
            room.give(taken)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(measure, cases))


def _in_own_process(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "ingot.benchmark.memory", "--one", case.name, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            lines = (done.stderr.strip() or "no output").splitlines()
            logger.info("%s: failed\n%s", case.name, "\n".join(lines[-15:]))
            return {"case": case.name, "error": lines[-1]}
        row: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    logger.info("%s: %.2f GiB, estimated %.2f", case.name, row["peak_bytes"] / 2**30, row["estimated_bytes"] / 2**30)
    return row


def _measured(case: Case) -> dict[str, Any]:
    """Trains a case for some steps on this process's GPU."""
    estimate = _estimate(case, torch.cuda.get_device_properties(0).total_memory)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, folder, STEPS, use_cpu=False)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return _row(case, estimate, estimate.peak_bytes, peak, reserved_bytes=reserved)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
