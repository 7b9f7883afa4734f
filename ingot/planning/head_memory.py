"""Bytes of the head and its loss, and of an evaluation. N tokens, D hidden width, V vocabulary."""

import math

from ingot.planning.architecture import Architecture
from ingot.planning.setups import Formats, TrainingSetup

CHUNK_SHARE = 48  # the head's loss takes 1/48 of the GPU's memory for a chunk of logits of two bytes
MIN_CHUNK_ROWS = 128
DPO_LOGITS = 2**28  # the most logits that a DPO step holds; beyond, TRL's head makes them in tiles


def chunk_rows(architecture: Architecture, total_memory: int) -> int:
    """Tokens whose logits the head makes at a time on a GPU of so many bytes (IngotForCausalLM): a power of two."""
    rows = total_memory // CHUNK_SHARE // (2 * architecture.vocab_size)
    return 2 ** int(math.log2(max(MIN_CHUNK_ROWS, rows)))


def is_plain(setup: TrainingSetup) -> bool:
    """Whether all logits of a forward pass are held at once."""
    return setup.loss_implementation == "plain"


def loss_forward(
    architecture: Architecture, setup: TrainingSetup, formats: Formats, total_memory: int
) -> dict[str, int]:
    """Bytes by part at the worst moment of the head and its loss, going forward."""
    tokens, vocabulary = setup.tokens, architecture.vocab_size
    hidden = tokens * architecture.hidden_size
    table = architecture.input_embedding
    head_copy = formats.head_copy * table
    out = (formats.norm if formats.head_copy else formats.compute) * hidden
    if setup.stage == "dpo":
        logits = min(tokens * vocabulary, DPO_LOGITS)
        return {"logits": (formats.compute + 12) * logits, "weight_copies": head_copy, "temporary": out}
    if is_plain(setup):
        logits = (8 + formats.compute % 4) * tokens * vocabulary
        return {"logits": logits, "weight_copies": head_copy, "temporary": out}
    rows = min(tokens, chunk_rows(architecture, total_memory))
    cast = 2 if setup.precision == "fp8" else 0  # probabilities, across too
    return {
        "logits": (formats.compute + cast) * rows * vocabulary,
        "weight_copies": head_copy,
        "gradients": (4 * table) if setup.adapter == "none" else 0,
        "temporary": out + 2 * formats.compute * hidden,
    }


def loss_backward(architecture: Architecture, setup: TrainingSetup, formats: Formats) -> dict[str, int]:
    """Bytes by part when backward begins: log-softmax and two gradients of all logits; with chunks none are left."""
    logits = setup.tokens * architecture.vocab_size
    head_copy = formats.head_copy * architecture.input_embedding
    if setup.stage == "dpo":
        return {"logits": 12 * min(logits, DPO_LOGITS), "weight_copies": head_copy}
    if is_plain(setup):
        hidden = formats.compute * setup.tokens * architecture.hidden_size
        return {"logits": 12 * logits, "weight_copies": head_copy, "temporary": hidden}
    return {}


def evaluation_bytes(architecture: Architecture, setup: TrainingSetup, formats: Formats, total_memory: int) -> int:
    """Bytes that an evaluation batch needs beside weights, their copies and states: no layer keeps anything."""
    tokens = setup.eval_micro_batch * setup.seq_length
    width, widest = architecture.hidden_size, max(layer.ffn_width for layer in architecture.layers)
    inside = tokens * (2 * formats.residual * width + formats.norm * width + formats.compute * (width + 3 * widest))
    rows = min(tokens, chunk_rows(architecture, total_memory))
    logits = (8 + formats.compute % 4) * tokens if is_plain(setup) else formats.compute * rows
    head = tokens * formats.residual * width + logits * architecture.vocab_size
    return max(inside, head + formats.head_copy * architecture.input_embedding)
