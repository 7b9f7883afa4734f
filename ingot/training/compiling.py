"""`training.torch_compile`: the layers are compiled one by one, which starts faster and runs faster than the whole.

Upstream compiles the whole model: on one H200 a bare step of the flagship then made 47,012 tokens a second, and 55,299
with its layers compiled one by one. The names of the weights stay as they are.
"""

from types import MethodType
from typing import Any, NamedTuple

import torch
import torch._inductor

from ingot.recipe import InputError
from modeling import IngotForCausalLM
from modeling.modeling_ingot import IngotDecoderLayer, makes_kernels

KEYS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
WORTH = 1e17  # FLOPs of a run on one GPU for which half a minute of compiling pays: about five minutes of an H100


class Compiling(NamedTuple):
    """What is compiled, how, and why."""

    wanted: bool
    backend: str | None = None
    mode: str | None = None
    reason: str = ""


def take_keys(values: dict[str, Any]) -> tuple[Compiling | None, dict[str, Any]]:
    """The compile keys, None where none is given, and the rest, so that upstream does not compile the whole.

    As upstream takes it, a backend or a mode alone is a yes. Raises: InputError for one that torch does not know.
    """
    wanted, backend, mode = (values.get(key) for key in KEYS)
    if backend is not None and backend not in torch._dynamo.list_backends(None):
        usual = ", ".join(torch._dynamo.list_backends())
        raise InputError(f"training.torch_compile_backend: torch knows no '{backend}'; there are {usual} and others")
    if mode is not None and mode not in (modes := list(torch._inductor.list_mode_options())):
        raise InputError(f"training.torch_compile_mode: torch knows no '{mode}'; there are {', '.join(modes)}")
    rest = {key: value for key, value in values.items() if key not in KEYS}
    if not any(key in values for key in KEYS):
        return None, rest
    return Compiling(bool(wanted or backend or mode), backend, mode, "training.torch_compile says so"), rest


def decide(asked: Compiling | None, device: torch.device, flops: float) -> Compiling:
    """What the recipe asks for, or what suits the machine and the length of the run.

    flops: of the whole run, on each GPU.
    """
    if asked is not None:
        return asked
    if device.type != "cuda":
        return Compiling(False, reason="a CPU gains nothing by it")
    if not makes_kernels(device):
        return Compiling(False, reason="there is no triton, or no C compiler for it")
    if flops < WORTH:
        return Compiling(False, reason="the run is too short for it to pay")
    return Compiling(True, reason="the run is long enough for it to pay")


def compile_layers(model: IngotForCausalLM, decided: Compiling) -> None:
    """Has every layer compiled when it first runs; layers of one shape share what was compiled."""
    if not decided.wanted:
        return
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)  # lengths, modes
    how: dict[str, Any] = {"backend": decided.backend or "inductor", "mode": decided.mode, "dynamic": False}
    forward = torch.compile(IngotDecoderLayer.forward, **how)
    for layer in model.model.layers:
        # not `layer.compile()`, which would compile hooks too: FSDP2's, which gather the weights, among them
        layer.forward = MethodType(forward, layer)
