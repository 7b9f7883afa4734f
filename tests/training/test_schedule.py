"""Schedules through the stage: the learning rates that are logged, and options that cannot be."""

import math
from typing import Any

import pytest
from transformers import TrainingArguments

from ingot.recipe import InputError
from ingot.training.arguments import check_optimizer
from ingot.training.callbacks import read_metrics

from .conftest import Pretrain

PEAK, STEPS, WARMUP = 1e-2, 12, 2


def _cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


SCHEDULES: list[tuple[str, dict[str, Any] | None, Any]] = [
    ("cosine", None, _cosine),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, lambda s: 0.1 + 0.9 * _cosine(s)),
    ("linear", None, lambda s: (STEPS - s) / (STEPS - WARMUP)),
    ("polynomial", {"power": 2.0, "lr_end": 0.0}, lambda s: ((STEPS - s) / (STEPS - WARMUP)) ** 2),
    (
        "warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"},
        lambda s: min(1.0, (STEPS - s) / 4),
    ),
    ("constant_with_warmup", None, lambda s: 1.0),
]  # fmt: skip


def rates(pretrain: Pretrain, **training: Any) -> list[float]:
    """The learning rates of the steps, as logged."""
    off = {"eval_strategy": "no", "eval_steps": None, "save_strategy": "no", "save_steps": None}
    folder, _ = pretrain(**{f"training__{key}": value for key, value in {**off, **training}.items()})
    return [line["learning_rate"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize(("name", "options", "after_warmup"), SCHEDULES, ids=[s[0] for s in SCHEDULES])
def test_the_learning_rate_follows_the_schedule(
    name: str, options: dict[str, Any] | None, after_warmup: Any, pretrain: Pretrain
) -> None:
    found = rates(pretrain, lr_scheduler_type=name, lr_scheduler_kwargs=options)
    expected = [PEAK * (s / WARMUP if s < WARMUP else after_warmup(s)) for s in range(STEPS)]
    assert found == pytest.approx(expected, abs=PEAK * 1e-4)


def test_constant_stays(pretrain: Pretrain) -> None:
    assert rates(pretrain, lr_scheduler_type="constant", warmup_steps=None) == [PEAK] * STEPS


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "training.warmup_steps: reduce_lr_on_plateau has none"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": -4}},
            "num_decay_steps is -4",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 4, "min_lr_ratio": 2},
            },
            "min_lr_ratio is 2; give 0 to 1",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "for warmup_stable_decay: .*num_decay_steps"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 11}},
            "warmup, stable and decay make 13 steps and the run has 12",
        ),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 0.1}}, "for cosine: .*'min_lr'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}}, "for polynomial: "),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "for polynomial: .*lr_end"),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"power": 1}},
            "constant_with_warmup takes none; leave it out",
        ),
        ({"lr_scheduler_type": "constant"}, r"training\.warmup_steps: constant has none; use .*constant_with_warmup"),
    ],
)
def test_options_that_cannot_be_are_refused_before_training(
    training: dict[str, Any], message: str, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.training import pretrain_loop

    monkeypatch.setattr(pretrain_loop, "load_tokenizer", lambda path: pytest.fail("went on"))
    with pytest.raises(InputError, match=message) as caught:
        pretrain(**{f"training__{key}": value for key, value in training.items()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optim": "galore_adamw"}, "training.optim: galore_adamw: You need to install `galore_torch`"),
        ({"optim": "grokadamw"}, "training.optim: grokadamw: Please install grokadamw"),
        ({"optim": "adafactor", "optim_args": "momentum"}, "training.optim_args: 'momentum' is not name=value"),
        ({"optim_args": "momentum=0.5"}, "training.optim_args: adamw_torch_fused reads none of 'momentum=0.5'"),
    ],
)
def test_an_optimizer_that_upstream_would_refuse_or_not_ask_is_told(training: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_optimizer(TrainingArguments(use_cpu=True, **training))


@pytest.mark.parametrize("training", [{"optim": "rmsprop", "optim_args": "momentum=0.5"}, {"optim": "sgd"}, {}])
def test_an_optimizer_that_reads_its_arguments_is_taken(training: dict[str, Any]) -> None:
    check_optimizer(TrainingArguments(use_cpu=True, **training))
