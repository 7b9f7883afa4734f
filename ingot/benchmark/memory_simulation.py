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

from ingot.benchmark.memory_cases import DOCUMENTS, Case, make_trainer
from ingot.benchmark.tracking import LiveBytes
from ingot.planning.architecture import architecture_of_config
from ingot.planning.head_memory import chunk_rows
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
    """IngotRMSNorm's CUDA branch."""
    return FusedRMSNorm.apply(states, self.weight.to(states.dtype))


class FlashVarlen(torch.autograd.Function):
    """What torch's varlen kernel allocates and keeps: queries, keys, values (N, heads, width), result, log-sums."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Values are not computed."""
        output, log_sums = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of the three."""
        return tuple(torch.empty_like(states) for states in ctx.saved_tensors[:3])


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return FlashVarlen.apply(query, key, value)


def _backend(self: Any, inputs_embeds: torch.Tensor, given: dict[str, Any]) -> str:
    """IngotModel's choice on a GPU."""
    starts, fast = given.get("cu_seq_lens_q"), modeling_ingot.compute_dtype(inputs_embeds) == torch.bfloat16
    return "varlen" if fast and starts is not None and len(starts) > len(inputs_embeds) + 1 else "sdpa"


def _loss_in_place(logits: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels of the head's loss put the gradient in the place of the logits."""
    return logits.new_empty((), dtype=torch.float), logits


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
        return chunk_rows(architecture_of_config(self.config), total_memory)

    def loss(self: Any, num_tokens: int) -> str:
        wanted = self.config.loss_implementation
        return "chunked" if wanted == "auto" else wanted

    with contextlib.ExitStack() as patches:
        for target, name, value in (
            (modeling_ingot.IngotRMSNorm, "forward", _rms_norm),
            (modeling_ingot.IngotForCausalLM, "_chunk_rows", rows),
            (modeling_ingot.IngotForCausalLM, "_loss_implementation", loss),
            (modeling_ingot.IngotModel, "_backend", _backend),
            (modeling_ingot, "FLASH_VARLEN", _varlen),
            (modeling_ingot, "makes_kernels", lambda device: True),
            (modeling_ingot, "loss_and_gradient_by_kernels", _loss_in_place),
            (modeling_ingot, "add_product", lambda *_: None),  # in place
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


def _batch(case: Case) -> dict[str, Any]:
    """What the collator makes of the case's blocks."""
    shape = (case.micro_batch, case.seq_length)
    documents = case.micro_batch * (DOCUMENTS if case.packed else 1)
    size = 2 ** documents.bit_length() if case.packed else documents
    bounds = torch.zeros(size + 1, dtype=torch.int32)
    tokens = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "labels", "position_ids")}
    return {**tokens, "cu_seq_lens_q": bounds, "max_length_q": case.seq_length}


def _step(trainer: PretrainTrainer, model: Any, case: Case) -> None:
    """One optimizer step, as Trainer's loop takes it."""
    trainer.current_gradient_accumulation_steps = case.gradient_accumulation_steps
    batches = [_batch(case) for _ in range(case.gradient_accumulation_steps)]
    num_items = torch.tensor(case.micro_batch * case.seq_length)
    for inputs in batches:
        trainer.training_step(model, inputs, num_items)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    optimizer: Any = trainer.optimizer
    optimizer.step()
    model.zero_grad()
