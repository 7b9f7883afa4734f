"""Optimizers that upstream's `training.optim` does not have, built for `Trainer(optimizer_cls_and_kwargs=...)`."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# coefficients of the quintic Newton-Schulz iteration (Jordan et al., 2024, "Muon: an optimizer for hidden layers")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(update: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between about 0.7 and 1.2.

    update: (..., rows, columns), any float type; the result has the same shape and type.
    """
    a, b, c = NEWTON_SCHULZ
    x = update.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


def loss_again(closure: Callable[[], float] | None) -> float | None:
    """What torch's optimizers do first in a step: the loss once more, with gradients, where a closure is given."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the 2-D weights of the hidden layers, AdamW for embeddings, head, norms and biases.

    A group with `matrices=True` is Muon's: Nesterov momentum, orthogonalised, times 0.2 * sqrt(max(rows, columns)),
    which gives AdamW's root mean square (Liu et al., 2025, "Muon is scalable for LLM training"): both take alike
    learning rates. Under ZeRO-1/2 a group arrives as one flat slice of its matrices: momentum stays sliced, the
    update is gathered.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """`dtype` is that of the Newton-Schulz iteration."""
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(params, defaults)
        self.dtype = dtype
        for group in self.param_groups:
            group["shapes"] = [tuple(p.shape) for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        loss = loss_again(closure)
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                (self._muon if group["matrices"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        updates = [self._momentum(p, group["momentum"]) for p in params]
        flat_slice = params[0].dim() == 1
        whole = _gather_matrices(updates[0], group["shapes"]) if flat_slice else updates
        steps = [
            0.2 * math.sqrt(max(m.shape)) * o
            for m, o in zip(whole, _orthogonalize_all(whole, self.dtype), strict=True)
        ]
        if flat_slice:
            steps = [_own_slice(steps, params[0])]
        for param, step in zip(params, steps, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(step.to(param.dtype), alpha=-group["lr"])

    def _momentum(self, param: Tensor, momentum: float) -> Tensor:
        gradient, state = param.grad, self.state[param]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, buffer, momentum)

    def _adamw(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for param in params:
            if not self.state[param]:
                zeros = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                self.state[param].update(zeros, step=torch.zeros((), dtype=torch.float32))
        states = [self.state[p] for p in params]
        adamw(
            params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], foreach=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def _orthogonalize_all(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalises matrices of one shape together."""
    results: list[Tensor | None] = [None] * len(matrices)
    for shape in dict.fromkeys(m.shape for m in matrices):
        indexes = [i for i, m in enumerate(matrices) if m.shape == shape]
        stacked = orthogonalize(torch.stack([matrices[i] for i in indexes]), dtype=dtype)
        for i, result in zip(indexes, stacked, strict=True):
            results[i] = result
    return [r for r in results if r is not None]


def _gather_matrices(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """The whole matrices from every process's flat slice, which ZeRO-1/2 cuts from them laid end to end."""
    slices = [torch.empty_like(flat) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(slices, flat)
    joined, matrices, start = torch.cat(slices), [], 0
    for rows, columns in shapes:
        matrices.append(joined[start : start + rows * columns].view(rows, columns))
        start += rows * columns
    return matrices


def _own_slice(matrices: list[Tensor], flat: Tensor) -> Tensor:
    """This process's slice of the matrices laid end to end, zero where ZeRO padded."""
    joined = torch.cat([m.flatten() for m in matrices])
    start = torch.distributed.get_rank() * flat.numel()
    part = joined[start : start + flat.numel()]
    return nn.functional.pad(part, (0, flat.numel() - part.numel()))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Muon's groups: the 2-D weights inside the layers; AdamW's: embeddings and head with decay, vectors without."""
    hidden: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_layer = ".layers." in f".{name}"
        (hidden if in_layer and parameter.dim() == 2 else tables if parameter.dim() >= 2 else vectors).append(
            parameter
        )
    groups = [
        {"params": hidden, "matrices": True, "weight_decay": weight_decay},
        {"params": tables, "matrices": False, "weight_decay": weight_decay},
        {"params": vectors, "matrices": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class MuonFactory:
    """What Trainer's `optimizer_cls_and_kwargs` takes for an optimizer that makes its own groups."""

    def __call__(self, model: nn.Module, weight_decay: float, **kwargs: Any) -> MuonWithAdamW:
        """Builds the optimizer for a model."""
        return MuonWithAdamW(parameter_groups(model, weight_decay), **kwargs)
