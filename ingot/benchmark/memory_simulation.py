"""Runs real training steps of the Trainer on fake tensors and counts the bytes that they would hold on a GPU.

Fake tensors have shapes and no values, so the largest model takes seconds on a CPU. They live on the CPU, where the
model and torch take other branches than on a GPU; `as_on_cuda` puts the GPU's in their place, and nothing else.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ingot.benchmark.memory_cases import Case, make_trainer
from ingot.benchmark.tracking import LiveBytes
from ingot.training import optim
from ingot.training.pretrain_trainer import PretrainTrainer
from modeling import modeling_ingot


class FusedRMSNorm(torch.autograd.Function):
    """What CUDA's fused RMSNorm allocates and keeps: its input, one float32 per row and the weight."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """states: (..., W); values are not computed."""
        ctx.save_for_backward(states, states.new_empty(*states.shape[:-1], 1, dtype=torch.float), weight)
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of both."""
        states, _, weight = ctx.saved_tensors
        return torch.empty_like(states), torch.empty_like(weight)


def _rms_norm(self: Any, states: torch.Tensor) -> torch.Tensor:
    """IngotRMSNorm's CUDA branch; CUDA's autocast runs rms_norm in float32."""
    weight = self.weight.to(states.dtype)
    if torch.is_autocast_enabled("cpu"):
        states, weight = states.float(), weight.float()
    return FusedRMSNorm.apply(states, weight)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **_: Any) -> Any:
    """SDPA's kernels on a GPU: flash attention, or with a mask the one that adds a bias to the scores."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    if attn_mask is None and query.dtype != torch.float:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
    if attn_mask is None:  # float32 has no flash kernel, and the others take whole heads
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, True)[0]
    bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]


def _type(value: Any) -> type:
    """A fake parameter says that it is a FakeTensor; the head asks whether it is a plain one."""
    return torch.nn.Parameter if isinstance(value, torch.nn.Parameter) else type(value)


@contextlib.contextmanager
def as_on_cuda(packed: bool, total_memory: int) -> Iterator[None]:
    """Puts the branches that a GPU takes into the model.

    packed: whether a block holds several documents, which needs a mask; total_memory: bytes of the GPU.
    """

    def mask(config: Any, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor | None:
        batch, tokens = inputs_embeds.shape[:2]
        return torch.ones(batch, 1, tokens, tokens, dtype=torch.bool) if packed else None

    def rows(self: Any) -> int:
        return max(modeling_ingot.MIN_CHUNK_ROWS, total_memory // 64 // (4 * self.config.vocab_size))

    with contextlib.ExitStack() as patches:
        for target, name, value in (
            (modeling_ingot.IngotRMSNorm, "forward", _rms_norm),
            (modeling_ingot.IngotForCausalLM, "_chunk_rows", rows),
            (modeling_ingot, "create_causal_mask", mask),
            (modeling_ingot, "create_sliding_window_causal_mask", mask),
            (modeling_ingot, "prefers_eager", lambda *_: False),
            (F, "scaled_dot_product_attention", _attention),
            (modeling_ingot.IngotForCausalLM, "to", lambda model, *_, **__: model),  # it is there already
            (modeling_ingot, "type", _type),
            (optim, "_takes_fused", lambda _: True),
            (sys.modules["torch.optim.adam"], "_default_to_fused_or_foreach", lambda *_, **__: (False, True)),
            (sys.modules["torch.optim.sgd"], "_default_to_fused_or_foreach", lambda *_, **__: (False, True)),
        ):
            patches.enter_context(mock.patch.object(target, name, value, create=name == "type"))
        yield


def simulate(case: Case, total_memory: int, steps: int = 2) -> dict[str, Any]:
    """Runs optimizer steps of a case on fake tensors; returns bytes at their peak and by part.

    Two steps are enough: the second has the optimizer's states from its beginning.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        as_on_cuda(case.packed, total_memory),
        FakeTensorMode(),
        LiveBytes() as live,
    ):
        trainer = make_trainer(case, folder, steps, use_cpu=True)
        model = _prepare(trainer, case)
        weights = live.bytes
        for _ in range(steps):
            _step(trainer, model, case)
        return {"peak_bytes": live.peak, "weights": weights, "kept_bytes": live.bytes, "at_peak": live.at_peak}


def _prepare(trainer: PretrainTrainer, case: Case) -> Any:
    """What Trainer.train does before its first step."""
    model: Any = trainer.model
    if case.gradient_checkpointing:
        model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.create_optimizer()
    model, trainer.optimizer = trainer.accelerator.prepare(model, trainer.optimizer)
    trainer.model_wrapped = model
    return model


def _step(trainer: PretrainTrainer, model: Any, case: Case) -> None:
    """One optimizer step, as Trainer's loop takes it."""
    trainer.current_gradient_accumulation_steps = case.gradient_accumulation_steps
    shape = (case.micro_batch, case.seq_length)
    batches = [
        {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "labels", "position_ids")}
        for _ in range(case.gradient_accumulation_steps)
    ]
    num_items = torch.tensor(case.micro_batch * case.seq_length)
    for inputs in batches:
        trainer.training_step(model, inputs, num_items)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    optimizer: Any = trainer.optimizer
    optimizer.step()
    model.zero_grad()
