"""What to change in a setup that does not fit a GPU, the nearest changes first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from ingot.planning.architecture import Architecture
from ingot.planning.memory_estimate import MemoryEstimate, estimate_memory
from ingot.planning.optimizers import find_optimizer
from ingot.planning.setups import TrainingSetup

EIGHT_BIT = "adamw_torch_8bit"  # all moments in 8 bits, the token table's too
TORCHAO = (EIGHT_BIT, "adamw_torch_4bit")
GPU_COUNTS = (2, 4, 8, 16, 32, 64)
MOST = 5  # suggestions
MANY = 32  # micro-batches to try


@dataclass(frozen=True)
class Change:
    """One thing that can be changed beside the micro-batch."""

    words: str
    values: dict[str, object]
    cost: int  # how far it takes the run from what was asked for


Found = tuple[TrainingSetup, MemoryEstimate, str]


@dataclass(frozen=True)
class Suggestion:
    """A setup that fits, how far it is from what was asked for, and the fields that it changes beside the batches."""

    cost: float
    kinds: frozenset[str]
    found: Found

    def sizes_within(self, other: "Suggestion") -> bool:
        """Whether neither batch is larger than the other's."""
        mine, its = self.found[0], other.found[0]
        return mine.micro_batch <= its.micro_batch and mine.eval_micro_batch <= its.eval_micro_batch


def settings_that_fit(
    architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total_memory: int | None = None
) -> list[Found]:
    """Setups that fit a GPU, each with its estimate and what was changed in words; the nearest first.

    A smaller micro-batch leaves the optimizer step as it is, by accumulating more. memory_bytes: what a training
    process can fill; total_memory: the GPU's own figure, the same when not given. Empty when nothing helps; a setup
    that fits comes back alone.
    """
    return [one.found for one in suggestions(architecture, setup, memory_bytes, total_memory or memory_bytes)]


def suggestions(architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total: int) -> list[Suggestion]:
    """The same with their costs."""
    nearest: list[Suggestion] = []
    for changes in sorted(_combinations(setup), key=_cost):
        if len(nearest) >= MOST and _cost(changes) > nearest[MOST - 1].cost:
            break  # whatever follows is further away
        found = _suggestion(architecture, setup, changes, memory_bytes, total)
        if found is None:
            continue
        if found.cost == 0:
            return [found]
        nearest = _undominated([*nearest, found])
    return nearest[:MOST]


def _cost(changes: Sequence[Change]) -> int:
    return sum(change.cost for change in changes)


def _undominated(found: Sequence[Suggestion]) -> list[Suggestion]:
    """The nearest first, without those that change more than a nearer one and gain nothing by it."""
    kept: list[Suggestion] = []
    for one in sorted(found, key=lambda one: one.cost):
        if not any(one.kinds >= other.kinds and one.sizes_within(other) for other in kept):
            kept.append(one)
    return kept


def _suggestion(
    architecture: Architecture, setup: TrainingSetup, changes: Sequence[Change], memory_bytes: int, total: int
) -> Suggestion | None:
    """These changes with the largest batches that then fit; None when none does."""
    values = {key: value for change in changes for key, value in change.values.items()}
    changed = _largest_evaluation(architecture, replace(setup, **values), memory_bytes, total)  # type: ignore[arg-type]
    fit = None if changed is None else _largest_micro_batch(architecture, changed, memory_bytes, total)
    if fit is None:
        return None
    cost, words = float(_cost(changes)), []
    if fit[0].micro_batch < setup.micro_batch:
        words.append(f"per_device_train_batch_size {fit[0].micro_batch} x {fit[0].accumulation} accumulated")
        cost += 1 + setup.micro_batch / fit[0].micro_batch / 1000
    if fit[0].eval_micro_batch < setup.eval_micro_batch:
        words.append(f"per_device_eval_batch_size {fit[0].eval_micro_batch}")
        cost += 1 + setup.eval_micro_batch / fit[0].eval_micro_batch / 1000
    words += [change.words for change in changes]
    return Suggestion(cost, frozenset(values), (*fit, ", ".join(words) or "as it is"))


def _combinations(setup: TrainingSetup) -> Iterator[tuple[Change, ...]]:
    """None, each and every two or three of the changes, but never two of one kind."""
    changes = list(_changes(setup))
    for count in range(4):
        for chosen in combinations(changes, count):
            keys = [key for change in chosen for key in change.values]
            if len(keys) == len(set(keys)) and _optimizer_goes_with_strategy(setup, chosen):
                yield chosen


def _optimizer_goes_with_strategy(setup: TrainingSetup, changes: Sequence[Change]) -> bool:
    """torchao's optimizers are not for DeepSpeed; who asked for both keeps them."""
    values = {key: value for change in changes for key, value in change.values.items()}
    if not values.keys() & {"optimizer", "strategy"}:
        return True
    deepspeed = str(values.get("strategy", setup.strategy)).startswith("zero")
    return not (deepspeed and values.get("optimizer", setup.optimizer) in TORCHAO)


def _changes(setup: TrainingSetup) -> Iterator[Change]:
    """What can be changed in this setup."""
    if not setup.gradient_checkpointing:
        yield Change("gradient_checkpointing", {"gradient_checkpointing": True}, 2)
    if setup.loss_implementation == "plain":
        yield Change("loss_implementation auto", {"loss_implementation": "auto"}, 1)
    if find_optimizer(setup.optimizer).bytes_per_value == 4 and find_optimizer(setup.optimizer).moments == 2:
        yield Change(f"optim {EIGHT_BIT}", {"optimizer": EIGHT_BIT}, 3)
    if setup.stage != "pretrain":
        for cost, adapter in ((20, "lora"), (30, "qlora")):
            if setup.adapter == "none" or (setup.adapter == "lora" and adapter == "qlora"):
                yield Change(f"adapter {adapter}", {"adapter": adapter, "reference_model": False}, cost)
    yield from _strategies(setup)


def _strategies(setup: TrainingSetup) -> Iterator[Change]:
    """Sharding over the GPUs there are, or over more of them. Fine-tuning and Muon need whole weights."""
    whole = setup.stage != "pretrain" or setup.optimizer == "muon"
    names = ("zero1", "zero2") if whole else ("zero1", "zero2", "fsdp2", "zero3")
    if setup.num_gpus > 1:
        later = names[names.index(setup.strategy) + 1 :] if setup.strategy in names else names
        for cost, name in enumerate(() if setup.sharded_weights else later):
            yield Change(f"strategy {name}", {"strategy": name, "num_gpus": setup.num_gpus}, 4 + cost)
    for count in GPU_COUNTS:
        if count > setup.num_gpus and (setup.global_batch_size or 0) % count == 0:
            name = names[0] if whole else "fsdp2"
            yield Change(f"{count} GPUs with {name}", {"strategy": name, "num_gpus": count}, 40 + count)


def _largest_evaluation(
    architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total: int
) -> TrainingSetup | None:
    """The setup with the largest evaluation batch that fits, whatever the micro-batch; None when none does."""
    if not setup.eval_micro_batch:
        return setup
    most = setup.eval_micro_batch
    for size in (most, *(2**n for n in reversed(range((most - 1).bit_length())))):
        changed = replace(setup, micro_batch=1, eval_micro_batch=size)
        if estimate_memory(architecture, changed, total).fits(memory_bytes, "evaluation"):
            return replace(setup, eval_micro_batch=size)
    return None


def _largest_micro_batch(
    architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total: int
) -> tuple[TrainingSetup, MemoryEstimate] | None:
    """The same optimizer step in the largest micro-batches that fit; None when single blocks do not.

    All are tried: a step without accumulation keeps fewer gradients, and a small loss is not cut into chunks.
    """
    share = setup.micro_batch * setup.accumulation
    if setup.global_batch_size is not None:
        share = max(1, setup.global_batch_size // setup.num_gpus)
    for size in _micro_batches(share, setup.micro_batch):
        candidate = replace(setup, micro_batch=size, gradient_accumulation_steps=share // size)
        estimate = estimate_memory(architecture, candidate, total)
        if estimate.fits(memory_bytes):
            return candidate, estimate
    return None


@cache
def _micro_batches(share: int, most: int) -> tuple[int, ...]:
    """Divisors of a step's share up to `most`, the largest first; of very many those a fifth apart."""
    small = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
    sizes = sorted({size for one in small for size in (one, share // one) if size <= most}, reverse=True)
    if len(sizes) <= MANY:
        return tuple(sizes)
    kept = sizes[:1]
    for size in sizes[1:]:
        if size <= 0.8 * kept[-1]:
            kept.append(size)
    return tuple(kept)
