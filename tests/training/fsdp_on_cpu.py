"""Pretrains with FSDP2 on CPUs: as scripts/pretrain.py, but Accelerate is told that its processes have GPUs.

Accelerate enters FSDP only where the processes are of type MULTI_GPU; what follows runs on CPUs as well. The chunks of
the loss are those of small_chunks.py.
"""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter

from ingot.recipe import main
from ingot.training import launch
from ingot.training.pretrain import PretrainRecipe, run

from .small_chunks import make_small

make = PartialState.__init__
add_up = DefaultReduceScatter.__call__
formats: set[torch.dtype] = set()


def make_as_on_gpus(self: PartialState, cpu: bool = False, **options: Any) -> None:
    """A state of CPU processes that says MULTI_GPU."""
    make(self, cpu=True, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def prepare_launch(training: dict[str, Any]) -> dict[str, Any]:
    """In place of the one that refuses."""
    PartialState()
    return {**training, "use_cpu": True}


def add_up_and_tell(self: DefaultReduceScatter, *, input_tensor: torch.Tensor, **options: Any) -> Any:
    """Adds gradients up over the processes; prints each format once."""
    if input_tensor.dtype not in formats:
        formats.add(input_tensor.dtype)
        print(f"gradients are added up in {input_tensor.dtype}", flush=True)
    return add_up(self, input_tensor=input_tensor, **options)


def enter() -> None:
    """Lets what follows enter FSDP2."""
    PartialState.__init__ = make_as_on_gpus  # type: ignore[method-assign]
    launch.prepare_launch = prepare_launch
    setattr(DefaultReduceScatter, "__call__", add_up_and_tell)  # noqa: B010 - mypy takes none in its place


if __name__ == "__main__":
    enter()
    make_small()
    main(PretrainRecipe, run)
