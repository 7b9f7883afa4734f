"""Steps whose numbers are not finite are named, never saved, or left out; a loss that runs off is taken back."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ingot.runs import NotFinite, RunFailed, read_json
from ingot.training.callbacks import read_metrics
from ingot.training.checkpoint_folders import checkpoints_of
from ingot.training.continuing import REWINDS
from ingot.training.order import TrainOrder
from ingot.training.pretrain_trainer import PretrainTrainer
from ingot.training.watch import WatchedSteps, check_weights, spike_limit

from .conftest import Pretrain
from .pretrain_toys import NO_EVALUATION

Weights = Callable[[Path], dict[str, torch.Tensor]]
Change = Callable[[Any, torch.Tensor], torch.Tensor]


@pytest.fixture
def change_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Has every loss go through a function of the trainer and the loss."""
    upstream = PretrainTrainer.compute_loss

    def set_change(change: Change) -> None:
        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            return change(self, upstream(self, *args, **kwargs))

        monkeypatch.setattr(PretrainTrainer, "compute_loss", compute_loss)

    return set_change


def in_steps(*steps: int) -> Change:
    """NaN in these steps, counted from 1."""
    return lambda trainer, loss: loss * (math.nan if trainer.state.global_step + 1 in steps else 1.0)


SPARSE: dict[str, Any] = {"training__logging_steps": 5, "training__save_steps": 4, "training__save_total_limit": None}


def test_the_first_bad_step_is_named_with_its_rows(
    pretrain: Pretrain, change_loss: Callable[[Change], None], tmp_path: Path
) -> None:
    change_loss(in_steps(6))
    with pytest.raises(NotFinite, match="^step 6: loss is nan and grad_norm is nan. Its rows: 20, 21, 22, 23, see"):
        pretrain(**SPARSE, **NO_EVALUATION)
    folder = tmp_path / "pretrain"
    assert [c.name for c in checkpoints_of(folder)] == ["checkpoint-4"]
    record = read_json(folder / "nonfinite-step-6.json")
    assert record["rows"] == [20, 21, 22, 23] and record["loss"] == "nan"
    assert len(record["first_rows"]) == 4 and len(record["first_rows"][0]["input_ids"]) == 32
    assert all(math.isfinite(line["loss"]) for line in read_metrics(folder / "metrics.jsonl") if "loss" in line)


def test_a_gradient_is_looked_at_too(pretrain: Pretrain, change_loss: Callable[[Change], None]) -> None:
    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * math.inf

    def change(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        return Infinite.apply(loss) if trainer.state.global_step == 2 else loss  # type: ignore[no-any-return]

    change_loss(change)
    with pytest.raises(NotFinite, match=r"^step 3: grad_norm is (nan|inf)\. Its rows: 8, 9, 10, 11"):
        pretrain(**SPARSE, **NO_EVALUATION)


@pytest.mark.parametrize("optimizer", ["muon", "lion", None])
def test_skipped_steps_change_nothing(
    optimizer: str | None, pretrain: Pretrain, change_loss: Callable[[Change], None], weights: Weights, tmp_path: Path
) -> None:
    base: dict[str, Any] = {**NO_EVALUATION, "training__max_steps": 4, "training__lr_scheduler_type": "constant"}
    base |= {"run__optimizer": optimizer, "training__warmup_steps": None, "training__save_steps": 1}
    base["training__save_total_limit"] = None
    change_loss(in_steps(3))
    folder, _ = pretrain(run__skip_nonfinite=1, **base)
    saved = [read_tensors(folder / f"checkpoint-{step}") for step in (2, 3, 4)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert any(not torch.equal(saved[1][name], saved[2][name]) for name in saved[0])
    optimizers = [(folder / f"checkpoint-{step}/optimizer.pt").read_bytes() for step in (2, 3)]
    assert optimizers[0] == optimizers[1]
    third = next(line for line in read_metrics(folder / "metrics.jsonl") if line["step"] == 3)
    assert third["skipped"] == 1 and "loss" not in third and "grad_norm" not in third


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_mean_is_one_of_the_steps_that_were_made(
    pretrain: Pretrain, change_loss: Callable[[Change], None]
) -> None:
    made: list[float] = []

    def change(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
        changed = in_steps(2, 4)(trainer, loss)
        made.append(float(changed))
        return changed

    change_loss(change)
    folder, _ = pretrain(run__skip_nonfinite=2, training__logging_steps=6, training__save_steps=6, **NO_EVALUATION)
    line = next(line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line)
    finite = [loss for loss in made[:6] if math.isfinite(loss)]
    assert line["step"] == 6 and line["skipped"] == 2 and len(finite) == 4
    assert line["loss"] == pytest.approx(sum(finite) / 4, rel=1e-5)


def test_the_budget_holds_over_an_interruption(
    pretrain: Pretrain, change_loss: Callable[[Change], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change_loss(in_steps(3, 7))
    interrupted = {"raised": False}

    def log(self: Any, logs: dict[str, float], *args: Any) -> None:
        WatchedSteps.log(self, logs, *args)
        if self.state.global_step == 6 and not interrupted["raised"]:
            interrupted["raised"] = True
            raise KeyboardInterrupt

    monkeypatch.setattr(PretrainTrainer, "log", log)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run__skip_nonfinite=1, **NO_EVALUATION)
    with pytest.raises(NotFinite, match=r"^step 7: .*run\.skip_nonfinite: 1 steps were skipped already; "):
        pretrain(run__skip_nonfinite=1, **NO_EVALUATION)
    folder, _ = pretrain(run__skip_nonfinite=2, **NO_EVALUATION)  # no change of the recipe
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "skipped" in line] == [3, 7]


def test_a_norm_that_is_a_number_is_not_copied_to_the_device() -> None:
    class Upstream:
        def _get_grad_norm(self, model: Any, grad_norm: Any) -> Any:
            return grad_norm

        def training_step(self, loss: torch.Tensor) -> torch.Tensor:
            return loss

    class Watched(WatchedSteps, Upstream):
        state = SimpleNamespace(global_step=0)

    watched = Watched()
    for norm in (2.0, torch.tensor(3.0, device="meta")):
        watched.training_step(torch.ones((), device="meta"))
        assert watched._get_grad_norm(None, norm) is norm
    places = [(loss.device.type, norm.device.type) for _, loss, norm in watched._seen]
    assert places == [("meta", "cpu"), ("meta", "meta")] and watched._seen[0][2] == 2.0


def test_weights_that_are_not_finite_are_not_saved() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, 3)
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    with pytest.raises(NotFinite, match="^step 3: weight not finite"):
        check_weights(model, 3)


def test_the_limit_is_robust() -> None:
    calm = [2.0, 2.1, 1.9, 2.05, 1.95, 9.0]  # one outlier
    assert 2.1 < spike_limit(calm, 3) < 3
    assert spike_limit([2.0] * 10, 5) == pytest.approx(2.01)


SPIKE: dict[str, Any] = {
    "run__loss_spike": {"window": 6, "patience": 2, "deviations": 8.0, "rewinds": 1}, "training__max_steps": 30,
    "training__save_steps": 3, "training__save_total_limit": 4, "training__eval_steps": 30,
}  # fmt: skip


def until_rewound(folder: Path) -> Change:
    """A loss that runs off at step 20, until the run has gone back."""
    return lambda trainer, loss: (
        loss + 20 if trainer.state.global_step >= 19 and not (folder / REWINDS).exists() else loss
    )


def test_a_run_goes_back_before_a_spike_and_puts_its_rows_off(
    pretrain: Pretrain, change_loss: Callable[[Change], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[TrainOrder] = []
    train = PretrainTrainer.train

    def watched(self: Any, **kwargs: Any) -> Any:
        try:
            return train(self, **kwargs)
        finally:
            orders.append(self.order)

    monkeypatch.setattr(PretrainTrainer, "train", watched)
    change_loss(until_rewound(tmp_path / "pretrain"))
    folder, results = pretrain(**SPIKE)
    (entry,) = read_json(folder / REWINDS)
    # 20 and 21 are above; the newest checkpoint from before 19 is that of 18
    assert (entry["from_step"], entry["to_step"], entry["put_off"]) == (18, 21, [[0, 72, 84]])
    assert entry["loss"] > 20 > entry["usual_loss"]
    assert [line["step"] for line in entry["log"] if "loss" in line] == [19, 20]
    assert results["steps"] == 30
    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 31))
    assert max(line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line) < 10
    assert list(orders[-1].rows(0)) == [*range(72), *range(84, 120), *range(72, 84)]


def test_an_interruption_after_going_back_changes_nothing(
    pretrain: Pretrain, change_loss: Callable[[Change], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    weights: Weights,
) -> None:  # fmt: skip
    change_loss(until_rewound(tmp_path / "whole"))
    whole, _ = pretrain("whole", **SPIKE)
    change_loss(lambda trainer, loss: until_rewound(tmp_path / "parts")(trainer, loss))
    log = WatchedSteps.log

    def interrupt(self: Any, logs: dict[str, float], *args: Any) -> None:
        log(self, logs, *args)
        if (tmp_path / "parts" / REWINDS).exists() and self.state.global_step == 23:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain("parts", **SPIKE)
    parts, _ = pretrain("parts", **SPIKE)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(parts)[name], tensor), name


def test_a_spike_without_end_stops_the_run(pretrain: Pretrain, change_loss: Callable[[Change], None]) -> None:
    change_loss(lambda trainer, loss: loss + 20 if trainer.state.global_step >= 19 else loss)
    with pytest.raises(RunFailed, match=r"rose to .* at step 21, .* went back 1 times already \(run.loss_spike.rewi"):
        pretrain(**SPIKE)


def test_a_spike_before_any_checkpoint_stops_the_run(
    pretrain: Pretrain, change_loss: Callable[[Change], None]
) -> None:
    change_loss(lambda trainer, loss: loss + 20 if trainer.state.global_step >= 19 else loss)
    with pytest.raises(RunFailed, match="no checkpoint is from before it"):
        pretrain(**{**SPIKE, "training__save_steps": 25})
