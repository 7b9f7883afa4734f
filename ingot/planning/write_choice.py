"""What a budget is best spent on: the model, its batch and learning rate, and settings with which it fits the card."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ingot.planning.architecture import Architecture
from ingot.planning.flops import training_flops_per_token
from ingot.planning.grid import Shape, shapes
from ingot.planning.machine import Machine
from ingot.planning.memory import TrainingSetup, estimate_memory
from ingot.planning.scaling import Law, counted_parameters
from ingot.recipe_yaml import InputError

MARGIN = 0.9  # of the memory that training can fill: the estimate may be a tenth off
ABOVE_OPTIMUM = 1.6  # times the law's best size: the largest shape that is looked at
SAME_LOSS = 0.005  # nats; nearer than this a law cannot tell two models apart
USUAL_ASPECT = 72  # width over depth: Qwen3-1.7B 73, GPT-2 64, Llama-3.2-1B 128
LEAST_TOKENS = 4  # for each parameter; the runs behind the laws had more, and fewer are learned by heart
UNTIED_FROM = 1.5e9  # parameters; below, a head of its own would be a large part of the model
EFFICIENT_TOKENS = 4096  # of a micro-batch: with fewer a GPU waits more than it computes
LARGEST_TOKENS = 65536  # of a micro-batch: with more nothing is gained
# from fast to small; torchao's 8-bit AdamW is not for DeepSpeed, which shares the states out anyway
SETTINGS = (("adamw_torch_fused", False), ("adamw_torch_fused", True), ("adamw_torch_8bit", True))


def best_parameters(law: Law, flops: float, max_tokens: float | None) -> float:
    """Parameters of the law's optimum, but no more than the text can teach."""
    return min(law.optimum(flops, max_tokens).parameters, (max_tokens or math.inf) / LEAST_TOKENS)


@dataclass(frozen=True)
class Wish:
    """What is asked for: compute in FLOP, the machine, the text, and what the tokenizer and the user have fixed."""

    flops: float
    machine: Machine
    strategies: tuple[str, ...]  # in the order of trying
    law: Law
    vocab_size: int  # rows of the token table
    seq_length: int
    max_tokens: float | None = None  # that the text allows

    @property
    def best(self) -> float:
        """Parameters that the law finds best."""
        return best_parameters(self.law, self.flops, self.max_tokens)

    @property
    def tied(self) -> bool:
        """Whether the head shares the token table."""
        return self.best < UNTIED_FROM

    def tokens(self, architecture: Architecture) -> float:
        """Tokens that the compute, or the text, is enough for."""
        affordable = self.flops / training_flops_per_token(architecture, self.seq_length)
        return min(affordable, self.max_tokens or math.inf)


@dataclass(frozen=True)
class Batch:
    """Blocks and learning rate of an optimizer step, and the number of steps."""

    blocks: int
    learning_rate: float
    steps: int


@dataclass(frozen=True)
class Choice:
    """What is written down. `finetune` is None where no way of fine-tuning fits."""

    shape: Shape
    architecture: Architecture
    setup: TrainingSetup
    peak_bytes: int
    batch: Batch
    sft: TrainingSetup | None
    dpo: TrainingSetup | None

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.batch.steps * self.batch.blocks * self.setup.seq_length


def choose(wish: Wish) -> Choice:
    """The model with the lowest expected loss that fits the card, with the fastest settings that let it.

    Raises: InputError when nothing fits.
    """
    for shape, architecture in ranked(wish):
        flops = training_flops_per_token(architecture, wish.seq_length, "palm") * wish.tokens(architecture)
        step_tokens, learning_rate = deepseek_fit(flops)
        found = setting(architecture, wish, max(1, round(step_tokens / wish.seq_length)))
        if found is not None:
            setup, peak = found
            blocks = setup.micro_batch * setup.gradient_accumulation_steps * setup.num_gpus
            steps = max(1, int(wish.tokens(architecture) / (blocks * wish.seq_length)))
            batch = Batch(blocks, learning_rate, steps)
            sft = finetuning(architecture, wish, setup, "sft")
            return Choice(shape, architecture, setup, peak, batch, sft, finetuning(architecture, wish, setup, "dpo"))
    raise InputError(f"--gpu: no model of the grid fits the memory of {_memory(wish)}; choose a larger GPU")


def _memory(wish: Wish) -> str:
    gib = (wish.machine.memory or 0) / 2**30
    return f"{wish.machine.gpu.name if wish.machine.gpu else 'the GPU'} ({gib:.1f} GiB that training can fill)"


def deepseek_fit(flops: float) -> tuple[float, float]:
    """Tokens of a step and peak learning rate for a run of so many FLOP without those of the embeddings.

    Bi et al. 2024, arXiv 2401.02954, section 3.1: 0.2920 C^0.3271 tokens and 0.3118 C^-0.1250. Fitted from 1e17 to
    2e19 FLOP; far below, the rate is held at 4e-3.
    """
    return 0.2920 * flops**0.3271, min(4e-3, 0.3118 * flops**-0.1250)


def ranked(wish: Wish) -> Iterator[tuple[Shape, Architecture]]:
    """The best shape of every width and depth, lowest expected loss first; the smallest one if all are too large.

    A law knows a model by its size alone. So those that are as good as the best go by their proportions. A law without
    a loss ranks by the distance from its best size.
    """
    near = [shape for shape in shapes() if _roughly(shape, wish) <= ABOVE_OPTIMUM * wish.best]
    found: dict[tuple[int, int], tuple[float, Shape, Architecture]] = {}
    for shape in near or [min(shapes(), key=lambda s: _roughly(s, wish))]:
        architecture = shape.architecture(wish.vocab_size, wish.tied)
        score = _score(wish, architecture)
        key = (shape.hidden_size, shape.num_hidden_layers)
        if key not in found or score < found[key][0]:
            found[key] = (score, shape, architecture)
    least = min(score for score, _, _ in found.values())

    def place(entry: tuple[float, Shape, Architecture]) -> tuple[float, float]:
        score, shape, _ = entry
        aspect = shape.hidden_size / shape.num_hidden_layers
        return max(score, least + SAME_LOSS), abs(math.log(aspect / USUAL_ASPECT))

    for _, shape, architecture in sorted(found.values(), key=place):
        yield shape, architecture


def _roughly(shape: Shape, wish: Wish) -> int:
    """Parameters to a few per cent."""
    layer = shape.hidden_size * (4 * shape.hidden_size + 3 * shape.intermediate_size)
    return shape.num_hidden_layers * layer + (1 if wish.tied else 2) * wish.vocab_size * shape.hidden_size


def _score(wish: Wish, architecture: Architecture) -> float:
    parameters = counted_parameters(wish.law, architecture)
    loss = wish.law.loss(parameters, wish.tokens(architecture))
    return abs(math.log(parameters / wish.best)) if loss is None else loss


def setting(architecture: Architecture, wish: Wish, blocks: int) -> tuple[TrainingSetup, int] | None:
    """The first settings that fit, with their peak in bytes: fast ones first; None when none fits."""
    for setup in settings(wish, max(1, blocks // wish.machine.num_gpus)):
        peak = fits(architecture, setup, wish.machine)
        if peak is not None:
            return setup, peak
    return None


def settings(wish: Wish, share: int) -> Iterator[TrainingSetup]:
    """Settings from fast to small, for `share` blocks of a step on each GPU."""
    for optimizer, checkpointing in SETTINGS:
        for strategy in wish.strategies:
            if optimizer == "adamw_torch_8bit" and strategy not in ("single", "ddp"):
                continue
            for micro in _micro_batches(share, wish.seq_length, anything=checkpointing):
                yield TrainingSetup(
                    micro_batch=micro, seq_length=wish.seq_length, strategy=strategy,  # type: ignore[arg-type]
                    num_gpus=wish.machine.num_gpus, optimizer=optimizer, gradient_checkpointing=checkpointing,
                    gradient_accumulation_steps=max(1, round(share / micro)), eval_micro_batch=micro,
                    compiled=True,
                )  # fmt: skip


def _micro_batches(share: int, seq_length: int, anything: bool) -> list[int]:
    """Powers of two from the largest sensible one down to the smallest efficient one, or to 1."""
    most = max(1, min(share, LARGEST_TOKENS // seq_length))
    least = 1 if anything else min(most, max(1, EFFICIENT_TOKENS // seq_length))
    powers = [2**n for n in range(most.bit_length()) if 2**n >= least]
    return powers[::-1] or [most]


def fits(architecture: Architecture, setup: TrainingSetup, machine: Machine) -> int | None:
    """The peak in bytes when it leaves the margin free, else None."""
    assert machine.memory is not None and machine.gpu is not None
    peak = estimate_memory(architecture, setup, total_memory=machine.gpu.memory_bytes).peak_bytes
    return peak if peak <= MARGIN * machine.memory else None


def finetuning(
    architecture: Architecture, wish: Wish, start: TrainingSetup, stage: Literal["sft", "dpo"]
) -> TrainingSetup | None:
    """Settings of SFT or DPO that fit: every weight if possible, else LoRA; None when neither fits.

    Neither stage takes split weights, so that a model trained with them gets LoRA on whole ones.
    """
    adapters: tuple[Literal["none", "lora"], ...] = ("lora",) if start.sharded_weights else ("none", "lora")
    for adapter in adapters:
        base = replace(
            start, stage=stage, adapter=adapter, rank=16, eval_micro_batch=0, gradient_accumulation_steps=1,
            strategy="ddp" if start.sharded_weights else start.strategy,
        )  # fmt: skip
        for micro in (m for m in (16, 8, 4, 2, 1) if m <= max(1, start.micro_batch)):
            setup = replace(base, micro_batch=micro)
            if fits(architecture, setup, wish.machine) is not None:
                return setup
    return None
