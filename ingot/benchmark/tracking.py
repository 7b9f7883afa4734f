"""Counts the bytes of live tensors while code runs on fake ones, as CUDA's allocator would."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK = 512  # CUDA's caching allocator rounds every request up to this many bytes
# What autograd's engine does in place (adding up gradients, filling the gradient of an indexing) it does out of place
# for subclasses of Tensor, such as fake ones.
IN_PLACE = {torch.ops.aten.add.Tensor, torch.ops.aten.index_put.default}


class LiveBytes(TorchDispatchMode):
    """Follows every storage from the operator that made it to its end; `peak` is what max_memory_allocated reports.

    Tensors that an operator's kernel makes and drops by itself are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.bytes = 0
        self.peak = 0
        self.at_peak = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # a fake tensor has no number to read
        if func in IN_PLACE and _in_engine() and 0 not in args[0].stride():  # an expanded one cannot be added to
            return args[0]
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.add(tensor)
        if self.bytes > self.peak:
            self.peak, self.at_peak = self.bytes, str(func)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage, once, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        if id(storage) in self.live or storage.nbytes() == 0:
            return
        key, size = id(storage), -(-storage.nbytes() // BLOCK) * BLOCK
        self.live[key] = (weakref.ref(storage, lambda _: self._remove(key)), size)
        self.bytes += size

    def _remove(self, key: int) -> None:
        self.bytes -= self.live.pop(key)[1]


def _in_engine() -> bool:
    """Whether autograd's engine is running backward, and not a forward that checkpointing repeats."""
    return torch._C._current_graph_task_id() >= 0 and not torch.is_grad_enabled()


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))
