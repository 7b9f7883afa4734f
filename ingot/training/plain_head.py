"""A head for DPO that is faster on small vocabularies than TRL's, which saves memory on large ones.

TRL's projects every position, in float32 tiles, twice in a training step: on a CPU that is two thirds of the time.
This one projects only the positions that have a label, in one product.
"""

import types
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trl.trainer.utils import FusedCausalLMOutput

from ingot.training.encoding import IGNORED
from modeling import IngotForCausalLM

# More logits than this (1 GiB in float32) go to TRL's head.
LARGEST = 2**28


def use_plain_head(model: IngotForCausalLM) -> None:
    """Makes `model(..., labels=labels, fused_lm_head=True)`, which TRL has added, answer in the faster way."""
    upstream = model.forward

    def forward(
        self: IngotForCausalLM, *args: Any, labels: Any = None, fused_lm_head: bool = False, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return upstream(*args, labels=labels, **kwargs)
        if int((labels != IGNORED).sum()) * self.config.vocab_size > LARGEST:
            return upstream(*args, labels=labels, fused_lm_head=True, **kwargs)
        hidden_states = self.model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        return label_log_probs(self, hidden_states[:, :-1], labels[:, 1:])

    model.forward = types.MethodType(forward, model)


def label_log_probs(
    model: IngotForCausalLM, hidden_states: torch.Tensor, targets: torch.Tensor
) -> FusedCausalLMOutput:
    """Log-probabilities (B, T) of targets (B, T), with TRL's figures about them; all are 0 where a target is -100.

    hidden_states: (B, T, H), the last layer's at the positions before the targets.
    """
    mask = targets != IGNORED
    logits = model._logits(hidden_states[mask]).float()  # (N, V)
    losses = cross_entropy(logits, targets[mask], reduction="none")
    with torch.no_grad():
        log_probs = logits.log_softmax(dim=-1)
        figures = {
            "entropy": -(log_probs.exp() * log_probs).sum(dim=-1),
            "mean_logits": logits.mean(dim=-1),
            "is_top1": logits.argmax(dim=-1) == targets[mask],
        }
    figures["log_probs"] = -losses
    spread = {name: value.new_zeros(mask.shape).masked_scatter(mask, value) for name, value in figures.items()}
    return FusedCausalLMOutput(loss=losses.mean(), label_mask=mask, **spread)
