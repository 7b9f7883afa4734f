"""Pretrains with FSDP2 on CPUs: as scripts/pretrain.py, but Accelerate is told that its processes have GPUs.

Accelerate enters FSDP only where the processes are of type MULTI_GPU; what follows runs on CPUs as well.
"""

from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from ingot.recipe import main
from ingot.training import launch
from ingot.training.pretrain import PretrainRecipe, run

make = PartialState.__init__


def make_as_on_gpus(self: PartialState, cpu: bool = False, **options: Any) -> None:
    """A state of CPU processes that says MULTI_GPU."""
    make(self, cpu=True, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def prepare_launch(training: dict[str, Any]) -> dict[str, Any]:
    """In place of the one that refuses."""
    PartialState()
    return {**training, "use_cpu": True}


def enter() -> None:
    """Lets what follows enter FSDP2."""
    PartialState.__init__ = make_as_on_gpus  # type: ignore[method-assign]
    launch.prepare_launch = prepare_launch


if __name__ == "__main__":
    enter()
    main(PretrainRecipe, run)
