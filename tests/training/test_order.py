"""The order of rows: a pure function of seed, epoch and what was put off, the same however it is read."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ingot.training.order import OrderedRows, PutOff, TrainOrder


def test_every_row_comes_once_in_every_epoch_in_an_order_of_its_own() -> None:
    order = TrainOrder(50, seed=3, rows_per_step=8)
    epochs = [list(order.rows(epoch)) for epoch in range(3)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert all(one != other for one, other in pairwise(epochs))
    assert list(TrainOrder(50, seed=3, rows_per_step=2).rows(2)) == epochs[2] != list(TrainOrder(50, 4, 8).rows(2))
    assert list(TrainOrder(50, seed=None, rows_per_step=8)) == list(range(50))


def test_the_rows_of_any_step_are_known() -> None:
    order = TrainOrder(10, seed=1, rows_per_step=4)
    steps = [order.rows_of_step(step) for step in range(6)]
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    assert [row for rows in steps[:3] for row in rows] == list(order.rows(0))
    assert [row for rows in steps[3:] for row in rows] == list(order.rows(1))


def test_rows_that_are_put_off_come_last() -> None:
    order = TrainOrder(10, None, 2)
    assert order.put_off_steps(1, 3) == [PutOff(0, 2, 6)]
    again = TrainOrder(10, None, 2, order.put_off_steps(1, 3))
    assert list(again) == [0, 1, 6, 7, 8, 9, 2, 3, 4, 5]
    twice = TrainOrder(10, None, 2, [*again.put_off, PutOff(0, 4, 6)])
    assert list(twice) == [0, 1, 6, 7, 2, 3, 4, 5, 8, 9]
    assert list(twice.rows(1)) == list(range(10))  # another epoch is as it was


def test_rows_are_put_off_epoch_by_epoch() -> None:
    order = TrainOrder(10, 0, 4)  # three steps an epoch
    assert order.put_off_steps(2, 4) == [PutOff(0, 8, 10), PutOff(1, 0, 4)]
    later = TrainOrder(10, 0, 4, order.put_off_steps(2, 4))
    assert list(later.rows(0)) == list(order.rows(0))  # they were the last
    assert list(later.rows(1)) == [*list(order.rows(1))[4:], *list(order.rows(1))[:4]]


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows that hold their own number."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([float(index)])}


class Model(torch.nn.Module):
    """Remembers the rows that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += [int(value) for value in x.flatten()]
        return {"loss": (x * self.weight).mean()}


class Ordered(OrderedRows, Trainer):
    """As training uses it."""


def train(folder: Path, resume: str | None = None, **changes: Any) -> Ordered:
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, seed=5, num_train_epochs=3,
        per_device_train_batch_size=4, save_steps=1, logging_steps=100, **changes,
    )  # fmt: skip
    trainer = Ordered(model=Model(), args=arguments, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("changes", [{}, {"dataloader_num_workers": 1}, {"gradient_accumulation_steps": 2}], ids=str)
def test_training_reads_the_rows_that_the_order_names(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", **changes)
    order = whole.order
    assert order is not None
    expected = [row for epoch in range(3) for row in order.rows(epoch)]
    assert whole.model.seen == expected  # type: ignore[union-attr]
    for step in (order.steps_per_epoch - 1, order.steps_per_epoch, order.steps_per_epoch + 2):
        continued = train(tmp_path / "whole", str(tmp_path / f"whole/checkpoint-{step}"), **changes)
        done = sum(len(order.rows_of_step(past)) for past in range(step))
        assert continued.model.seen == expected[done:]  # type: ignore[union-attr]


def test_other_strategies_keep_upstreams_order(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, train_sampling_strategy="group_by_length")
    trainer = Ordered(model=Model(), args=arguments, train_dataset=Rows())
    assert trainer.order is None
