"""Records the loss and gradient norm of twenty steps of pretraining, which no refactoring may move.

    python -m tests.golden.record "why they have changed"

writes pretrain.json beside this file. Commit it together with the change that is its reason.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from ingot.runs import read_json, versions, write_json
from ingot.training.callbacks import read_metrics
from ingot.training.pretrain import run

from ..training.pretrain_toys import make_corpus, pretrain_recipe

GOLDEN = Path(__file__).parent / "pretrain.json"
RUNS: dict[str, dict[str, Any]] = {"adamw": {"run__optimizer": None}, "muon": {"run__optimizer": "muon"}}
SETTINGS: dict[str, Any] = {
    "training__max_steps": 20, "training__eval_strategy": "no", "training__eval_steps": None,
    "training__save_steps": 100, "run__global_batch_size": 8, "model__residual_dropout": 0.1,
}  # fmt: skip


def trajectory(name: str, folder: Path) -> list[dict[str, float]]:
    """Runs one of RUNS in an empty folder; loss (nats per token) and gradient norm of every step."""
    corpus = make_corpus(folder / "corpus")
    run(pretrain_recipe(corpus, folder / "run", **SETTINGS, **RUNS[name]))
    lines = [line for line in read_metrics(folder / "run/metrics.jsonl") if "loss" in line]
    return [{"loss": line["loss"], "grad_norm": line["grad_norm"]} for line in lines]


def main(reason: str) -> None:
    """Records all of RUNS with the versions that they were made with."""
    found: dict[str, Any] = {"reason": reason, "versions": versions()}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = trajectory(name, Path(folder))
    write_json(GOLDEN, found)
    ends = [f"{name} ends at {found[name][-1]['loss']:.6f}" for name in RUNS]
    print(f"{GOLDEN}: {', '.join(ends)}")


def golden() -> dict[str, Any]:
    """What was recorded."""
    return dict(read_json(GOLDEN))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit('say why: python -m tests.golden.record "the reason"')
    main(sys.argv[1])
