"""Peak memory of a training step on each GPU, in closed form: what `torch.cuda.max_memory_allocated` would say.

The estimate goes through the moments of a step at which memory can be at its highest (the loss, the backward of each
layer and of the token table, the optimizer's step, an evaluation) and adds up what is held at each. CUDA's own context
(about half a GB, which nvidia-smi shows) is not part of it, and neither is what the allocator holds back: see `fits`.
"""

from collections import Counter
from dataclasses import dataclass, field

from ingot.planning.activations import LayerBytes, layer_bytes, takes_adapter, takes_mask
from ingot.planning.architecture import Architecture
from ingot.planning.head_memory import evaluation_bytes, loss_backward, loss_forward
from ingot.planning.setups import Formats, TrainingSetup, formats_of
from ingot.planning.sharding import Kept, kept_bytes

DEFAULT_TOTAL_MEMORY = 80 * 2**30  # of a GPU that is not named: how large the loss makes its chunks depends on it
WORKSPACES = 2 * 32 * 2**20  # cuBLAS's on Hopper, for the forward and the backward thread; 8 MiB each elsewhere
FRAGMENTATION = 1.04  # what the allocator reserves over what is allocated, when the sizes of a step repeat

Parts = Counter[str]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one GPU.

    by_part: what is held at the peak, which is at `moment`; totals: weights, gradients, optimizer states, activations
    and logits on their own, whenever each is largest; moments: the peak of each moment; offloaded_bytes: what waits in
    the CPU's memory for this GPU.
    """

    by_part: dict[str, int]
    moment: str
    totals: dict[str, int]
    moments: dict[str, int] = field(default_factory=dict)
    offloaded_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """What max_memory_allocated would report after two steps or more."""
        return sum(self.by_part.values())

    def fits(self, memory_bytes: int, moment: str | None = None) -> bool:
        """Whether a process that can fill so many bytes of its GPU can run it, or this one moment of it."""
        peak = self.peak_bytes if moment is None else self.moments[moment]
        return peak * FRAGMENTATION <= memory_bytes


def estimate_memory(
    architecture: Architecture, setup: TrainingSetup, total_memory: int | None = None
) -> MemoryEstimate:
    """Estimates the peak of a training step on each GPU of a setup.

    total_memory: bytes of the GPU; 80 GiB when not given.
    """
    total_memory = total_memory or DEFAULT_TOTAL_MEMORY
    formats = formats_of(setup, architecture.model_type == "ingot")
    layers = [layer_bytes(architecture, layer, setup, formats) for layer in architecture.layers]
    kept = kept_bytes(architecture, setup, formats)
    moments = {
        **_loss_moments(architecture, setup, formats, layers, total_memory),
        **_backward_moments(architecture, setup, formats, layers, kept.held_gradients),
    }
    for name, parts in moments.items():
        parts.update(_while_running(architecture, setup, kept))
        parts["communication"] += kept.forward_buckets if name.startswith("loss") else kept.backward_buckets
    moments["backward of the token table"]["communication"] += kept.reduction
    moments["optimizer step"] = Counter(gradients=kept.gradients, temporary=kept.step)
    if setup.eval_micro_batch:
        inside = evaluation_bytes(architecture, setup, formats, total_memory)
        own = max(layer.copies - layer.cached_copies for layer in layers)  # of one layer at a time
        copies = own + sum(layer.cached_copies for layer in layers) if setup.adapter == "none" else 0
        moments["evaluation"] = Counter(weight_copies=copies, activations=inside, gathered_weights=kept.gathered)
    for parts in moments.values():
        parts.update(_always(kept))
    worst = max(moments, key=lambda name: moments[name].total())
    return MemoryEstimate(
        by_part={part: size for part, size in moments[worst].items() if size},
        moment=worst,
        totals=_totals(kept, moments),
        moments={name: parts.total() for name, parts in moments.items()},
        offloaded_bytes=kept.offloaded,
    )


def _always(kept: Kept) -> Parts:
    """What never leaves the GPU."""
    return Counter(
        weights=kept.weights,
        master_weights=kept.master,
        reference_model=kept.reference,
        optimizer_states=kept.states,
        communication=kept.buckets,
        workspaces=WORKSPACES,
    )


def _while_running(architecture: Architecture, setup: TrainingSetup, kept: Kept) -> Parts:
    """What is held from the loss to the end of backward.

    The batches of the step, the mask of one and the angles of the positions are counted with the activations.
    """
    ids = 8 * setup.tokens * (3 * setup.accumulation + 1)
    masked = any(takes_mask(architecture, layer, setup) for layer in architecture.layers)
    mask = setup.rows * setup.seq_length**2 if setup.packed and masked else 0
    angles = 2 * formats_of(setup).compute * setup.tokens * architecture.layers[0].qk_head_dim
    return Counter(
        activations=ids + mask + angles,
        gradients=kept.gradients_between,
        gathered_weights=kept.gathered,
    )


def _totals(kept: Kept, moments: dict[str, Parts]) -> dict[str, int]:
    """The classic parts, each at its largest."""
    return {
        "weights": kept.weights,
        "master_weights": kept.master,
        "gradients": kept.gradients,
        "optimizer_states": kept.states,
        "activations": max(moments[name]["activations"] for name in ("loss", "loss backward")),
        "logits": max(moments[name]["logits"] for name in ("loss", "loss backward")),
    }


def _saved(architecture: Architecture, setup: TrainingSetup, formats: Formats, layers: list[LayerBytes]) -> int:
    """Activations of these layers from the first on: all that backward needs, or their inputs alone."""
    if setup.gradient_checkpointing:
        return setup.tokens * formats.residual * architecture.hidden_size * len(layers)
    return sum(layer.saved for layer in layers)


def _loss_moments(
    architecture: Architecture, setup: TrainingSetup, formats: Formats, layers: list[LayerBytes], total_memory: int
) -> dict[str, Parts]:
    """The loss: all layers have run forward, and none backward."""
    last_norm = setup.tokens * (formats.norm * architecture.hidden_size + 4)
    saved = Counter(activations=_saved(architecture, setup, formats, layers) + last_norm)
    copies = sum(layer.copies for layer in layers)
    # with checkpointing backward needs none, but autocast keeps those of trained weights to the end of forward
    in_backward = 0 if setup.gradient_checkpointing else copies
    cached = sum(layer.cached_copies for layer in layers) if setup.adapter == "none" else 0
    in_forward = cached if setup.gradient_checkpointing else copies
    forward = Counter(loss_forward(architecture, setup, formats, total_memory))
    backward = Counter(loss_backward(architecture, setup, formats))
    return {
        "loss": saved + forward + Counter(weight_copies=in_forward),
        "loss backward": saved + backward + Counter(weight_copies=in_backward),
    }


def _backward_moments(
    architecture: Architecture,
    setup: TrainingSetup,
    formats: Formats,
    layers: list[LayerBytes],
    held: float,
) -> dict[str, Parts]:
    """The worst moment of each layer's backward, when the layers above it are done, and the token table's at the end.

    held: the share of finished gradients that stays on the GPU.
    """
    trains_table = setup.adapter == "none"
    table = formats.gradient * architecture.input_embedding * trains_table
    unpacked = 2 * _largest_packed(architecture) if setup.adapter == "qlora" else 0
    moments, done = {}, table  # the head's, which is the table's own when tied
    for index in reversed(range(len(layers))):
        layer, below = layers[index], layers[:index]
        copies = 0 if setup.gradient_checkpointing else sum(other.copies for other in below)
        moments[f"backward of layer {index}"] = Counter(
            activations=layer.saved + _saved(architecture, setup, formats, below),
            weight_copies=layer.copies + copies,
            gradients=round(held * done),
            temporary=layer.backward + unpacked,
        )
        done += layer.gradients
    # the table's gradient is made whole, and added to the head's when the two are tied
    stream = setup.tokens * formats.residual * architecture.hidden_size
    moments["backward of the token table"] = Counter(
        gradients=round(held * done), temporary=2 * stream * trains_table + table
    )
    return moments


def _largest_packed(architecture: Architecture) -> int:
    return max(m.inputs * m.outputs for layer in architecture.layers for m in layer.matrices if takes_adapter(m))


def inference_memory(
    architecture: Architecture, batch: int, length: int, weight_bytes: float = 2, cache_bytes: float = 2
) -> dict[str, int]:
    """Bytes of weights and of the KV cache for `batch` sequences of `length` tokens; a sliding layer keeps its window.

    weight_bytes and cache_bytes: bytes of one value, 2 for bfloat16.
    """
    cache = 0
    for layer in architecture.layers:
        kept = length if layer.window is None else min(length, layer.window)
        cache += kept * layer.num_key_value_heads * (layer.qk_head_dim + layer.v_head_dim)
    return {
        "weights": round(architecture.total * weight_bytes),
        "kv_cache": round(batch * cache * cache_bytes),
        "kv_cache_per_token": round(cache * cache_bytes / length),
    }
