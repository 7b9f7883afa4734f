"""What only a GPU can show: bfloat16 losses, masks of the fast backends, compiled graphs, and memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from modeling import modeling_ingot

Make = Callable[..., Any]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
LENGTHS = (40, 7, 81)
WIDE = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 256}
BACKENDS = [
    "eager",
    "flex_attention",
    pytest.param(
        "flash_attention_2", marks=pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is missing")
    ),
]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.cuda.empty_cache()


def packed(tokens: Make) -> dict[str, torch.Tensor]:
    """Two rows of three documents, the second in reverse order."""
    positions = [torch.cat([torch.arange(n) for n in order]) for order in (LENGTHS, LENGTHS[::-1])]
    ids = tokens(2, sum(LENGTHS)).cuda()
    return {"input_ids": ids, "labels": ids, "position_ids": torch.stack(positions).cuda()}


def loss_and_gradients(
    model: Any, autocast: bool = True, **inputs: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    loss.backward()
    gradients = {name.removeprefix("_orig_mod."): p.grad.float().clone() for name, p in model.named_parameters()}
    return loss.detach(), gradients


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], share: float = 0.03) -> None:
    """Gradients differ by less than `share` of their length; bfloat16 sends a few tokens to other experts."""
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() < share * wanted[name].norm() + 1e-6, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_agree_on_packed_documents(tiny: Make, tokens: Make, backend: str) -> None:
    inputs = packed(tokens)
    loss, wanted = loss_and_gradients(tiny(**WIDE).cuda().train(), **inputs)
    other, found = loss_and_gradients(tiny(**WIDE, attn_implementation=backend).cuda().train(), **inputs)
    torch.testing.assert_close(other, loss, rtol=2e-3, atol=2e-3)
    assert_near(found, wanted)


def bounds(position_ids: torch.Tensor) -> dict[str, Any]:
    """What the collator adds for kernels without masks, with two documents of no length at the end."""
    begins = (position_ids.flatten() == 0).nonzero().flatten()
    lengths = torch.nn.functional.pad(begins, (0, 3), value=position_ids.numel()).int()
    return {"cu_seq_lens_q": lengths, "max_length_q": position_ids.shape[1]}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}])
def test_documents_are_kept_apart_by_where_they_begin(
    tiny: Make, tokens: Make, changes: dict[str, Any], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = packed(tokens)
    loss, wanted = loss_and_gradients(tiny(**WIDE, **changes).cuda().train(), **inputs)
    calls = count_calls(monkeypatch, "varlen_attention")
    model = tiny(**WIDE, **changes).cuda().train()
    if compiled:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    other, found = loss_and_gradients(model, **inputs, **bounds(inputs["position_ids"]))
    assert compiled or len(calls) == 2
    torch.testing.assert_close(other, loss, rtol=2e-3, atol=2e-3)
    assert_near(found, wanted, share=0.06 if compiled else 0.03)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    calls, function = [], getattr(modeling_ingot, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(modeling_ingot, name, counted)
    return calls


def test_chunked_loss_equals_plain(tiny: Make, tokens: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = packed(tokens)
    loss, wanted = loss_and_gradients(tiny(**WIDE, loss_implementation="plain").cuda().train(), **inputs)
    model = tiny(**WIDE, loss_implementation="chunked").cuda().train()
    monkeypatch.setattr(model, "_chunk_rows", lambda: 50)
    other, found = loss_and_gradients(model, **inputs)
    torch.testing.assert_close(other, loss, rtol=1e-3, atol=1e-3)
    assert_near(found, wanted)


def test_chunked_loss_never_holds_all_logits(tiny: Make) -> None:
    model = tiny(vocab_size=65536, hidden_size=64, loss_implementation="chunked").cuda().train()
    model._chunk_rows = lambda: 512
    ids = torch.randint(3, 65536, (8, 1024), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(ids, labels=ids).loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.35 * 4 * ids.numel() * 65536  # all float32 logits would be 2 GiB


@pytest.mark.parametrize("changes", [{}, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}])
def test_compiled_training_step(tiny: Make, tokens: Make, changes: dict[str, Any]) -> None:
    inputs = packed(tokens)
    model = tiny(**WIDE, **changes).cuda().train()
    loss, wanted = loss_and_gradients(model, **inputs)
    other, found = loss_and_gradients(torch.compile(model), **inputs)
    torch.testing.assert_close(other, loss, rtol=5e-3, atol=5e-3)
    if changes:
        assert_near(found, wanted, share=0.2)
        return
    _, exact = loss_and_gradients(model, autocast=False, **inputs)
    for name, gradient in exact.items():  # bfloat16 rounds elsewhere where kernels are fused, not more
        assert (found[name] - gradient).norm() < 1.5 * (wanted[name] - gradient).norm() + 1e-6, name


def test_compiled_generation_with_a_static_cache(tiny: Make, tokens: Make) -> None:
    model, ids = tiny(**WIDE).cuda(), tokens(2, 9).cuda()
    settings = {"max_new_tokens": 12, "min_new_tokens": 12}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, cache_implementation="static", **settings), expected)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_in_bfloat16(tiny: Make, tokens: Make, implementation: str) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    inputs = packed(tokens)
    model = tiny(**WIDE, **experts, experts_implementation="eager").cuda().train()
    loss, wanted = loss_and_gradients(model, **inputs)
    model.set_experts_implementation(implementation)
    other, found = loss_and_gradients(model, **inputs)
    torch.testing.assert_close(other, loss, rtol=5e-3, atol=5e-3)
    assert_near(found, wanted, share=0.2)
