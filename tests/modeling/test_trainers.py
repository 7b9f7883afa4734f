"""The library's Trainer finds what it looks for: the loss of a step, the logits of an evaluation, checkpointing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.utils.generic import find_labels

Make = Callable[..., Any]
KNOWN = TrainingArguments.__dataclass_fields__
CHECKPOINTING = [name for name in ("gradient_checkpointing", "activation_checkpointing") if name in KNOWN]


def trainer(model: Any, rows: torch.Tensor, folder: Path, **arguments: Any) -> Trainer:
    """Train on `rows` (rows, T) as they are, one step of eight rows; evaluate with the shape of the logits."""

    def shapes(prediction: EvalPrediction) -> dict[str, float]:
        assert prediction.predictions.shape == (len(rows), rows.shape[1], 96)
        return {"accuracy": float((prediction.predictions.argmax(-1)[:, :-1] == rows[:, 1:].numpy()).mean())}

    settings = {"report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    settings |= {"max_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 8, **arguments}
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=dataset,
        eval_dataset=dataset,
        compute_metrics=shapes,
    )


def test_only_labels_count_as_labels(tiny: Make) -> None:
    assert find_labels(type(tiny())) == ["labels"]


@pytest.mark.parametrize("loss_implementation", ["plain", "chunked"])
def test_evaluation_has_loss_and_logits(tiny: Make, tokens: Make, tmp_path: Path, loss_implementation: str) -> None:
    rows, model = tokens(8, 12), tiny(loss_implementation=loss_implementation)
    metrics = trainer(model, rows, tmp_path).evaluate()
    with torch.no_grad():
        expected = model.eval()(rows, labels=rows)
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-5)
    accuracy = (expected.logits.argmax(-1)[:, :-1] == rows[:, 1:]).float().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("name", [None, *CHECKPOINTING])
def test_accumulation_and_checkpointing_change_no_step(
    tiny: Make, tokens: Make, tmp_path: Path, name: str | None
) -> None:
    rows = tokens(8, 12)
    losses = []
    for arguments in (
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **({name: True} if name else {})},
    ):
        one = trainer(tiny(loss_implementation="chunked"), rows, tmp_path, **arguments)
        one.train()
        losses.append([entry["loss"] for entry in one.state.log_history if "loss" in entry])
        assert one.model.is_gradient_checkpointing is (name in arguments)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][1] < losses[0][0]
