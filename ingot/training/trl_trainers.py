"""TRL's two trainers with what they lack: whole-or-absent checkpoints, exact numbers, speed on small models."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from ingot.training.encoding import IGNORED, Example
from ingot.training.heldout import answer_log_probs, mean_loss
from ingot.training.plain_head import use_plain_head
from ingot.training.safe_training import SafeTraining
from modeling import IngotForCausalLM


class _KeepToOurselves:
    """Turns off what TRL's trainers do beside training."""

    _metrics: Any

    def _send_telemetry(self) -> None:
        """Nothing is sent unless the user says so."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Leaves out upstream's count of tokens: of packed rows it is wrong, and a continued run begins it anew."""
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written by export, from the run."""


class PackedRows:
    """Collates packed rows to (B, T) with positions that restart where a row begins, and no attention mask.

    Upstream lays the rows of a batch end to end, for kernels that know sequence lengths; any other attention then
    costs (B T)^2 instead of B T^2.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """rows: {"input_ids", "labels", "seq_lengths"}; padding is a row of its own at each place."""
        ids, labels, positions = [], [], []
        for row in rows:
            ids.append(torch.tensor(row["input_ids"]))
            positions.append(torch.cat([torch.arange(length) for length in row["seq_lengths"]]))
            # the last token of one row does not predict the first of the next
            labels.append(torch.tensor(row["labels"]).masked_fill(positions[-1] == 0, IGNORED))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "position_ids": pad_sequence(positions, batch_first=True),
        }


class SafeSFTTrainer(_KeepToOurselves, SafeTraining, SFTTrainer):
    """TRL's SFTTrainer with whole-or-absent checkpoints, faster on packed rows, and with the exact held-out loss."""

    model: Any
    held_out: Sequence[Example] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.packing:
            self.data_collator = PackedRows(kwargs["processing_class"].pad_token_id)
        plain = self.args.loss_type == "nll" and not self.args.label_smoothing_factor
        self._model_has_loss = plain and any(isinstance(module, IngotForCausalLM) for module in self.model.modules())

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """An Ingot model's own loss: upstream's costs twice the head, for metrics and for tokens without a label."""
        if not self._model_has_loss:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *args, **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """The mean over all supervised tokens of the held-out rows; upstream's is a mean of the batches' means."""
        loss = mean_loss(answer_log_probs(self.model, self.held_out, self.accelerator))
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class SafeDPOTrainer(_KeepToOurselves, SafeTraining, DPOTrainer):
    """TRL's DPOTrainer with whole-or-absent checkpoints, for rows that are token ids already."""

    model: Any
    _has_plain_head = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._quicken()

    def _quicken(self) -> None:
        """Gives a dense Ingot model the faster head, once; the loss types that need more of TRL's keep it."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        if self._has_plain_head or not isinstance(base, IngotForCausalLM):
            return
        if not base.config.num_experts and not self.args.use_weighting:
            use_plain_head(base)
            self._has_plain_head = True

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        self._quicken()  # upstream does this before it has finished `__init__`
        return super()._precompute_ref_logps(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset
