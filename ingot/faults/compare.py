"""Whether two runs are one: weights to the bit, metrics line by line, rows of every step, every checkpoint whole."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.files import damage, sha256_file

WEIGHTS = "model/model.safetensors"
# what differs from run to run
MEASURED = (
    "seconds", "per_second", "runtime", "mfu", "_time", "_gib", "gpu_utilization", "gpu_temperature", "gpu_power",
)  # fmt: skip


def weights_hash(run_dir: Path) -> str | None:
    """sha256 of the finished model's weights; None when there are none."""
    path = run_dir / WEIGHTS
    return sha256_file(path) if path.is_file() else None


def checkpoints(run_dir: Path) -> list[Path]:
    """Everything that is named as a checkpoint, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def corrupt(run_dir: Path) -> list[str]:
    """What is wrong with each checkpoint that is not as it was written."""
    return [problem for c in checkpoints(run_dir) if (problem := damage(c)) is not None]


def newest_good(run_dir: Path) -> Path | None:
    """The newest checkpoint that verifies."""
    return next((c for c in reversed(checkpoints(run_dir)) if damage(c) is None), None)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; a last one that was cut is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times, memory and the like."""
    lines = read_lines(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.endswith(MEASURED)} for line in lines]


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint by its name alone, which a running process may have just written."""
    return max(map(step_of, checkpoints(run_dir)), default=0)


def last_step(run_dir: Path) -> int:
    """The last step that metrics.jsonl tells of."""
    return max((line["step"] for line in metrics(run_dir)), default=0)


def metrics_equal(run_dir: Path, reference: Path) -> bool:
    """The same lines: no gap, no double, every number to the bit."""
    found = metrics(run_dir)
    return bool(found) and found == metrics(reference)


def largest_difference(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> float:
    """Of the numbers in two lists of metrics; infinite when they do not tell of the same."""
    if [sorted(line) for line in found] != [sorted(line) for line in expected] or not found:
        return math.inf
    pairs = [(a[k], b[k]) for a, b in zip(found, expected, strict=True) for k in a if isinstance(a[k], int | float)]
    return max(abs(a - b) for a, b in pairs)


def rows_of_steps(paths: Iterable[Path]) -> dict[int, list[str]]:
    """What `inside.note_rows` wrote, all processes together: step -> sorted hashes of its rows."""
    steps: dict[int, list[str]] = {}
    for path in paths:
        for line in read_lines(path):
            steps.setdefault(line["step"], []).extend(line["rows"])
    return {step: sorted(rows) for step, rows in sorted(steps.items())}


def tree_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file: inode, time and sha256."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns, sha256_file(p)) for p in files}


def non_finite(run_dir: Path) -> list[str]:
    """Tensors of checkpoints and model that hold a NaN or an infinity; needs torch."""
    import torch
    from safetensors.torch import load_file

    found = []
    for path in sorted(run_dir.rglob("*.safetensors")):
        found += [f"{path}: {name}" for name, t in load_file(path).items() if not torch.isfinite(t).all()]
    for path in sorted(run_dir.rglob("optimizer.pt")):
        state = torch.load(path, weights_only=True, map_location="cpu")["state"]
        tensors = {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if torch.is_tensor(v)}
        found += [f"{path}: {name}" for name, t in tensors.items() if not torch.isfinite(t).all()]
    return found
