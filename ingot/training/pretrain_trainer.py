"""transformers' Trainer for pretraining: whole checkpoints, and a held-out loss that is the same on any machine."""

import time
from typing import Any

import torch
from transformers import Trainer

from ingot.data.assembly import IGNORED, collate
from ingot.data.packing import EvaluationBlocks
from ingot.runs import num_processes
from ingot.training.checkpoints import SafeCheckpoints
from ingot.training.pretrain_data import HeldOut
from modeling import IngotForCausalLM


class PretrainTrainer(SafeCheckpoints, Trainer):
    """Trainer whose `eval_dataset` is HeldOut."""

    eval_dataset: HeldOut  # type: ignore[assignment]

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """The mean loss over all held-out labels, in nats per token; upstream's would average batches instead.

        Of a mixture, the losses of its sources and their mean by weight.
        """
        began = time.monotonic()
        losses = [self._heldout_loss(source.heldout) for source in self.eval_dataset.sources]
        metrics = self.eval_dataset.metrics(losses, metric_key_prefix)
        metrics[f"{metric_key_prefix}_seconds"] = round(time.monotonic() - began, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Upstream's; under FSDP2 torch makes a class of the model's, and upstream would save the code of torch."""
        if not self.is_fsdp_enabled or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        assert output_dir is not None and state_dict is not None
        sharded = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with torch.device("meta"):
            model = IngotForCausalLM(sharded.config).to(next(iter(state_dict.values())).dtype)
        model.generation_config = sharded.generation_config
        copies = model._tied_weights_keys if model.config.tie_word_embeddings else ()  # gathered one by one
        model.save_pretrained(output_dir, state_dict={k: v for k, v in state_dict.items() if k not in copies})
        self.processing_class.save_pretrained(output_dir)

    @torch.no_grad()
    def _heldout_loss(self, blocks: EvaluationBlocks) -> float:
        """Each process takes every n-th batch; the sums are added. Logits are never held."""
        size, rank = self.args.per_device_eval_batch_size, self.args.process_index
        model = self.model_wrapped
        model.eval()
        total = torch.zeros((), dtype=torch.float64)
        # as many turns on every process: under ZeRO-3 and FSDP they gather the weights together
        for turn in range(0, len(blocks), size * num_processes()):
            begin = turn + rank * size
            batch = collate([blocks[i] for i in range(begin, min(begin + size, len(blocks)))] or [blocks[0]])
            if begin >= len(blocks):
                batch["labels"].fill_(IGNORED)
            with self.compute_loss_context_manager():
                inputs = self._prepare_inputs(batch)
                loss = model(**inputs, num_items_in_batch=1, use_cache=False, skip_logits=True).loss
            total += loss.double().cpu()
        model.train()
        total = self.accelerator.reduce(total.to(self.args.device), reduction="sum")
        return float(total) / blocks.num_targets
