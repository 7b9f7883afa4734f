"""The head's loss: every implementation equals the plain one, and micro-batches add up to the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling import modeling_ingot

Make = Callable[..., Any]
IMPLEMENTATIONS = [
    "chunked",
    pytest.param(
        "fused",
        marks=pytest.mark.skipif(
            not modeling_ingot.FUSED_AVAILABLE, reason="linear_cross_entropy came with torch 2.13"
        ),
    ),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of logits at a time, so that a tiny batch needs several chunks and a rest."""
    monkeypatch.setattr(modeling_ingot, "CPU_CHUNK_BYTES", 7 * 4 * 96)
    monkeypatch.setattr(modeling_ingot, "MIN_CHUNK_ROWS", 1)


def loss_and_gradients(model: Any, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def masked(ids: torch.Tensor) -> torch.Tensor:
    """Labels with uneven holes: more in the later rows."""
    labels = ids.clone()
    for row in range(len(labels)):
        labels[row, : 2 * row] = -100
    return labels


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_items", [None, 40])
@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"logit_scale": 0.5}])
def test_equals_plain(
    tiny: Make, tokens: Make, implementation: str, num_items: int | None, changes: dict[str, Any]
) -> None:
    ids = tokens(4, 12)
    inputs = {"input_ids": ids, "labels": masked(ids), "num_items_in_batch": num_items}
    plain, expected = loss_and_gradients(tiny(**changes, loss_implementation="plain").train(), **inputs)
    model = tiny(**changes, loss_implementation=implementation).train()
    assert model(**inputs).logits is None
    loss, gradients = loss_and_gradients(model, **inputs)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_plain_is_cross_entropy_of_the_next_token(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(loss_implementation="plain").train(), tokens(2, 9)
    output = model(ids, labels=ids)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, expected)


def test_chunked_in_bfloat16(tiny: Make, tokens: Make) -> None:
    ids = tokens(4, 12)
    results = {}
    for implementation in ("plain", "chunked"):
        model = tiny(loss_implementation=implementation, tie_word_embeddings=True).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results[implementation] = loss_and_gradients(model, input_ids=ids, labels=ids)
    assert results["chunked"][0].dtype == torch.float32
    torch.testing.assert_close(results["chunked"][0], results["plain"][0], rtol=1e-3, atol=1e-3)
    for name, gradient in results["chunked"][1].items():
        difference = (gradient - results["plain"][1][name]).norm() / gradient.norm()
        assert difference < 0.03, (name, difference)


def test_the_kernels_of_a_gpu_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile is given, run as it is."""
    monkeypatch.setattr(modeling_ingot, "compiled", lambda function: function)
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(6, 40, generator=generator)
    targets, valid = (
        torch.randint(40, (6, 1), generator=generator),
        torch.tensor([[1], [1], [0], [1], [0], [1]]).bool(),
    )
    loss, gradient = modeling_ingot.loss_and_gradient(logits, targets, valid)
    other, in_place = modeling_ingot.loss_and_gradient_by_kernels(logits, targets, valid)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(in_place, gradient, rtol=1e-5, atol=1e-6)
    assert in_place is logits  # no second matrix of this size


def test_a_head_of_another_size_is_read_as_before(tiny: Make, tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library puts a plain linear module in the head's place when the vocabulary grows."""
    model = tiny(loss_implementation="chunked").train()
    model.resize_token_embeddings(128)
    assert type(model.lm_head) is nn.Linear
    ids = tokens(4, 12)
    expected = model(ids, labels=ids, skip_logits=False).loss
    monkeypatch.setattr(modeling_ingot, "checkpointed_cross_entropy", lambda *_: pytest.fail("called in chunks"))
    torch.testing.assert_close(model(ids, labels=ids).loss, expected)


def test_the_whole_model_compiles_in_one_graph(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(loss_implementation="chunked").train(), tokens(2, 12)
    results = []
    for called in (model, torch.compile(model, backend="eager", fullgraph=True)):
        loss = called(ids, labels=ids).loss
        model.zero_grad()
        loss.backward()
        results.append((loss, *(parameter.grad for parameter in model.parameters())))
    torch.testing.assert_close(results[1], results[0])


def test_a_head_that_must_be_called(tiny: Make, tokens: Make) -> None:
    """Adapters and sharded heads are not read but called, chunk by chunk, with the same result."""

    class WrappedHead(nn.Linear):
        calls = 0

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            WrappedHead.calls += 1
            return super().forward(hidden_states)

    ids = tokens(4, 12)
    plain, expected = loss_and_gradients(tiny(loss_implementation="plain").train(), input_ids=ids, labels=ids)
    model = tiny(loss_implementation="chunked").train()
    head = WrappedHead(32, 96, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    loss, gradients = loss_and_gradients(model, input_ids=ids, labels=ids)
    assert WrappedHead.calls == 2 * 7  # 48 rows in chunks of 7, again in backward
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_frozen_head(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(loss_implementation="chunked").train(), tokens(2, 12)
    model.lm_head.requires_grad_(False)
    _, gradients = loss_and_gradients(model, input_ids=ids, labels=ids)
    model.config.loss_implementation = "plain"
    _, expected = loss_and_gradients(model, input_ids=ids, labels=ids)
    assert "lm_head.weight" not in gradients
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-6)


def test_chunked_refuses_a_second_backward(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(loss_implementation="chunked").train(), tokens(2, 12)
    loss = model(ids, labels=ids).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="plain"):
        loss.backward()


def test_auto_goes_by_the_size_of_the_logits(tiny: Make, tokens: Make) -> None:
    model = tiny().train()
    few, many = tokens(1, 7), tokens(1, 8)
    assert model(few, labels=few).logits is not None
    assert model(many, labels=many).logits is None


@pytest.mark.parametrize("implementation", ["auto", "plain", "chunked"])
def test_who_gets_logits(tiny: Make, tokens: Make, implementation: str) -> None:
    model, ids = tiny(loss_implementation=implementation), tokens(2, 12)
    output = model(ids, labels=ids)
    assert output.logits.shape == (2, 12, 96)
    with torch.no_grad():
        skipped = model(ids, labels=ids, skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, output.loss)
    model.train()
    assert model(ids, labels=ids, skip_logits=False).logits.shape == (2, 12, 96)
    assert model(ids).logits.shape == (2, 12, 96)


def test_fused_is_refused_where_torch_has_none(tiny: Make, tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_ingot, "FUSED_AVAILABLE", False)
    model, ids = tiny(loss_implementation="fused").train(), tokens(2, 12)
    with pytest.raises(ValueError, match="fused.*torch 2.13.*chunked"):
        model(ids, labels=ids)


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
@pytest.mark.parametrize("router_aux_loss_coef", [None, 0.5])
def test_one_batch_of_eight_equals_eight_of_one(
    tiny: Make, tokens: Make, implementation: str, router_aux_loss_coef: float | None
) -> None:
    """Also with experts, up to the load-balancing loss, which is not a sum over tokens."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    extra = {} if router_aux_loss_coef is None else {**experts, "router_aux_loss_coef": router_aux_loss_coef}
    model = tiny(loss_implementation=implementation, **extra).train()
    ids = tokens(8, 12)
    labels = masked(ids).clamp(max=95)
    count = (labels[:, 1:] != -100).sum()
    whole = {"input_ids": ids, "labels": labels, "num_items_in_batch": count}
    if router_aux_loss_coef is not None:
        aux = [model(ids[i : i + 1], labels=labels[i : i + 1], output_router_logits=True).aux_loss for i in range(8)]
        shares = [(labels[i, 1:] != -100).sum() / count for i in range(8)]
        expected_aux = sum(0.5 * share * loss for share, loss in zip(shares, aux, strict=True))
    loss, gradients = loss_and_gradients(model, **whole)
    model.zero_grad()
    total = torch.zeros(())
    for row in range(8):
        one = model(ids[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=count).loss
        one.backward()
        total += one.detach()
    if router_aux_loss_coef is not None:
        without = model(ids, labels=labels, num_items_in_batch=count, output_router_logits=False).loss
        torch.testing.assert_close(total - without, expected_aux, rtol=1e-4, atol=1e-5)
        return
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    tiny: Make, tokens: Make, kind: dict[str, Any], reentrant: bool
) -> None:
    ids, model = tokens(2, 12), tiny(**kind).train()
    loss, expected = loss_and_gradients(model, input_ids=ids, labels=ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    again, gradients = loss_and_gradients(model, input_ids=ids, labels=ids)
    torch.testing.assert_close(again, loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name])
