"""Lion (Chen et al., 2023, "Symbolic discovery of optimization algorithms"): the sign of a momentum, one state."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ingot.training.optim import loss_again

# numbers updated at a time: bounds the memory of a step to 64 MB however large a table is
CHUNK = 1 << 24


class Lion(torch.optim.Optimizer):
    """Sign of a mix of momentum and gradient, with decoupled weight decay.

    Elementwise, so flat slices (ZeRO) and shards (FSDP2) give what whole tensors give. A step moves every weight by
    `lr`: take a third to a tenth of AdamW's, and as many times its weight decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """`betas`: the gradient's mix into the step, and into the momentum that is kept."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for every parameter that has a gradient."""
        loss = loss_again(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        mix, keep = group["betas"]
        for value, gradient, average in zip(
            _chunks(parameter), _chunks(parameter.grad), _chunks(state["exp_avg"]), strict=True
        ):
            value.mul_(1 - group["lr"] * group["weight_decay"])
            value.add_(average.lerp(gradient, 1 - mix).sign_(), alpha=-group["lr"])
            average.lerp_(gradient, 1 - keep)


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of what this process holds of a tensor, a bounded number of rows each."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    rows = max(1, CHUNK // max(1, own[:1].numel())) if own.dim() else 1
    return own.split(rows) if own.dim() else (own,)
