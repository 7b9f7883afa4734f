"""`run.fp8`: float8 products that train nearly the same model; all of them run on a CPU too."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from ingot.recipe_yaml import InputError
from ingot.training import float8
from ingot.training.callbacks import read_metrics
from ingot.training.float8 import Float8CrossEntropy, train_in_float8
from modeling import IngotConfig, IngotForCausalLM
from modeling.modeling_ingot import ChunkedCrossEntropy

from .conftest import Pretrain

layers = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: pip install '.[gpu]'")


def both(labels: torch.Tensor, rows: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(loss, gradient of the hidden states, of the weight) without and with float8."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(len(labels), 32), torch.randn(160, 32) / 4
    results = []
    for function in (ChunkedCrossEntropy, Float8CrossEntropy):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        loss = function.apply(*inputs, labels, rows)
        (loss / len(labels)).backward()
        results.append((loss.detach(), *(tensor.grad for tensor in inputs)))
    return results


def test_loss_and_gradients_of_the_head_are_near() -> None:
    labels = torch.randint(160, (96,), generator=torch.Generator().manual_seed(1))
    labels[5:20] = -100
    plain, found = both(labels, rows=32)
    torch.testing.assert_close(found[0], plain[0], rtol=5e-3, atol=0)
    for gradient, expected in zip(found[1:], plain[1:], strict=True):
        assert (gradient - expected).norm() < 0.06 * expected.norm()  # e5m2 keeps two bits after the first
    assert not found[1][5:20].any()


def test_a_labels_own_gradient_is_exact() -> None:
    """Sure of a wrong token and sure of the right one: p - 1 near -1 and near 0, which e5m2 cannot tell apart."""
    hidden = (torch.eye(16) * 8).requires_grad_()
    weight = (torch.eye(32, 16) * 4).requires_grad_()
    labels = torch.arange(16).roll(-1)
    labels[0] = 0
    Float8CrossEntropy.apply(hidden, weight, labels, 16).backward()
    probabilities = (hidden @ weight.t()).softmax(dim=-1).detach()
    expected = probabilities - nn.functional.one_hot(labels, 32)
    torch.testing.assert_close(hidden.grad, expected @ weight.detach(), rtol=0.1, atol=1e-3)


def test_other_numbers_of_tokens_take_the_plain_chunks() -> None:
    plain, found = both(torch.arange(37) % 160, rows=16)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def model(**changes: Any) -> IngotForCausalLM:
    fields = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return IngotForCausalLM(IngotConfig(**{**fields, "num_attention_heads": 2, "num_key_value_heads": 1, **changes}))


@layers
def test_names_stay_and_other_widths_are_left_out() -> None:
    plain, converted = model(), model()
    train_in_float8(converted)
    assert list(converted.state_dict()) == list(plain.state_dict())
    assert {type(m).__name__ for m in converted.model.layers.modules() if isinstance(m, nn.Linear)} == {"Float8Linear"}
    mixed = model(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=32)
    train_in_float8(mixed)
    assert type(mixed.model.layers[0].mlp.shared_expert_gate) is nn.Linear  # one output
    assert type(mixed.model.layers[0].mlp.shared_expert.up_proj).__name__ == "Float8Linear"


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "find_spec", lambda name: object())  # torchao is there
    with pytest.raises(InputError, match="multiples of 16.*hidden_size is 24"):
        train_in_float8(model(hidden_size=24))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(InputError, match="NVIDIA A100 has no float8 products"):
        train_in_float8(model())
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torchao.*ingot\[gpu\]"):
        train_in_float8(model())


@layers
@pytest.mark.parametrize("asked", [True, "layers"])
def test_a_run_in_float8_learns_evaluates_and_writes_samples(asked: bool | str, pretrain: Pretrain) -> None:
    changes: dict[str, Any] = {"training__bf16": True, "training__max_steps": 6, "run__sample_prompts": ["red"]}
    changes["model__loss_implementation"] = "chunked"  # as `auto` on a GPU
    plain, expected = pretrain("plain", **changes)
    folder, results = pretrain("float8", run__fp8=asked, **changes)
    losses = [[x["loss"] for x in read_metrics(f / "metrics.jsonl") if "loss" in x] for f in (folder, plain)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.01)
    assert results["heldout_loss"] == pytest.approx(expected["heldout_loss"], rel=0.01)
    where = "the layers and the head (run.fp8)" if asked is True else "the layers (run.fp8)"
    assert f"products: float8 in {where}" in (folder / "log.txt").read_text()
    assert (folder / "samples/step-000006.md").read_text().startswith("**red**")


@layers
def test_a_plain_loss_leaves_the_head_as_it_is() -> None:
    converted = model(loss_implementation="plain")
    train_in_float8(converted)
    assert converted.chunked_cross_entropy is ChunkedCrossEntropy


def test_without_bfloat16_or_whole_rows_it_is_refused(pretrain: Pretrain) -> None:
    with pytest.raises(InputError, match=r"run.fp8: needs training.bf16: true"):
        pretrain(run__fp8=True)
    with pytest.raises(InputError, match=r"multiple of 16 tokens; data.seq_length is 24"):
        pretrain(run__fp8=True, training__bf16=True, data__seq_length=24)
