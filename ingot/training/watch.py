"""Looks at the loss and the gradient of every step, without making the GPU wait for it.

The numbers stay on the device until something is logged or saved; then those of all steps since are looked at.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ingot.recipe import InputError
from ingot.runs import NotFinite, get_logger, is_main_process, num_processes, write_json
from ingot.training.order import TrainOrder
from ingot.training.safety import LossSpike

logger = get_logger(__name__)

MAD = 1.4826  # the standard deviation of a normal distribution in median absolute deviations
SHOWN_ROWS = 8


class Rewind(Exception):  # noqa: N818 - no error: training goes on
    """The loss has left its course; training is to go back to a checkpoint from before."""

    def __init__(self, first_step: int, step: int, loss: float, usual: float) -> None:
        """`first_step`: the last one logged before the loss rose; losses in nats."""
        super().__init__(f"the loss rose to {loss:.4f} at step {step}, where {usual:.4f} was usual")
        self.first_step, self.step, self.loss, self.usual = first_step, step, loss, usual


class WatchedSteps:
    """A mixin for transformers' Trainer: stops at numbers that are not finite, or skips the step; sees spikes."""

    args: Any
    state: Any
    model: Any
    optimizer: Any
    order: TrainOrder | None
    skip_nonfinite = 0  # steps that may be skipped
    loss_spike: LossSpike | None = None

    _step_loss: Tensor | None = None
    _loss_before: Tensor | None = None
    _skipped = 0  # steps since the last log
    _skipped_loss: Tensor | float = 0.0  # their part in the sum that upstream logs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seen: list[tuple[int, Tensor, Tensor]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Upstream's; remembers the loss. One that is not finite is left out of the mean where steps are skipped."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss.nan_to_num(0.0, 0.0, 0.0) if self.skip_nonfinite else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Upstream's, which comes once a step, before the optimizer's."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        assert self._step_loss is not None
        loss, self._step_loss = self._step_loss, None
        step = self.state.global_step + 1
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm  # under FSDP2
        # DeepSpeed's is a Python float: it stays on the CPU, as to copy it would wait for the device
        value = torch.as_tensor(0.0 if whole is None else whole).detach()
        if self.skip_nonfinite and not self._all_finite(loss, value):
            self._skip(model, step, loss, value)
        else:
            self._seen.append((step, loss.float(), value.float()))
        return norm

    def _all_finite(self, *values: Tensor) -> bool:
        """The same on every process; waits for the device."""
        broken = torch.stack([~value.isfinite().all().to(values[0].device) for value in values]).any().float()
        if num_processes() > 1:
            torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
        return not broken.item()

    def _skip(self, model: Any, step: int, loss: Tensor, norm: Tensor) -> None:
        """Leaves a step out: with no gradient, optimizers change neither weights nor states.

        Raises: NotFinite when the budget is spent.
        """
        done = 1 + sum(entry.get("skipped", 0) for entry in self.state.log_history) + self._skipped
        if done > self.skip_nonfinite:
            self._stop(step, loss, norm, f"run.skip_nonfinite: {self.skip_nonfinite} steps were skipped already; ")
        self._skipped += 1
        self._skipped_loss = self._skipped_loss + loss.nan_to_num(0.0, 0.0, 0.0)
        self._record(step, loss, norm, "skipped")
        logger.warning(
            "step %d: %s; skipped (%d of run.skip_nonfinite: %d)", step, _told(loss, norm), done, self.skip_nonfinite
        )
        model.zero_grad(set_to_none=True)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Looks at the steps since the last log first, so that no number that is not finite is ever written.

        Raises: NotFinite, Rewind.
        """
        if "loss" in logs:
            self.look()
            self._leave_out_skipped(logs)
            if self.loss_spike is not None and "loss" in logs:
                self._look_for_spike(logs["loss"])
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def look(self) -> None:
        """Raises: NotFinite that names the first step since the last look whose loss or gradient is not finite."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        numbers = torch.stack([torch.stack((loss, norm.to(loss.device))) for _, loss, norm in seen])
        first = (~numbers.isfinite().all(dim=1)).float().argmax() + len(seen) * numbers.isfinite().all()
        if num_processes() > 1:
            torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
        if (place := int(first)) < len(seen):
            step, loss, norm = seen[place]
            self._stop(step, loss, norm)

    def _stop(self, step: int, loss: Tensor, norm: Tensor, first: str = "") -> None:
        file = self._record(step, loss, norm, "stopped")
        raise NotFinite(
            f"step {step}: {_told(loss, norm)}. {first}Its rows: {self._rows_told(step)}, see {file}. Lower "
            "training.learning_rate, raise training.warmup_steps, look at the rows, or skip such steps with "
            "--run.skip_nonfinite=N; nothing of this step was saved, the same command continues before it"
        )

    def forget(self) -> None:
        """Drops what was seen of steps that are taken back."""
        self._seen, self._step_loss, self._skipped, self._skipped_loss = [], None, 0, 0.0

    def _record(self, step: int, loss: Tensor, norm: Tensor, what: str) -> Path:
        """Writes what is known of a step; token ids of its rows, for who wants to see the text."""
        file = Path(self.args.output_dir) / f"nonfinite-step-{step}.json"
        if is_main_process():
            rows = [] if self.order is None else self.order.rows_of_step(step - 1)
            data: Any = self.train_dataset  # type: ignore[attr-defined]
            shown = [{k: _plain(v) for k, v in data[row].items()} for row in rows[:SHOWN_ROWS]]
            record = {"step": step, "what": what, "loss": str(loss.item()), "grad_norm": str(norm.item())}
            write_json(file, {**record, "rows": rows, "first_rows": shown})
        return file

    def _rows_told(self, step: int) -> str:
        if self.order is None:
            return "unknown under this training.train_sampling_strategy"
        rows = self.order.rows_of_step(step - 1)
        return ", ".join(map(str, rows[:SHOWN_ROWS])) + (f" and {len(rows) - SHOWN_ROWS} more" * (len(rows) > 8))

    def _leave_out_skipped(self, logs: dict[str, float]) -> None:
        """Makes the mean one of the steps that were made, and says how many were not."""
        if not self._skipped:
            return
        last = max((entry["step"] for entry in self.state.log_history if "learning_rate" in entry), default=0)
        steps, skipped, left_out = self.state.global_step - last, self._skipped, torch.as_tensor(self._skipped_loss)
        self._skipped, self._skipped_loss = 0, 0.0
        if num_processes() > 1:
            torch.distributed.all_reduce(left_out)
        logs["skipped"] = skipped
        logs.pop("grad_norm", None)  # that of the last step, which may be one of them
        loss = logs.pop("loss")
        if steps > skipped:
            logs["loss"] = (loss * steps - left_out.item() / num_processes()) / (steps - skipped)

    def _look_for_spike(self, loss: float) -> None:
        rule = self.loss_spike
        assert rule is not None
        logged = [(entry["step"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        logged = [*logged, (self.state.global_step, loss)]
        usual, recent = logged[: -rule.patience][-rule.window :], logged[-rule.patience :]
        if len(usual) < rule.window:
            return
        limit = spike_limit([value for _, value in usual], rule.deviations)
        if all(value > limit for _, value in recent):
            raise Rewind(usual[-1][0], self.state.global_step, loss, median(value for _, value in usual))


def spike_limit(losses: Sequence[float], deviations: float) -> float:
    """The loss above which there is a spike: the median and so many deviations, which are robust against outliers.

    A course without any noise counts as one with a deviation of 0.1% of the median.
    """
    middle = median(losses)
    spread = MAD * median(abs(loss - middle) for loss in losses)
    return middle + deviations * max(spread, 1e-3 * abs(middle))


def check_weights(model: Any, step: int) -> None:
    """Raises: NotFinite, on every process, when a weight is NaN or infinite. ZeRO-3's slices are not looked at."""
    held = {n: p for n, p in model.named_parameters() if p.is_floating_point() and p.numel()}
    if not held:
        return
    broken = torch.stack([~_local(parameter).isfinite().all() for parameter in held.values()])
    anywhere = broken.any().float()
    if num_processes() > 1:
        torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
    if not anywhere.item():
        return
    names = [name for name, flag in zip(held, broken.tolist(), strict=True) if flag]
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    raise NotFinite(
        f"step {step}: {(names[0] if names else 'a weight on another process') + more} not finite (NaN or infinity); "
        "not saved. Lower training.learning_rate; the same command continues from the last checkpoint"
    )


def _local(tensor: Any) -> Tensor:
    """What this process holds of a parameter."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _told(loss: Tensor, norm: Tensor) -> str:
    """Which of the two is not finite; on another process's rows when here both are."""
    parts = [f"{n} is {v.item()}" for n, v in (("loss", loss), ("grad_norm", norm)) if not v.isfinite().all()]
    return " and ".join(parts) or "the loss on another process is not finite"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) or type(value).__module__ == "numpy" else value


def check_skipping(skip_nonfinite: int, strategy: str) -> None:
    """Raises: InputError under DeepSpeed, whose engine makes its step within the backward pass."""
    if skip_nonfinite and strategy.startswith("zero"):
        raise InputError(
            "run.skip_nonfinite: DeepSpeed makes its step before the gradient can be looked at; launch with ddp.yaml "
            "or fsdp2.yaml, or set it to 0: the run then stops before such a step is saved"
        )
