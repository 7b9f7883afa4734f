"""The pretrain script with a loss that runs off in some steps, until the run has gone back.

    accelerate launch ... -m tests.training.spiking --config ...

INGOT_TEST_FSDP=1 lets FSDP2 run on CPUs; in the steps of INGOT_TEST_BROKEN the loss is NaN.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingot.training.continuing import REWINDS
from ingot.training.pretrain_trainer import PretrainTrainer


def run_off(broken: tuple[int, ...] = (), since: int | None = None) -> Callable[..., Any]:
    """A `compute_loss` that is NaN in `broken` steps, and 20 too large since a step until the run has gone back."""
    upstream = PretrainTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss, step = upstream(self, *args, **kwargs), self.state.global_step + 1
        away = since is not None and step >= since and not (Path(self.args.output_dir) / REWINDS).exists()
        return loss * (math.nan if step in broken else 1) + 20 * away

    return compute_loss


if __name__ == "__main__":
    broken = tuple(int(step) for step in os.environ.get("INGOT_TEST_BROKEN", "").split())
    setattr(PretrainTrainer, "compute_loss", run_off(broken, 20))  # noqa: B010
    if os.environ.get("INGOT_TEST_FSDP"):
        from .fsdp_on_cpu import enter

        enter()
    from ingot.recipe import main
    from ingot.training.pretrain import PretrainRecipe, run

    main(PretrainRecipe, run, sys.argv[1:])
