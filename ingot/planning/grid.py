"""Architectures near the optimum of a budget: sizes that hardware likes, ranked by the loss that a law expects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ingot.planning.architecture import Architecture, Sizes
from ingot.planning.flops import training_flops_per_token
from ingot.planning.machine import Machine
from ingot.planning.scaling import Law, counted_parameters, find_law
from ingot.recipe_yaml import InputError

WIDTHS = (*range(256, 2048, 128), *range(2048, 4096, 256), *range(4096, 8192, 512), *range(8192, 16385, 1024))
ASPECT = (56, 128)  # width over depth; Qwen2.5-3B has 57, GPT-2 64, Llama-3-70B 102, Llama-3.2-1B 128
FEED_FORWARD = (8 / 3, 3.0, 3.5)  # of the width, with a gate: Llama-2 2.7, Qwen3-1.7B 3, Llama-3-8B 3.5
SPARSITY = ((8, 2), (16, 4), (64, 8))  # experts, and how many a token meets


@dataclass(frozen=True)
class Shape:
    """The numbers of a candidate, with IngotConfig's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0

    def architecture(self, vocab_size: int, tied: bool) -> Architecture:
        """The whole model with QK-norm."""
        return Sizes(vocab_size=vocab_size, tie_word_embeddings=tied, **vars(self)).architecture()


@dataclass(frozen=True)
class Candidate:
    """A shape with what it costs and what a law expects of it."""

    shape: Shape
    architecture: Architecture
    tokens: float
    loss: float


def shapes(moe: bool = False) -> Iterator[Shape]:
    """Every shape: widths in multiples of 128, heads 128 wide (64 in small models), grouped keys and values."""
    for width in WIDTHS:
        head_dim = 128 if width % 128 == 0 and width >= 1024 else 64
        heads = width // head_dim
        shared = {heads // n for n in (2, 3, 4, 8) if heads % n == 0 and heads // n * head_dim % 128 == 0}
        groups = sorted(shared or {heads})
        depths = range(max(4, -(-width // ASPECT[1])), max(4, width // ASPECT[0]) + 1)
        for depth in (d for d in depths if d % (1 if d < 16 else 2 if d < 48 else 4) == 0):
            for group in groups:
                for ratio in FEED_FORWARD:
                    inner = round(ratio * width / 128) * 128
                    base = Shape(width, depth, heads, group, head_dim, inner)
                    yield base
                    if moe and ratio == 3.0:
                        yield from _sparse(base)


def _sparse(base: Shape) -> Iterator[Shape]:
    """Mixtures whose token meets as much feed-forward as the dense model has."""
    for experts, active in SPARSITY:
        width = base.intermediate_size // active
        if width % 128 == 0:
            values = {"num_experts": experts, "num_experts_per_tok": active, "moe_intermediate_size": width}
            yield Shape(**{**vars(base), **values})


def search(
    flops: float,
    law: Law,
    vocab_size: int,
    seq_length: int,
    tied: bool = False,
    moe: bool = False,
    spread: float = 2.0,
) -> list[Candidate]:
    """Candidates within a factor `spread` of the law's best size: the best of each width and depth, lowest loss first.

    A candidate's tokens are what the budget buys at its own FLOPs per token, attention scores included. A mixture is
    judged by its active parameters, for which no law here was fitted: it is likely to do better.
    Raises: InputError for a law that predicts no loss, or a budget too small or too large for the grid.
    """
    best = law.optimum(flops).parameters
    found: dict[tuple[int, int, int], Candidate] = {}
    for shape in shapes(moe):
        if not best / spread / 2 <= _roughly(shape, vocab_size, tied) <= best * spread * 2:
            continue
        candidate = _judge(shape, shape.architecture(vocab_size, tied), flops, law, seq_length)
        key = (shape.hidden_size, shape.num_hidden_layers, shape.num_experts)
        within = best / spread <= counted_parameters(law, candidate.architecture) <= best * spread
        if within and (key not in found or candidate.loss < found[key].loss):
            found[key] = candidate
    if not found:
        raise InputError(
            f"--flops: no shape of the grid has about {best:,.0f} parameters, the best of {flops:.3g} FLOP with a "
            f"vocabulary of {vocab_size:,}; try --tied, a smaller --vocab-size or another budget"
        )
    return sorted(found.values(), key=lambda c: c.loss)


def _roughly(shape: Shape, vocab_size: int, tied: bool) -> int:
    """Active parameters to a few per cent, to leave the rest out quickly."""
    layer = shape.hidden_size * (4 * shape.hidden_size + 3 * shape.intermediate_size)
    return shape.num_hidden_layers * layer + (1 if tied else 2) * vocab_size * shape.hidden_size


def _judge(shape: Shape, architecture: Architecture, flops: float, law: Law, seq_length: int) -> Candidate:
    tokens = flops / training_flops_per_token(architecture, seq_length)
    loss = law.loss(counted_parameters(law, architecture), tokens)
    if loss is None:
        raise InputError(f"--law: {law.name} predicts no loss to rank by; choose besiroglu, or a law.json of your own")
    return Candidate(shape, architecture, tokens, loss)


def plan_grid(words: Any, machine: Machine) -> dict[str, Any]:
    """The ranked candidates of a budget with parameters, tokens, loss, time and memory, as plain values."""
    from ingot.planning.budget import budget_of

    law = find_law(words.law)
    budget = budget_of(words, machine)
    found = search(budget["flops"], law, words.vocab_size, words.seq_length, words.tied, words.moe)
    optimum = law.optimum(budget["flops"])
    return {
        "budget": budget,
        "law": law.name,
        "optimum": {"parameters": optimum.parameters, "tokens": optimum.tokens, "loss": optimum.loss},
        "extrapolates": law.extrapolates(budget["flops"]),
        "num_candidates": len(found),
        "candidates": [_describe(c, words, machine, budget["hours"]) for c in found[: words.top]],
    }


def _describe(candidate: Candidate, words: Any, machine: Machine, hours: float | None) -> dict[str, Any]:
    from ingot.planning.memory import TrainingSetup, estimate_memory

    setup = TrainingSetup(
        micro_batch=words.micro_batch, seq_length=words.seq_length, strategy=machine.strategy,
        num_gpus=machine.num_gpus, optimizer=words.optimizer, gradient_checkpointing=words.gradient_checkpointing,
        compiled=True,
    )  # fmt: skip
    total = machine.gpu.memory_bytes if machine.gpu else None
    estimate = estimate_memory(candidate.architecture, setup, total_memory=total)
    return {
        "shape": vars(candidate.shape),
        "parameters": candidate.architecture.total,
        "active": candidate.architecture.active,
        "tokens": candidate.tokens,
        "loss": candidate.loss,
        "hours": hours,
        "memory_bytes": estimate.peak_bytes,
        "fits": None if machine.memory is None else estimate.fits(machine.memory),
    }
