"""The faster head gives TRL's values and gradients, and leaves to TRL what would need too much memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from ingot.loading import load_model
from ingot.training import plain_head
from ingot.training.encoding import IGNORED

from .finetune_toys import make_start

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start"), logit_scale=2.0, initializer_range=0.2)


def answers(model: Any) -> Any:
    """The model's figures about two rows, and the gradient of the log-probabilities."""
    ids = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(12) < 5, IGNORED)
    labels[1, 9:] = IGNORED
    outputs = model(ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    model.zero_grad()
    outputs.log_probs.sum().backward()
    return outputs, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_equals_the_head_of_trl(start: Path) -> None:
    model: Any = load_model(start)
    add_fused_lm_head(model, outputs=FIELDS)
    wanted, wanted_gradient = answers(model)
    plain_head.use_plain_head(model)
    found, gradient = answers(model)
    for field in FIELDS:
        torch.testing.assert_close(found[field], wanted[field], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.label_mask, wanted.label_mask)
    assert float(found.loss) == pytest.approx(float(wanted.loss), abs=1e-5)


def test_without_the_flag_the_model_is_as_it_was(start: Path) -> None:
    model: Any = load_model(start)
    ids = torch.arange(5, 15)[None]
    wanted = model(ids).logits
    add_fused_lm_head(model, outputs=FIELDS)
    plain_head.use_plain_head(model)
    assert torch.equal(model(ids).logits, wanted)


def test_large_vocabularies_keep_the_head_of_trl(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = load_model(start)
    add_fused_lm_head(model, outputs=FIELDS)
    wanted, _ = answers(model)
    plain_head.use_plain_head(model)
    monkeypatch.setattr(plain_head, "LARGEST", 10)
    monkeypatch.setattr(plain_head, "label_log_probs", None)  # calling it would fail
    assert torch.equal(answers(model)[0].log_probs, wanted.log_probs)
