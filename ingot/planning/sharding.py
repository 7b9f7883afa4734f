"""What a strategy keeps on each GPU: weights, gradients, optimizer states and buffers for communication.

DeepSpeed's figures are those of version 0.19.8 with the files of ds_configs/, held against real runs of two processes;
FSDP2's are read from Accelerate 1.15 and torch 2.13.
"""

from dataclasses import dataclass

from ingot.planning.activations import takes_adapter, trained_parameters
from ingot.planning.architecture import Architecture
from ingot.planning.optimizers import (
    find_optimizer,
    largest_parameter,
    matrix_parameters,
    state_bytes,
    step_bytes,
)
from ingot.planning.setups import Formats, TrainingSetup

REDUCE_BUCKET = 500_000_000  # values; DeepSpeed's reduce_bucket_size
REUSE_DISTANCE = 1_000_000_000  # values; what ZeRO-3 needs again within so many it does not let go
PREFETCH = 50_000_000  # values that ZeRO-3 gathers ahead
SUB_GROUP = 1_000_000_000  # values that ZeRO-3 steps over at a time
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)  # a 4-bit value, its block's 8-bit scale, the scale of 256 scales


@dataclass(frozen=True)
class Kept:
    """Bytes on each GPU."""

    weights: int
    reference: int  # a second model that is not trained
    master: int  # DeepSpeed's float32 weights
    states: int
    gradients: int  # of all weights, when backward is done
    held_gradients: float  # the share of a finished layer's gradients that stays on the GPU
    gradients_between: int  # held through forward and backward of every micro-batch
    gathered: int  # weights put together for use
    buckets: int  # of communication, always there
    forward_buckets: int  # the same, from the second micro-batch's forward on
    backward_buckets: int  # the same, during backward
    reduction: int  # the same, at the end of backward
    step: int  # beside all these in the optimizer's step
    offloaded: int  # in the CPU's memory


def trained_total(architecture: Architecture, setup: TrainingSetup) -> int:
    """Parameters that get a gradient."""
    if setup.adapter == "none":
        return architecture.total
    return sum(trained_parameters(layer, setup) for layer in architecture.layers)


def kept_bytes(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> Kept:
    """Counts what a strategy keeps on each GPU."""
    if setup.strategy in ("zero1", "zero2"):
        return _zero12(architecture, setup, formats)
    if setup.strategy in ("zero3", "zero3_offload"):
        return _zero3(architecture, setup, formats)
    if setup.strategy == "fsdp2":
        return _fsdp2(architecture, setup, formats)
    return _whole(architecture, setup, formats)


def model_bytes(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> int:
    """A whole model's weights; of a 4-bit one the linear layers are packed. An adapter is float32."""
    total = architecture.total * formats.weight
    if setup.adapter == "qlora":
        packed = sum(m.parameters for layer in architecture.layers for m in layer.matrices if takes_adapter(m))
        total += round(packed * (FOUR_BIT - formats.weight))
    return total + (0 if setup.adapter == "none" else 4 * trained_total(architecture, setup))


def _states(architecture: Architecture, setup: TrainingSetup, share: float) -> tuple[int, int]:
    """Optimizer states on the GPU, and those that a paged optimizer keeps outside its allocator."""
    optimizer = find_optimizer(setup.optimizer)
    size = round(state_bytes(optimizer, architecture, trained_total(architecture, setup)) * share)
    return (0, size) if optimizer.paged else (size, 0)


def _step(architecture: Architecture, setup: TrainingSetup, share: float) -> int:
    """What the optimizer's step needs beside its states; Muon gathers whole matrices."""
    optimizer = find_optimizer(setup.optimizer)
    trained, full = trained_total(architecture, setup), setup.adapter == "none"
    size = step_bytes(optimizer, architecture, trained, full)
    if optimizer.temporary != "muon":
        return round(size * share)
    return size + (round(4 * matrix_parameters(architecture) * (1 + share)) if share < 1 else 0)


def _whole(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> Kept:
    """One GPU, or DDP: its buckets are a second copy of all gradients (gradient_as_bucket_view is off)."""
    gradients = formats.gradient * trained_total(architecture, setup)
    states, paged = _states(architecture, setup, 1)
    accumulates = setup.accumulation > 1
    return Kept(
        weights=model_bytes(architecture, setup, formats),
        reference=architecture.total * formats.weight if setup.reference_model else 0,
        master=0,
        states=states,
        gradients=gradients,
        held_gradients=0 if accumulates else 1,
        gradients_between=gradients if accumulates else 0,
        gathered=0,
        buckets=gradients if setup.strategy == "ddp" else 0,
        forward_buckets=0,
        backward_buckets=0,
        reduction=0,
        step=_step(architecture, setup, 1),
        offloaded=paged,
    )


def _zero12(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> Kept:
    """ZeRO-1 and 2: whole weights, a share of the rest. Backward moves gradients through two buckets of fixed size."""
    trained, share = trained_total(architecture, setup), 1 / setup.num_gpus
    gradients = round(formats.gradient * trained * share)
    states, paged = _states(architecture, setup, share)
    accumulates = setup.accumulation > 1
    whole = setup.strategy == "zero1"  # gradients stay whole until the last micro-batch
    between = formats.gradient * trained if whole else gradients
    buckets, flat = 2 * formats.gradient * REDUCE_BUCKET, formats.gradient * min(REDUCE_BUCKET, trained)
    return Kept(
        weights=model_bytes(architecture, setup, formats),
        reference=architecture.total * formats.weight if setup.reference_model else 0,
        master=round(formats.master * trained * share),
        states=states,
        gradients=gradients,
        held_gradients=share,
        gradients_between=between if accumulates else 0,
        gathered=0,
        buckets=0,
        forward_buckets=buckets if whole and accumulates else 0,  # they stay between the micro-batches
        backward_buckets=buckets + (flat if trained > REDUCE_BUCKET else 0),
        reduction=0 if trained > REDUCE_BUCKET else flat,
        step=gradients + round(formats.master * trained * share) + _step(architecture, setup, share),
        offloaded=paged,
    )


def _zero3(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> Kept:
    """ZeRO-3: a share of everything, and the weights near the place where the model is; the offloaded rest waits."""
    trained, share = trained_total(architecture, setup), 1 / setup.num_gpus
    offload = setup.strategy == "zero3_offload"
    gradients = round(formats.gradient * trained * share)
    master = round(formats.master * trained * share)
    states, paged = _states(architecture, setup, share)
    live = min(architecture.total, REUSE_DISTANCE // 2 + largest_parameter(architecture) + PREFETCH)
    flat = formats.gradient * min(REDUCE_BUCKET, trained)
    stepped = min(round(trained * share), SUB_GROUP)
    step = stepped * (formats.gradient + formats.master) + _step(architecture, setup, share)
    return Kept(
        weights=round(model_bytes(architecture, setup, formats) * share),
        reference=round(architecture.total * formats.weight * share) if setup.reference_model else 0,
        master=0 if offload else master,
        states=0 if offload else states,
        gradients=0 if offload else gradients,
        held_gradients=0,
        gradients_between=0 if offload else gradients,
        gathered=formats.weight * live,
        buckets=formats.gradient * REDUCE_BUCKET,
        forward_buckets=0,
        backward_buckets=flat if trained > REDUCE_BUCKET else 0,
        reduction=0 if trained > REDUCE_BUCKET else flat,
        step=0 if offload else step,
        offloaded=paged + (2 * master + states + gradients if offload else 0),
    )


def _fsdp2(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> Kept:
    """FSDP2: a share of everything in float32; gathered in the products' format: two layers, and the head's table."""
    trained, share = trained_total(architecture, setup), 1 / setup.num_gpus
    gradients = round(formats.gradient * trained * share)
    states, paged = _states(architecture, setup, share)
    accumulates = setup.accumulation > 1
    layer = max(sum(m.parameters for m in layer.matrices) for layer in architecture.layers)
    return Kept(
        weights=round(model_bytes(architecture, setup, formats) * share),
        reference=round(architecture.total * formats.weight * share) if setup.reference_model else 0,
        master=0,
        states=states,
        gradients=gradients,
        held_gradients=0 if accumulates else share,
        gradients_between=formats.compute * trained if accumulates else 0,
        gathered=formats.compute * (architecture.input_embedding + 2 * layer),
        buckets=formats.compute * layer,
        forward_buckets=0,
        reduction=0,
        backward_buckets=2 * formats.compute * max(layer, architecture.input_embedding),
        step=_step(architecture, setup, share),
        offloaded=paged,
    )
