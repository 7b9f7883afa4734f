"""What to change in a setup that does not fit a GPU, the nearest changes first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from ingot.planning.architecture import Architecture
from ingot.planning.memory_estimate import MemoryEstimate, estimate_memory
from ingot.planning.optimizers import find_optimizer
from ingot.planning.setups import TrainingSetup

EIGHT_BIT = "adamw_torch_8bit"  # all moments in 8 bits, the token table's too
GPU_COUNTS = (2, 4, 8, 16, 32, 64)
MOST = 5  # suggestions


@dataclass(frozen=True)
class Change:
    """One thing that can be changed beside the micro-batch."""

    words: str
    values: dict[str, object]
    cost: int  # how far it takes the run from what was asked for


Found = tuple[TrainingSetup, MemoryEstimate, str]


def settings_that_fit(
    architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total_memory: int | None = None
) -> list[Found]:
    """Setups that fit a GPU, each with its estimate and what was changed in words; the nearest first.

    A smaller micro-batch leaves the optimizer step as it is, by accumulating more. memory_bytes: what a training
    process can fill; total_memory: the GPU's own figure, the same when not given. Empty when nothing helps; a setup
    that fits comes back alone.
    """
    total = total_memory or memory_bytes
    found: list[tuple[float, Found]] = []
    chosen: list[tuple[frozenset[str], int]] = []
    for changes in _combinations(architecture, setup):
        kinds = frozenset(key for change in changes for key in change.values)
        changed = replace(setup, **{key: value for change in changes for key, value in change.values.items()})  # type: ignore[arg-type]
        fit = _largest_micro_batch(architecture, changed, memory_bytes, total)
        if fit is None or any(kinds >= others and fit[0].micro_batch <= micro for others, micro in chosen):
            continue
        chosen.append((kinds, fit[0].micro_batch))
        smaller = setup.micro_batch / fit[0].micro_batch
        words = [*_micro_batch_words(setup, fit[0]), *(change.words for change in changes)]
        cost = sum(change.cost for change in changes) + (smaller > 1) + smaller / 1000
        found.append((cost, (*fit, ", ".join(words) or "as it is")))
        if not changes and smaller == 1:
            break
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])][:MOST]


def _micro_batch_words(setup: TrainingSetup, fit: TrainingSetup) -> list[str]:
    if fit.micro_batch == setup.micro_batch:
        return []
    return [f"per_device_train_batch_size {fit.micro_batch} x {fit.accumulation} accumulated"]


def _combinations(architecture: Architecture, setup: TrainingSetup) -> Iterator[tuple[Change, ...]]:
    """None, each and every two or three of the changes, but never two of one kind."""
    changes = list(_changes(setup))
    for count in range(4):
        for chosen in combinations(changes, count):
            keys = [key for change in chosen for key in change.values]
            if len(keys) == len(set(keys)):
                yield chosen


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
        if count > setup.num_gpus:
            name = names[0] if whole else "fsdp2"
            yield Change(f"{count} GPUs with {name}", {"strategy": name, "num_gpus": count}, 40 + count)


def _largest_micro_batch(
    architecture: Architecture, setup: TrainingSetup, memory_bytes: int, total: int
) -> tuple[TrainingSetup, MemoryEstimate] | None:
    """The same optimizer step in the largest micro-batches that fit; None when single blocks do not."""
    share = setup.micro_batch * setup.accumulation
    sizes = [size for size in range(1, min(setup.micro_batch, share) + 1) if share % size == 0]
    best, low, high = None, 0, len(sizes) - 1
    while low <= high:
        middle = (low + high) // 2
        candidate = replace(setup, micro_batch=sizes[middle], gradient_accumulation_steps=share // sizes[middle])
        estimate = estimate_memory(architecture, candidate, total)
        if estimate.fits(memory_bytes):
            best, low = (candidate, estimate), middle + 1
        else:
            high = middle - 1
    return best
