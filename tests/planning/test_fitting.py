"""What to change where a setup does not fit: all that helps is found, the nearest first, and none that is refused."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ingot.planning import fitting
from ingot.planning.architecture import Architecture, Sizes
from ingot.planning.memory import TrainingSetup, estimate_memory, settings_that_fit
from tests.planning.test_memory import FLAGSHIP, GIB, H200, MIXTURE, SMALL_CARD, STEP, estimate


def test_730m_with_float32_adamw_does_not_fit_12_gb_and_what_fits_is_said() -> None:
    usable = 12 * GIB - 600 * 2**20
    setup = TrainingSetup(8, 384)
    assert not estimate(setup, SMALL_CARD, 12 * GIB).fits(usable)
    found = settings_that_fit(SMALL_CARD, setup, usable)
    assert found
    for changed, estimated, words in found:
        assert estimated.fits(usable)
        assert changed.micro_batch * changed.accumulation == 8
        assert words
    all_words = [entry[2] for entry in found]
    assert any("adamw_torch_8bit" in w for w in all_words)
    assert all_words.index(next(w for w in all_words if "GPUs" not in w)) == 0  # nearest first: more GPUs come last


def test_what_fits_comes_back_alone_and_what_nothing_helps_comes_back_empty() -> None:
    setup = TrainingSetup(1, 384, gradient_checkpointing=True)
    assert [words for _, _, words in settings_that_fit(SMALL_CARD, setup, H200)] == ["as it is"]
    assert settings_that_fit(FLAGSHIP, replace(STEP, seq_length=8192), GIB // 2) == []


def test_smaller_micro_batches_keep_the_step() -> None:
    setup = TrainingSetup(16, 2048, global_batch_size=64)
    changed, estimated, words = settings_that_fit(FLAGSHIP, setup, 60 * 10**9)[0]
    assert changed.micro_batch * changed.accumulation == 64
    assert words.startswith(f"per_device_train_batch_size {changed.micro_batch} x {changed.accumulation} accumulated")
    doubled = replace(changed, micro_batch=2 * changed.micro_batch)
    assert not estimate(doubled, memory=60 * 10**9).fits(60 * 10**9)
    assert estimated.fits(60 * 10**9)


def nearest_by_hand(architecture: Architecture, setup: TrainingSetup, memory: int) -> float | None:
    """The least cost of all combinations of changes and batches that fit."""
    costs = []
    for changes in fitting._combinations(setup):
        values = {key: value for change in changes for key, value in change.values.items()}
        changed = replace(setup, **values)  # type: ignore[arg-type]
        share = changed.micro_batch * changed.accumulation
        sizes = [size for size in range(1, setup.micro_batch + 1) if share % size == 0]
        for size, evaluation in product(sizes, {setup.eval_micro_batch, *(2**n for n in range(9))}):
            if evaluation > setup.eval_micro_batch:
                continue
            one = replace(
                changed, micro_batch=size, gradient_accumulation_steps=share // size, eval_micro_batch=evaluation
            )
            if estimate_memory(architecture, one, memory).fits(memory):
                ratios = (setup.micro_batch / size, setup.eval_micro_batch / max(1, evaluation))
                batches = sum(1 + ratio / 1000 for ratio in ratios if ratio > 1)
                costs.append(batches + sum(change.cost for change in changes))
    return min(costs, default=None)


CASES: list[tuple[Architecture, int, dict[str, Any]]] = [
    (FLAGSHIP, 40, {"strategy": "ddp", "num_gpus": 64}),
    (FLAGSHIP, 24, {"gradient_accumulation_steps": 4}),
    (FLAGSHIP, 24, {"strategy": "fsdp2", "num_gpus": 64}),
    (FLAGSHIP, 24, {"strategy": "zero1", "num_gpus": 8, "eval_micro_batch": 256}),
    (FLAGSHIP, 16, {"optimizer": "muon", "strategy": "ddp", "num_gpus": 4}),
    (FLAGSHIP, 12, {"stage": "dpo", "reference_model": True, "loss_implementation": "plain"}),
    (SMALL_CARD, 12, {"seq_length": 384, "eval_micro_batch": 256}),
    (SMALL_CARD, 8, {"micro_batch": 12, "stage": "sft"}),
    (MIXTURE, 10, {"micro_batch": 30, "precision": "fp32"}),
    (FLAGSHIP, 4, {"seq_length": 4096}),
]


@pytest.mark.parametrize(("architecture", "gib", "values"), CASES)
def test_the_first_suggestion_is_the_nearest_of_all(
    architecture: Architecture, gib: int, values: dict[str, Any]
) -> None:
    setup = replace(STEP, **values)
    found = fitting.suggestions(architecture, setup, gib * GIB, gib * GIB)
    assert (found[0].cost if found else None) == pytest.approx(nearest_by_hand(architecture, setup, gib * GIB))
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert all(one.found[1].fits(gib * GIB) for one in found)


def test_one_change_that_helps_without_accumulation_is_found() -> None:
    setup = replace(STEP, strategy="ddp", num_gpus=64)
    assert settings_that_fit(FLAGSHIP, setup, 39 * GIB, 40 * GIB)[0][2] == "gradient_checkpointing"


def test_fewer_gpus_with_a_smaller_optimizer_come_before_more_gpus() -> None:
    seven = Sizes(
        vocab_size=151_936, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128,
    ).architecture()  # fmt: skip
    setup = TrainingSetup(8, 4096, gradient_checkpointing=True, global_batch_size=1024)
    first = settings_that_fit(seven, setup, 39 * GIB, 40 * GIB)[0][0]
    assert (first.num_gpus, first.optimizer, first.micro_batch, first.accumulation) == (4, "adamw_torch_8bit", 2, 128)


def test_a_smaller_evaluation_is_offered() -> None:
    setup = TrainingSetup(1, 384, gradient_checkpointing=True, optimizer="adamw_torch_8bit", eval_micro_batch=4096)
    changed, _, words = settings_that_fit(SMALL_CARD, setup, 12 * GIB)[0]
    assert words == f"per_device_eval_batch_size {changed.eval_micro_batch}"
    assert changed == replace(setup, eval_micro_batch=changed.eval_micro_batch)


def test_eight_bit_adamw_is_not_offered_with_deepspeed() -> None:
    for strategy in ("ddp", "zero1", "zero3"):
        setup = replace(STEP, micro_batch=1, strategy=strategy, num_gpus=8)
        for changed, _, _ in settings_that_fit(FLAGSHIP, setup, 12 * GIB):
            assert not (changed.deepspeed and changed.optimizer == "adamw_torch_8bit")


def test_very_many_divisors_are_thinned_out() -> None:
    assert fitting._micro_batches(24, 12) == (12, 8, 6, 4, 3, 2, 1)
    sizes = fitting._micro_batches(720_720, 720_720)
    assert len(sizes) < 64 and sizes[0] == 720_720 and sizes[-1] == 1
    assert all(720_720 % size == 0 for size in sizes)
