"""Documents packed into one row see nothing of each other, whatever the positions and the backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling import modeling_ingot

LENGTHS = (9, 3, 12)


def pack(tokens: Callable[..., torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Documents (1, n), the two rows (2, 24) that hold them in turn and in reverse, and their positions."""
    documents = [tokens(1, length, seed=length) for length in LENGTHS]
    rows = torch.cat([torch.cat(documents, dim=1), torch.cat(documents[::-1], dim=1)])
    positions = [torch.cat([torch.arange(n) for n in order]) for order in (LENGTHS, LENGTHS[::-1])]
    return documents, rows, torch.stack(positions)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "mask_of_ones"])
def test_packed_documents_equal_documents_alone(
    tiny: Callable[..., Any],
    tokens: Callable[..., torch.Tensor],
    kind: dict[str, Any],
    backend: str,
    use_cache: bool | None,
    masked: bool,
) -> None:
    model = tiny(**kind, attn_implementation=backend)
    documents, rows, positions = pack(tokens)
    with torch.no_grad():
        alone = [model(document).logits for document in documents]
        mask = torch.ones_like(rows) if masked else None
        packed = model(rows, attention_mask=mask, position_ids=positions, use_cache=use_cache).logits
        leaking = model(rows).logits
    torch.testing.assert_close(packed[:1], torch.cat(alone, dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed[1:], torch.cat(alone[::-1], dim=1), rtol=0, atol=1e-5)
    assert (packed - leaking).abs().max() > 1e-2


def test_packed_documents_in_bfloat16_on_cpu(tiny: Callable[..., Any], tokens: Callable[..., torch.Tensor]) -> None:
    """Short bfloat16 batches take products instead of SDPA: the same masks must hold there."""
    model = tiny().train()
    documents, rows, positions = pack(tokens)
    changed = rows.clone()
    changed[0, : LENGTHS[0]] = 5
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(rows, position_ids=positions).logits
        after = model(changed, position_ids=positions).logits
        alone = model(documents[1]).logits
    assert torch.equal(before[0, LENGTHS[0] :], after[0, LENGTHS[0] :])
    assert (before[0, : LENGTHS[0]] - after[0, : LENGTHS[0]]).abs().max() > 0.1
    torch.testing.assert_close(before[0, 9:12], alone[0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("window", [{}, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}])
def test_products_equal_sdpa_in_bfloat16(
    tiny: Callable[..., Any],
    tokens: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    window: dict[str, Any],
) -> None:
    model, ids = tiny(**window), tokens(2, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        products = model(ids, use_cache=False).logits
        monkeypatch.setattr(modeling_ingot, "prefers_eager", lambda *_: False)
        sdpa = model(ids, use_cache=False).logits
    torch.testing.assert_close(products, sdpa, rtol=0.05, atol=0.1)


def varlen_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """What a flash kernel does with `cu_seq_lens_q`: attention inside each stretch of the flattened batch."""
    batch, heads, length, width = query.shape
    groups = module.num_key_value_groups
    flat = [x.transpose(1, 2).reshape(batch * length, -1, width).transpose(0, 1) for x in (query, key, value)]
    flat[1:] = [x.repeat_interleave(groups, dim=0) for x in flat[1:]]
    bounds = kwargs["cu_seq_lens_q"].tolist()
    parts = [
        F.scaled_dot_product_attention(*(x[:, start:end] for x in flat), is_causal=True)
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    assert kwargs["max_length_q"] == max(part.shape[1] for part in parts) and mask is None
    return torch.cat(parts, dim=1).transpose(0, 1).reshape(batch, length, heads, width), None


def test_flash_kernels_are_told_where_documents_start(
    tiny: Callable[..., Any], tokens: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library infers documents for a single row only; with several it would let them see each other."""
    model = tiny()
    _, rows, positions = pack(tokens)
    with torch.no_grad():
        expected = model(rows, position_ids=positions).logits
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", varlen_attention)
        model.config._attn_implementation_internal = "flash_attention_2"
        flash = model(rows, position_ids=positions).logits
    torch.testing.assert_close(flash, expected, rtol=0, atol=1e-5)
