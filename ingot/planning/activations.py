"""Bytes that a layer keeps for backward, and the most that it needs while it runs backward.

Each figure is counted from what the operators of the model save on a GPU: fused norms, SDPA's fused kernels. N tokens,
D hidden width, H query heads, K key/value heads, W head width, F inner width.
"""

from dataclasses import dataclass

from ingot.planning.architecture import Architecture, Layer, Matrix
from ingot.planning.setups import Formats, TrainingSetup

CACHED_PARTS = ("attention", "feed_forward", "shared_experts", "router")  # autocast casts these itself


@dataclass(frozen=True)
class LayerBytes:
    """One layer's part in a training step, in bytes."""

    saved: int  # activations kept for backward, the layer's input among them
    copies: int  # autocast's copies of its weights, kept for backward
    cached_copies: int  # those that autocast keeps until forward ends even when backward does not need them; none of a
    # compiled layer, which casts inside its own graph
    gradients: int  # of its weights, whole
    backward: int  # needed at the worst moment of its backward, beside what is saved


def layer_bytes(architecture: Architecture, layer: Layer, setup: TrainingSetup, formats: Formats) -> LayerBytes:
    """Counts one layer of a model for the tokens of one forward pass."""
    tokens, width = setup.tokens, architecture.hidden_size
    streams = 2 * tokens * (formats.norm * width + 4)  # what the two norms keep: input, one float32 per row
    upstream = architecture.model_type != "ingot"
    if upstream:  # unfused norms keep their product too
        streams += 2 * tokens * 4 * width
    masked = takes_mask(architecture, layer, setup)
    saved = streams + _inputs(architecture, layer, setup, formats)
    saved += _attention(layer, setup, formats, upstream, masked)
    trained = trained_parameters(layer, setup)
    down = [m for m in layer.matrices if m.part in ("feed_forward", "experts")][-1]
    last_gradient = formats.gradient * trained_values(down, setup)
    return LayerBytes(
        saved=saved + _feed_forward(layer, setup, formats),
        copies=_copies(layer, setup, formats, (*CACHED_PARTS, "experts")),
        cached_copies=0 if setup.compiled else _copies(layer, setup, formats, CACHED_PARTS),
        gradients=formats.gradient * trained,
        backward=_feed_forward_backward(layer, setup, formats) + tokens * formats.residual * width + last_gradient,
    )


def takes_mask(architecture: Architecture, layer: Layer, setup: TrainingSetup) -> bool:
    """Whether attention needs a mask: for windows, and for packed documents where no kernel is told their begins."""
    own = architecture.model_type == "ingot" and setup.stage == "pretrain"  # TRL's batches do not tell
    told = own and setup.precision != "fp32" and layer.qk_head_dim % 8 == 0 and layer.qk_head_dim <= 256
    return not told if setup.packed else layer.window is not None


def trained_parameters(layer: Layer, setup: TrainingSetup) -> int:
    """Parameters of a layer that get a gradient: all, or an adapter's on its linear modules."""
    vectors = layer.vector_parameters if setup.adapter == "none" else 0
    return vectors + sum(trained_values(m, setup) for m in layer.matrices)


def trained_values(matrix: Matrix, setup: TrainingSetup) -> int:
    """Values with a gradient of one matrix; stacked experts and routers take no adapter."""
    if setup.adapter == "none":
        return matrix.parameters
    return setup.rank * (matrix.inputs + matrix.outputs) if takes_adapter(matrix) else 0


def takes_adapter(matrix: Matrix) -> bool:
    """Whether LoRA's `all-linear` finds it."""
    return matrix.part in ("attention", "feed_forward", "shared_experts")


def _inputs(architecture: Architecture, layer: Layer, setup: TrainingSetup, formats: Formats) -> int:
    """Inputs of the products, but for those that attention or the feed-forward keep anyway."""
    tokens, width = setup.tokens, architecture.hidden_size
    if setup.adapter != "none":
        # every adapter keeps a copy of its input, and the rank-wide product; that of the feed-forward's last matrix
        # stands for the product of gate and activation, which is counted there
        adapted = [m for m in layer.matrices if takes_adapter(m)]
        copied = sum(m.inputs for m in adapted if m.part == "attention" or m.inputs == width)
        return formats.compute * tokens * (copied + setup.rank * len(adapted))
    if architecture.model_type != "ingot" and formats.copies:  # autocast casts for each product anew
        return formats.compute * tokens * width * (5 if layer.gated else 4)
    attended = layer.num_heads * layer.v_head_dim
    normed = 0 if setup.compiled and setup.precision == "fp8" else 2 * width  # made again from the norms' inputs
    inner = {m.inputs for m in layer.matrices if m.part == "attention"} - {width, attended}
    return formats.compute * tokens * (normed + sum(inner))


def _attention(layer: Layer, setup: TrainingSetup, formats: Formats, upstream: bool, masked: bool) -> int:
    """Norms of queries and keys; queries, keys, values and result of the kernel; the mask as a bias on the scores."""
    tokens, heads, groups = setup.tokens, layer.num_heads, layer.num_key_value_heads
    key_heads = heads if masked or formats.compute == 4 else groups  # masked keys and values are repeated
    kernel = heads * (layer.qk_head_dim + layer.v_head_dim) + key_heads * (layer.qk_head_dim + layer.v_head_dim)
    total = tokens * (formats.compute * kernel + 4 * heads)
    if layer.qk_norm:
        total += tokens * (heads + groups) * (formats.norm * layer.qk_head_dim * (2 if upstream else 1) + 4)
    if masked:
        total += formats.compute * setup.rows * setup.seq_length**2
    return total


def _feed_forward(layer: Layer, setup: TrainingSetup, formats: Formats) -> int:
    """What activation, gate and product keep; of a mixture also the tokens as sorted by expert, in and out.

    A compiled layer makes the activation again, and for float8 its product with the gate.
    """
    tokens, total = setup.tokens, 0
    kept = 4 if layer.gated else 2
    if setup.compiled:
        kept -= layer.gated + (setup.precision == "fp8")
    for part in ("feed_forward", "shared_experts"):
        inner = [m for m in layer.matrices if m.part == part]
        if inner:
            total += formats.compute * tokens * kept * inner[-1].inputs
            total += formats.compute * tokens * inner[-1].outputs * (part == "shared_experts")  # behind its own gate
    if layer.kind == "moe":
        rows = tokens * layer.experts_per_token
        up, down = (m for m in layer.matrices if m.part == "experts")
        kept_inside = (1 if setup.compiled else 2) * down.inputs
        total += formats.compute * rows * (up.inputs + up.outputs + kept_inside + down.outputs)
        total += tokens * 8 * layer.num_experts + rows * 48  # router, and the indices of the sorting
    return total


def _feed_forward_backward(layer: Layer, setup: TrainingSetup, formats: Formats) -> int:
    """Gradients inside the feed-forward at their most, less what is free by then."""
    compute = formats.compute * setup.tokens
    if layer.kind == "moe":
        up, down = (m for m in layer.matrices if m.part == "experts")
        outside, inside = down.outputs, down.inputs
        return compute * layer.experts_per_token * max(3 * outside, 4 * inside - outside)
    inner = [m for m in layer.matrices if m.part == "feed_forward"][-1].inputs
    return compute * inner * (2 if layer.gated else 1)


def _copies(layer: Layer, setup: TrainingSetup, formats: Formats, parts: tuple[str, ...]) -> int:
    """Autocast's copies of a layer's matrices; a 4-bit weight is unpacked when it is used."""
    packed = setup.adapter == "qlora"
    found = [m for m in layer.matrices if m.part in parts and not (packed and takes_adapter(m))]
    # stacked experts stay in bfloat16 where the other products are in float8, and are copied as the head is
    return sum((formats.head_copy if m.part == "experts" else formats.copies) * m.parameters for m in found)
