"""Optimizers that upstream's `training.optim` does not have, built for `Trainer(optimizer_cls_and_kwargs=...)`."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# numbers that are orthogonalised at a time: enough for whole GPUs, and it bounds the memory of a step to 1 GB
CHUNK = 1 << 26
# coefficients of the quintic Newton-Schulz iteration (Jordan et al., 2024, "Muon: an optimizer for hidden layers")
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(update: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end between about 0.7 and 1.2.

    update: (..., rows, columns), any float type; the result has the same shape and type.
    """
    a, b, c = NEWTON_SCHULZ
    x = update.to(dtype).reshape(-1, *update.shape[-2:])
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(update.dtype).reshape(update.shape)


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
        if params[0].dim() == 1:
            self._muon_of_slice(group, params[0])
            return
        for indexes in _batches([tuple(p.shape) for p in params]):
            some = [params[i] for i in indexes]
            _move(some, self._steps(self._momenta(some, group["momentum"])), group)

    def _muon_of_slice(self, group: dict[str, Any], param: Tensor) -> None:
        """ZeRO's step: the whole update from every process, its matrices replaced by their steps, the own slice."""
        joined = _gather(self._momenta([param], group["momentum"])[0])
        matrices = _views(joined, group["shapes"])
        for indexes in _batches(group["shapes"]):
            some = [matrices[i] for i in indexes]
            torch._foreach_copy_(some, self._steps(list(some)))
        start = torch.distributed.get_rank() * param.numel()
        _move([param], [joined[start : start + param.numel()]], group)

    def _momenta(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's updates, from the gradients and the running means of them that are kept."""
        gradients = [p.grad for p in params if p.grad is not None]
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))

    def _steps(self, updates: list[Tensor]) -> list[Tensor]:
        """Updates of one shape, orthogonalised together and brought to AdamW's root mean square."""
        stacked = torch.empty((len(updates), *updates[0].shape), dtype=self.dtype, device=updates[0].device)
        torch._foreach_copy_(list(stacked.unbind()), updates)
        kind = updates[0].dtype
        updates.clear()  # nobody needs them any more
        orthogonal = orthogonalize(stacked, dtype=self.dtype)
        steps = torch.empty_like(stacked, dtype=kind).copy_(orthogonal)  # rows after rows, as the weights are
        return list(steps.mul_(0.2 * math.sqrt(max(stacked.shape[1:]))).unbind())

    def _adamw(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        fused = _takes_fused(params[0])
        for param in params:
            if not self.state[param]:
                zeros = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                self.state[param].update(zeros, step=torch.zeros((), dtype=torch.float32))
        states = [self.state[p] for p in params]
        for state in states:  # a checkpoint brings it to the CPU, and the fused kernel counts on the GPU
            state["step"] = state["step"].to(params[0].device if fused else "cpu")
        adamw(
            params, [p.grad for p in params], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], foreach=not fused, fused=fused, amsgrad=False, beta1=group["betas"][0],
            beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip


def _takes_fused(param: Tensor) -> bool:
    """Whether AdamW runs in one kernel; a CPU's foreach is as fast, and torch's own choice there."""
    return param.is_cuda


def _batches(shapes: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Indexes of matrices of one shape, no more of them than CHUNK numbers, or one."""
    for shape in dict.fromkeys(shapes):
        indexes = [i for i, other in enumerate(shapes) if other == shape]
        size = max(1, CHUNK // math.prod(shape))
        yield from (indexes[i : i + size] for i in range(0, len(indexes), size))


def _move(params: list[Tensor], steps: list[Tensor], group: dict[str, Any]) -> None:
    """Weight decay, then the steps."""
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, steps, alpha=-group["lr"])


def _gather(flat: Tensor) -> Tensor:
    """Every process's flat slice, laid end to end."""
    joined = flat.new_empty(torch.distributed.get_world_size() * flat.numel())
    torch.distributed.all_gather(list(joined.split(flat.numel())), flat)
    return joined


def _views(joined: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """The matrices that ZeRO-1/2 laid end to end and padded with zeros."""
    matrices, start = [], 0
    for rows, columns in shapes:
        matrices.append(joined[start : start + rows * columns].view(rows, columns))
        start += rows * columns
    return matrices


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
