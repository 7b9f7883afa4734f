"""The order in which rows are trained on: a pure function of the seed, the epoch and what was put off."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ingot.runs import num_processes


class PutOff(NamedTuple):
    """Places of an epoch's order, from `begin` up to `end`, whose rows come last in that epoch."""

    epoch: int
    begin: int
    end: int


class TrainOrder(Sampler[int]):
    """A sampler whose epochs do not depend on the number of processes, on workers or on what was drawn before.

    Each row comes once in every epoch.
    """

    epoch = 0

    def __init__(self, num_rows: int, seed: int | None, rows_per_step: int, put_off: Sequence[PutOff] = ()) -> None:
        """`seed` shuffles anew in every epoch; None leaves the rows in their order."""
        self.num_rows, self.seed, self.rows_per_step, self.put_off = num_rows, seed, rows_per_step, put_off
        self.steps_per_epoch = -(-num_rows // rows_per_step)

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        return self.rows(self.epoch)

    def rows(self, epoch: int, begin: int = 0, end: int | None = None) -> Iterator[int]:
        """The rows at the places from `begin` up to `end` of an epoch."""
        spans = _split(self._spans(epoch), begin)[1]
        places = chain(*(spans if end is None else _split(spans, end - begin)[0]))
        if self.seed is None:
            return places
        generator = torch.Generator().manual_seed(self.seed + epoch)
        shuffled = torch.randperm(self.num_rows, generator=generator).tolist()
        return (shuffled[place] for place in places)

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of an optimizer step, counted from 0, over all processes."""
        epoch, begin = step // self.steps_per_epoch, step % self.steps_per_epoch * self.rows_per_step
        return list(self.rows(epoch, begin, begin + self.rows_per_step))

    def put_off_steps(self, begin: int, end: int) -> list[PutOff]:
        """What puts off the rows of the steps from `begin` up to `end`, epoch by epoch."""
        found = []
        for epoch in range(begin // self.steps_per_epoch, (end - 1) // self.steps_per_epoch + 1):
            first = max(0, begin - epoch * self.steps_per_epoch) * self.rows_per_step
            last = min(self.steps_per_epoch, end - epoch * self.steps_per_epoch) * self.rows_per_step
            found.append(PutOff(epoch, first, min(last, self.num_rows)))
        return found

    def _spans(self, epoch: int) -> list[range]:
        spans = [range(self.num_rows)]
        for put_off in self.put_off:
            if put_off.epoch == epoch:
                before, rest = _split(spans, put_off.begin)
                held, after = _split(rest, put_off.end - put_off.begin)
                spans = [*before, *after, *held]
        return spans


def _split(spans: Sequence[range], count: int) -> tuple[list[range], list[range]]:
    """The first `count` places of the spans, and the others."""
    first, rest = [], []
    for span in spans:
        first.append(span[: max(0, count)])
        rest.append(span[max(0, count) :])
        count -= len(span)
    return first, rest


class _Epochs(TrainerCallback):
    """Tells the order which epoch begins; Accelerate does not reach it in a continued run of several processes."""

    def __init__(self, order: TrainOrder) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`state.epoch` is whole where an epoch begins, and lies within it where a run continues."""
        self.order.epoch = int(state.epoch or 0)


class OrderedRows:
    """A mixin for transformers' Trainer: rows come in a TrainOrder, so that those of any step are known."""

    args: Any
    train_dataset: Any
    put_off: Sequence[PutOff] = ()
    order: TrainOrder | None = None  # None: a sampling strategy of upstream's with an order of its own

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step over all processes."""
        args = self.args
        return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "sequential") or self.args.dataloader_drop_last:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        rows = len(self.train_dataset if train_dataset is None else train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.order = TrainOrder(rows, None if strategy == "sequential" else seed, self.rows_per_step, self.put_off)
        self.remove_callback(_Epochs)  # type: ignore[attr-defined]
        self.add_callback(_Epochs(self.order))  # type: ignore[attr-defined]
        return self.order
