"""Bytes that each optimizer keeps for a parameter, and the most that one of its steps needs beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ingot.planning.architecture import Architecture
from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError

# What a step needs beside the states: nothing (one fused kernel, or parameter by parameter), float32 copies of all
# parameters (foreach), of the largest one, or Muon's.
Temporary = Literal["none", "copy", "largest", "muon"]


@dataclass(frozen=True)
class Optimizer:
    """Moments kept for every parameter, bytes of each value, and what a step needs beside them."""

    moments: int
    bytes_per_value: float = 4
    temporary: Temporary = "none"
    wide_embedding: bool = False  # bitsandbytes' 8-bit ones keep those of the token table in float32
    paged: bool = False  # in memory that the GPU fetches from the CPU's when there is room


MUON_CHUNK = 1 << 26  # numbers that MuonWithAdamW takes at a time
EIGHT_BIT = 1 + 4 / 256  # a byte, and a float32 scale for every block of 256
# by the name in training.optim, and `muon` and `lion` for run.optimizer
OPTIMIZERS = {
    "adamw_torch_fused": Optimizer(2),
    "adamw_torch": Optimizer(2, temporary="copy"),
    "adamw_torch_8bit": Optimizer(2, EIGHT_BIT, "largest"),
    "adamw_torch_4bit": Optimizer(2, 0.5 + 4 / 128, "largest"),
    "adamw_bnb_8bit": Optimizer(2, EIGHT_BIT, wide_embedding=True),
    "adamw_8bit": Optimizer(2, EIGHT_BIT, wide_embedding=True),
    "paged_adamw": Optimizer(2, paged=True),
    "paged_adamw_32bit": Optimizer(2, paged=True),
    "paged_adamw_8bit": Optimizer(2, EIGHT_BIT, wide_embedding=True, paged=True),
    "lion": Optimizer(1),
    "lion_32bit": Optimizer(1),
    "lion_8bit": Optimizer(1, EIGHT_BIT, wide_embedding=True),
    "paged_lion": Optimizer(1, paged=True),
    "paged_lion_32bit": Optimizer(1, paged=True),
    "paged_lion_8bit": Optimizer(1, EIGHT_BIT, wide_embedding=True, paged=True),
    "adafactor": Optimizer(0, temporary="largest"),  # a row and a column of second moments: next to nothing
    "sgd": Optimizer(0, temporary="copy"),  # weight decay is added to a copy of the gradients
    "muon": Optimizer(1, temporary="muon"),
}
SHORT_NAMES = {"adamw": "adamw_torch_fused"}


def find_optimizer(name: str) -> Optimizer:
    """The optimizer of this name. Raises: InputError with a suggestion for an unknown one."""
    name = SHORT_NAMES.get(name, name)
    if name not in OPTIMIZERS:
        near = nearest(name, set(OPTIMIZERS))
        raise InputError(
            f"training.optim: the memory of '{name}' is not known" + (f"; did you mean '{near}'?" if near else "")
            + f" There are {', '.join(OPTIMIZERS)}"
        )  # fmt: skip
    return OPTIMIZERS[name]


def state_bytes(optimizer: Optimizer, architecture: Architecture, trained: int) -> int:
    """Bytes of the states of `trained` parameters, the token table among them when all are trained."""
    moments = optimizer.moments * trained
    if optimizer.temporary == "muon":  # AdamW's second moment for what is no matrix of a layer
        moments += trained - matrix_parameters(architecture)
    values = moments * optimizer.bytes_per_value
    if optimizer.wide_embedding and trained == architecture.total:
        values += optimizer.moments * architecture.input_embedding * (4 - optimizer.bytes_per_value)
    return round(values)


def matrix_parameters(architecture: Architecture) -> int:
    """Parameters that Muon takes: 2-D weights of the layers. Stacked experts are 3-D and go to AdamW."""
    return sum(rows * columns for rows, columns in muon_matrices(architecture))


def muon_matrices(architecture: Architecture) -> Iterator[tuple[int, int]]:
    """(rows, columns) of every matrix that Muon takes, in the order of the parameters."""
    for layer in architecture.layers:
        for matrix in layer.matrices:
            if matrix.part != "experts":
                yield matrix.outputs, matrix.inputs


def muon_temporary(shapes: Sequence[tuple[int, int]]) -> int:
    """Bytes that Muon's step needs beside its states, for the batch of matrices of one shape that needs most.

    A batch is stacked in bfloat16; iterating takes two more copies and two Gram matrices of each, and the result is
    turned into float32.
    """
    most = 0
    for rows, columns in dict.fromkeys(shapes):
        count = sum(1 for shape in shapes if shape == (rows, columns))
        batch = min(count, max(1, MUON_CHUNK // (rows * columns)))
        size, gram = rows * columns, min(rows, columns) ** 2
        most = max(most, batch * max(8 * size, 6 * size + 4 * gram))
    return most


def step_bytes(optimizer: Optimizer, architecture: Architecture, trained: int, full: bool) -> int:
    """Bytes that a step over `trained` parameters needs beside states and gradients.

    full: whether every weight is trained, rather than an adapter's.
    """
    if optimizer.temporary == "copy":
        return 4 * trained
    if optimizer.temporary == "largest":
        return 8 * (largest_parameter(architecture) if full else 0)
    if optimizer.temporary == "muon":
        return muon_temporary(list(muon_matrices(architecture)))
    return 0


def largest_parameter(architecture: Architecture) -> int:
    """Values of the largest weight."""
    layer_weights = (
        (m.copies if m.part == "experts" else 1) * m.inputs * m.outputs
        for layer in architecture.layers
        for m in layer.matrices
    )
    return max(architecture.input_embedding, *layer_weights)
