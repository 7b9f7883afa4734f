"""`run.fp8`: products of the layers and of the head in float8, with torchao and for the head with a loss of our own.

Inputs and weights are e4m3, gradients e5m2, each tensor with one scale; results are in autocast's dtype, and weights,
their gradients and the optimizer stay in float32. Norms, attention and the token table are as without.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ingot.recipe import InputError
from modeling import IngotForCausalLM
from modeling.modeling_ingot import ChunkedCrossEntropy, compiled, log_sums_and_loss, makes_kernels

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PROBABILITY_SCALE = 2.0**15  # e5m2's range begins at 2^-16: probabilities down to 2^-31 are kept
MULTIPLE = 16  # of which every length of a product must be one
OLDEST = (8, 9)  # compute capability: Ada and Hopper


def train_in_float8(model: IngotForCausalLM, head: bool = True) -> None:
    """Has the linear modules of the layers, and the head's chunked loss, compute in float8; names of weights stay.

    Modules of other widths than multiples of 16 stay as they are (the gate of a shared expert is one), and so do
    stacked experts. Raises: InputError where the GPU, the widths or a missing package do not allow it.
    """
    _refuse(model)
    from torchao.float8 import convert_to_float8_training

    convert_to_float8_training(model.model.layers, module_filter_fn=lambda module, name: suits(module))
    if head and suits(model.lm_head) and model.config.loss_implementation in ("auto", "chunked"):
        model.chunked_cross_entropy = Float8CrossEntropy


def suits(module: nn.Module) -> bool:
    """Whether a module's products can be in float8."""
    return isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE)


def _refuse(model: IngotForCausalLM) -> None:
    if find_spec("torchao") is None:
        raise InputError("run.fp8: needs torchao; `pip install 'ingot[gpu]'`, or set it to false")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST:
        name = torch.cuda.get_device_name()
        raise InputError(f"run.fp8: {name} has no float8 products (Ada, Hopper and newer have); set it to false")
    if not any(suits(module) for module in model.model.layers.modules()):
        width = model.config.hidden_size
        raise InputError(f"run.fp8: no module's widths are multiples of {MULTIPLE} (model.hidden_size is {width})")


class Float8CrossEntropy(ChunkedCrossEntropy):
    """The same with its three products in float8.

    The gradient of a label's own logit, probability - 1, stays out of the float8 matrix and is added on its own: it is
    the largest of a row by far, and e5m2 would keep two digits of it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int
    ) -> torch.Tensor:  # of (N, D), (V, D), (N,)
        if len(labels) % MULTIPLE:
            return ChunkedCrossEntropy.forward(ctx, hidden_states, weight, labels, rows)
        run = _for_shape if makes_kernels(weight.device) else _as_is
        table, table_across, table_scale = run(cast_both_ways)(weight)
        grad_hidden = torch.empty_like(hidden_states)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float, device=weight.device)
        total = torch.zeros((), dtype=torch.float, device=weight.device)
        one = torch.full((), 1 / PROBABILITY_SCALE, device=weight.device)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            chunk, targets = hidden_states[part], labels[part, None]
            valid = targets != -100
            targets = targets.where(valid, 0)
            states, states_across, scale = run(cast_both_ways)(chunk)
            logits = product(states, table, scale, table_scale, chunk.dtype, fast=True)
            log_sums, loss, of_target = run(log_sums_and_loss)(logits, targets, valid)
            probabilities, probabilities_across = run(cast_probabilities)(logits, log_sums, targets, valid)
            del logits
            total = total + loss  # as in the class above
            own = of_target * valid
            spread = product(probabilities, table_across, one, table_scale, chunk.dtype)
            grad_hidden[part] = spread + own * weight[targets[:, 0]].to(chunk.dtype)
            grad_weight += product(probabilities_across, states_across, one, scale, chunk.dtype)
            grad_weight.index_put_((targets[:, 0],), own * chunk.float(), accumulate=True)
            del probabilities, probabilities_across
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.done = weight.dtype, False
        return total


def _for_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for each shape: the head's weight and a chunk of states share a function."""
    return compiled(function, dynamic=False)


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def cast_both_ways(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix (rows, columns) in e4m3, its transpose (columns, rows), and the number to multiply both with."""
    values = matrix.float()
    scale = torch.finfo(E4M3).max / values.abs().amax().clamp(min=1e-12)
    cast = (values * scale).to(E4M3)
    return cast, cast.t().contiguous(), scale.reciprocal()


def cast_probabilities(
    logits: torch.Tensor, log_sums: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax times PROBABILITY_SCALE in e5m2, (rows, V) and (V, rows); 0 for targets and in rows without one."""
    probabilities = (logits.float() - log_sums).exp() * valid
    places = torch.arange(logits.shape[1], device=logits.device, dtype=torch.int32)
    others = torch.where(places == targets.int(), 0.0, probabilities * PROBABILITY_SCALE).to(E5M2)
    return others, others.t().contiguous()


def product(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scale: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    fast: bool = False,
) -> torch.Tensor:
    """left @ right.T for float8 (rows, inner) and (columns, inner).

    fast: adds up with about 14 bits, which over a vocabulary, or thousands of tokens, loses what is small.
    """
    return torch._scaled_mm(
        left, right.t(), scale_a=left_scale, scale_b=right_scale, out_dtype=dtype, use_fast_accum=fast
    )
