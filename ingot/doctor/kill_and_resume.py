"""A training run killed in the middle of a save, and the proof that running it again loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ingot.doctor.probing import ended, environment
from ingot.files import damage, sha256_file
from ingot.training.checkpoint_folders import STAGING, checkpoints_of

SECONDS = 100.0
CLOSE = 1e-3  # relative: how far the losses of two equal runs may lie apart on a GPU


def kill_in_a_save(recipe: Path, run_dir: Path, log: Path) -> str:
    """Starts `ingot pretrain` and kills it with SIGKILL while a checkpoint is being staged, after a first whole one.

    Raises: RuntimeError when it ends by itself.
    """
    words = [sys.executable, "-m", "ingot.cli", "pretrain", "--config", str(recipe)]
    with open(log, "wb") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, env=environment(), start_new_session=True)
    try:
        step = _wait_for_a_save(child, run_dir)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    if step is None:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().split("\n") or [""])[-1]
        raise RuntimeError(f"the run ended before a save was seen ({ended(code)}: {last[:200]})")
    kept = [c.name for c in checkpoints_of(run_dir) if damage(c) is None]
    broken = [c.name for c in checkpoints_of(run_dir) if damage(c) is not None]
    if broken or not kept:
        raise RuntimeError(f"the kill left {', '.join(broken) or 'no checkpoint'}")
    return f"killed while {step} was being written; {', '.join(kept)} whole"


def _wait_for_a_save(child: "subprocess.Popen[bytes]", run_dir: Path) -> str | None:
    """The name of the checkpoint that is being staged; None when the process ends first."""
    began = time.monotonic()
    while child.poll() is None and time.monotonic() - began < SECONDS:
        staged = sorted(p.name for p in (run_dir / STAGING).glob("checkpoint-*"))
        if staged and checkpoints_of(run_dir):
            return staged[-1]
        time.sleep(0.001)
    return None


def proof_of_continuation(broken: Path, unbroken: Path, exact: bool) -> str:
    """What was found equal; `exact`: the weights must be the same bits, as on one CPU.

    Raises: RuntimeError that says what differs.
    """
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (broken, unbroken)]
    steps, wanted = ([line["step"] for line in run if "loss" in line] for run in lines)
    if steps != wanted:
        raise RuntimeError(f"metrics.jsonl has the steps {steps} in place of {wanted}")
    losses, expected = ([line["loss"] for line in run if "loss" in line] for run in lines)
    same = sha256_file(broken / "model/model.safetensors") == sha256_file(unbroken / "model/model.safetensors")
    apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    if not same and (exact or apart > CLOSE):
        raise RuntimeError(f"the resumed run is not the unbroken one: losses differ by up to {apart:.2g}")
    weights = "weights bitwise equal to the unbroken run's" if same else f"losses within {apart:.1g} of it"
    return f"metrics.jsonl without gaps or doubles, {weights}"
