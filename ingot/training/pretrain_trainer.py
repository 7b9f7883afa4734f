"""transformers' Trainer for pretraining: whole checkpoints, and a held-out loss that is the same on any machine."""

import time
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from ingot.data.assembly import IGNORED, collate
from ingot.data.packing import EvaluationBlocks
from ingot.runs import num_processes
from ingot.training.pretrain_data import HeldOut
from ingot.training.profiled_steps import ProfiledSteps
from ingot.training.safe_training import SafeTraining
from modeling import IngotForCausalLM


class PretrainTrainer(SafeTraining, ProfiledSteps, Trainer):
    """Trainer whose `eval_dataset` is HeldOut."""

    eval_dataset: HeldOut  # type: ignore[assignment]

    def create_accelerator_and_postprocess(self) -> None:
        """Upstream's; under FSDP2 in bf16, gradients are added up over the processes in float32, as elsewhere.

        Accelerate's policy would do it in bfloat16, and round the loss to it: three digits.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.args.bf16:
            plugin = self.accelerator.state.fsdp_plugin
            exact = {"reduce_dtype": torch.float32, "output_dtype": None}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Upstream's; under FSDP2 the whole model, or in a sharded checkpoint its config and tokenizer.

        Upstream writes nothing there, and beside a whole model the code of torch's class in place of the model's.
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        assert output_dir is not None
        shards = _internal_call and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        state_dict = None if shards else self.accelerator.get_state_dict(self.model)
        if self.args.should_save:
            self._save_of_fsdp(output_dir, state_dict)

    def _save_of_fsdp(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        trained = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if state_dict is None:
            trained.config.save_pretrained(folder)
            trained.generation_config.save_pretrained(folder)
        else:
            with torch.device("meta"):
                model: Any = IngotForCausalLM(trained.config)
            model.to(dtype=next(iter(state_dict.values())).dtype)
            model.generation_config = trained.generation_config
            copies = model._tied_weights_keys if model.config.tie_word_embeddings else ()  # gathered one by one
            model.save_pretrained(folder, state_dict={k: v for k, v in state_dict.items() if k not in copies})
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        self.processing_class.save_pretrained(folder)

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
            real = [blocks[i] for i in range(begin, min(begin + size, len(blocks)))]
            filling = [blocks[0]] * (size - len(real) if num_processes() > 1 else 0)  # as many chunks, too
            batch = collate(real + filling)
            batch["labels"][len(real) :] = IGNORED
            with self.compute_loss_context_manager():
                inputs = self._prepare_inputs(batch)
                bare = {"use_cache": False, "skip_logits": True, "output_router_logits": False}  # no balance loss
                loss = model(**inputs, num_items_in_batch=1, **bare).loss
            total += loss.double().cpu()
        model.train()
        total = self.accelerator.reduce(total.to(self.args.device), reduction="sum")
        return float(total) / blocks.num_targets
