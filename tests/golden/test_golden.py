"""A refactoring may not move the loss. When one means to: `python -m tests.golden.record "the reason"`."""

from pathlib import Path
from typing import Any

import pytest

from .record import RUNS, golden, trajectory


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_go_where_they_went(name: str, tmp_path: Path) -> None:
    expected: list[dict[str, Any]] = golden()[name]
    found = trajectory(name, tmp_path)
    assert len(found) == len(expected) == 20
    for step, (here, there) in enumerate(zip(found, expected, strict=True), start=1):
        assert here == pytest.approx(there, rel=1e-5), f"step {step}"
    assert found[-1]["loss"] < found[0]["loss"] - 1


def test_what_was_recorded_says_with_what_and_why() -> None:
    recorded = golden()
    assert recorded["reason"] and {"torch", "transformers", "accelerate"} <= set(recorded["versions"])
