"""Proof that an exported folder is the model that it was made from."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingot.loading import silent
from ingot.runs import model_folder

# Variables of ours that would reach into the clean process.
DROPPED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def verify_export(source: Path, exported: Path) -> float:
    """Compares a source with its export as loaded in a clean process. Returns the largest logit difference, 0.0.

    The process starts in another folder, offline, and cannot import Ingot. All is compared in float32 on the CPU.
    Raises: RuntimeError that says what differs.
    """
    import torch

    import modeling  # noqa: F401 - registers the Ingot classes for the source
    from ingot.export.probe import probe

    with silent():
        expected = probe(model_folder(source), trust_remote_code=False)
    found = probe_in_clean_process(exported)
    problems = list(differences(expected, found))
    if problems:
        raise RuntimeError(f"{exported} is not equal to {source}: " + "; ".join(problems))
    pairs = zip(expected["logits"], found["logits"], strict=True)
    return max(float(torch.abs(a - b).max()) for a, b in pairs)


def probe_in_clean_process(folder: Path) -> dict[str, Any]:
    """What `probe` finds in a folder when a process without Ingot loads it with its own code.

    Raises: RuntimeError with the end of what the process printed.
    """
    import torch

    from ingot.export import probe

    with tempfile.TemporaryDirectory() as elsewhere:
        output = Path(elsewhere) / "probe.pt"
        environment = _environment_without_ingot(Path(elsewhere))
        command = [
            sys.executable,
            "-P",
            probe.__file__,
            str(folder.resolve()),
            str(output),
            str(torch.get_num_threads()),
        ]
        done = subprocess.run(
            command,
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{folder} does not load in a clean process:\n{done.stderr[-2000:]}")
        return dict(torch.load(output, weights_only=True))


def _environment_without_ingot(elsewhere: Path) -> dict[str, str]:
    """The environment, offline, with a fresh cache for remote code and without the folders that Ingot lies in."""
    searched = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    others = [str(path) for path in searched if not any((path / ours).is_dir() for ours in ("ingot", "modeling"))]
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    added = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(elsewhere / "modules")}
    return {**kept, **added, "PYTHONPATH": os.pathsep.join(others)}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """What differs between two probes, with the size of the difference."""
    import torch

    for key in ("token_ids", "chat_token_ids", "greedy_text"):
        if expected[key] != found[key]:
            yield f"{key.replace('_', ' ')} differ"
    for key in ("logits", "hidden_states"):
        for number, (a, b) in enumerate(zip(expected[key], found[key], strict=True), 1):
            if a.shape != b.shape:
                yield f"{key.replace('_', ' ')} of prompt {number} have shape {tuple(b.shape)}, not {tuple(a.shape)}"
            elif not torch.equal(a, b):
                yield f"{key.replace('_', ' ')} of prompt {number} differ by up to {float(torch.abs(a - b).max()):.3g}"
