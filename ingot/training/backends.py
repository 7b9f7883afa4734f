"""Which kernels a run will use and why, in words for its first lines."""

from collections.abc import Iterator

import torch

from ingot.training.compiling import Compiling
from ingot.training.float8 import Float8CrossEntropy
from modeling import IngotForCausalLM
from modeling.modeling_ingot import FLASH_VARLEN, makes_kernels, takes_beginnings


def describe_backends(
    model: IngotForCausalLM,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    compiling: Compiling,
) -> Iterator[str]:
    """A line for attention, the loss, the layers and float8."""
    yield f"attention: {_attention(model, device, dtype)}"
    yield f"loss: {_loss(model, device)}"
    yield f"layers: {'compiled one by one' if compiling.wanted else 'not compiled'}: {compiling.reason}" + (
        "" if "training." in compiling.reason else f"; --training.torch_compile={str(not compiling.wanted).lower()}"
    )
    if fp8:
        where = "the layers and the head" if model.chunked_cross_entropy is Float8CrossEntropy else "the layers"
        yield f"products: float8 in {where} (run.fp8), weights and their gradients in float32"


def _attention(model: IngotForCausalLM, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel, and how it learns where packed documents begin."""
    name = str(model.config._attn_implementation)
    if name != "sdpa":
        return f"{name} (model.attn_implementation)"
    if device.type != "cuda":
        short = device.type == "cpu" and dtype == torch.bfloat16
        return f"{name}, and plain products for rows of up to 512 tokens, which a CPU does faster" if short else name
    if takes_beginnings(model.config, device, dtype, training=True):
        return "sdpa (cuDNN or flash); torch's varlen kernel, which needs no mask, where blocks hold several documents"
    if dtype == torch.float32:
        return "sdpa, with masks: float32 has no flash kernel"
    reasons = {
        "alibi": model.config.position_embedding_type == "alibi",
        "dropout": model.config.attention_dropout > 0,
        "this torch has no kernel that is told the documents": FLASH_VARLEN is None,
    }
    reason = next((words for words, holds in reasons.items() if holds), f"heads of {model.config.head_dim}")
    return f"sdpa, with masks where a block holds several documents: {reason}"


def _loss(model: IngotForCausalLM, device: torch.device) -> str:
    """The implementation, and the rows of a chunk."""
    wanted, rows = model.config.loss_implementation, model._chunk_rows()
    if wanted in ("plain", "fused"):
        return f"{wanted} (model.loss_implementation)"
    if device.type != "cuda":
        return (
            f"chunked, {rows} tokens' logits at a time" if wanted == "chunked" else f"in chunks beyond {rows} tokens"
        )
    how = "by triton kernels" if makes_kernels(device) else "without kernels of its own: no triton, or no C compiler"
    return f"chunked, {rows} tokens' logits at a time, {how}"
