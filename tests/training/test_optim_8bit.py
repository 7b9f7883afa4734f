"""torchao's 8-bit AdamW, which the recipes for small cards take: near float32's losses, and continued as it was."""

import pytest
import torch

from ingot.training.checkpoint_folders import checkpoints_of

from .conftest import Pretrain
from .test_pretrain import Weights, assert_equal, interrupt_at, lines_of

pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[gpu]'")

CHANGES = {
    "run__optimizer": None,
    "training__optim": "adamw_torch_8bit",
    "training__warmup_steps": 4,
    "model__intermediate_size": 256,  # 8,192 values: smaller matrices keep states of 32 bits
}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers without the half minute that a compiler takes for the steps."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_an_interrupted_run_ends_in_the_same_weights(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    whole, expected = pretrain(**CHANGES)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            pretrain("interrupted", **CHANGES)
    _, results = pretrain("interrupted", **CHANGES)
    parts = whole.parent / "interrupted"
    assert [line["learning_rate"] for line in lines_of(parts) if "loss" in line][-1] > 0
    assert lines_of(parts) == lines_of(whole)
    assert_equal(weights(parts), weights(whole))
    assert results["heldout_loss"] == expected["heldout_loss"]
    saved = torch.load(checkpoints_of(whole)[-1] / "optimizer.pt", weights_only=True)
    kinds = {type(state["exp_avg"]).__name__ for state in saved["state"].values()}
    assert kinds == {"OptimState8bit", "Tensor"}


def test_the_losses_are_near_those_of_float32(pretrain: Pretrain) -> None:
    small = pretrain(**CHANGES)[1]["heldout_loss"]
    whole = pretrain("float32", **{**CHANGES, "training__optim": "adamw_torch"})[1]["heldout_loss"]
    assert small != whole and small == pytest.approx(whole, rel=0.01)
