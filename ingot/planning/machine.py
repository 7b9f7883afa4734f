"""What a run is to be trained on: the GPU, how many, and how the training state is shared among them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ingot.planning.hardware import Gpu, find_gpu
from ingot.planning.setups import STRATEGIES, Strategy
from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError

OVERHEAD_BYTES = 600 * 2**20  # of a GPU's memory, outside torch's allocator: CUDA context, cuBLAS, NCCL


@dataclass(frozen=True)
class Machine:
    """What a run is to be trained on; `gpu` is None when the user did not say."""

    gpu: Gpu | None
    num_gpus: int = 1
    strategy: Strategy = "single"
    usd_per_gpu_hour: float | None = None

    @property
    def peak(self) -> float | None:
        """Dense bf16 FLOP/s of one GPU."""
        return None if self.gpu is None else self.gpu.bf16_flops

    @property
    def memory(self) -> int | None:
        """Bytes of one GPU that a training process can fill."""
        known = None if self.gpu is None else self.gpu.memory_bytes
        return None if known is None else max(0, known - OVERHEAD_BYTES)


def machine_of(words: Any) -> Machine:
    """The machine that the options describe.

    Raises: InputError for an unknown GPU, or a strategy that does not go with the number of GPUs.
    """
    gpu = find_gpu(words.gpu) if words.gpu else None
    if gpu is not None and (words.peak_tflops or words.memory_gb):
        raise InputError(
            "--gpu: also --peak-tflops or --memory-gb is given; they are for a GPU that is not in the table"
        )
    if words.peak_tflops or words.memory_gb:
        base = gpu or Gpu("GPU", None, None, None, None)
        flops = words.peak_tflops * 1e12 if words.peak_tflops else base.bf16_flops
        memory = int(words.memory_gb * 2**30) if words.memory_gb else base.memory_bytes
        gpu = replace(base, bf16_flops=flops, memory_bytes=memory)
    return Machine(gpu, words.gpus, _strategy(words), words.usd_per_gpu_hour)


def _strategy(words: Any) -> Strategy:
    strategy = words.strategy or ("single" if words.gpus == 1 else "ddp")
    if Path(strategy).suffix in (".yaml", ".yml"):
        from ingot.planning.memory import strategy_of

        strategy = strategy_of(Path(strategy))
    if strategy not in STRATEGIES:
        near = nearest(strategy, set(STRATEGIES))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(f"--strategy: '{strategy}' is not known; {hint}there are {', '.join(STRATEGIES)}")
    if strategy == "single" and words.gpus > 1:
        raise InputError(f"--strategy: single is for one GPU, and --gpus is {words.gpus}; choose ddp, zero1 or fsdp2")
    return cast(Strategy, strategy)
