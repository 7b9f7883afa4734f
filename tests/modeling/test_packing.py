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


def bounds(positions: torch.Tensor, spare: int = 0) -> dict[str, Any]:
    """Where the documents begin in the flattened rows, and documents of no length at the end."""
    begins = (positions.flatten() == 0).nonzero().flatten()
    lengths = F.pad(begins, (0, 1 + spare), value=positions.numel()).int()
    return {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 24, "max_length_k": 24}


def one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begins: torch.Tensor, *_: Any, **kwargs: Any
) -> torch.Tensor:
    """What torch's varlen kernel computes on (N, heads, width), with SDPA."""
    left, right = kwargs["window_size"]
    assert right == 0
    results = []
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        parts = [states[begin:end].transpose(0, 1) for states in (query, key, value)]
        seen = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        seen = seen if left < 0 else seen.triu(-left)
        if end > begin:
            out = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=kwargs["scale"], enable_gqa=True)
            results.append(out.transpose(0, 1))
    return torch.cat(results)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_embedding_type": "learned"},
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ],
)
def test_documents_told_apart_by_where_they_begin(
    tiny: Callable[..., Any],
    tokens: Callable[..., torch.Tensor],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU in bfloat16: a kernel that takes the beginnings, and no mask is made."""
    model = tiny(**changes).train()
    _, rows, positions = pack(tokens)
    expected = model(rows, labels=rows, position_ids=positions, skip_logits=False)
    monkeypatch.setattr(modeling_ingot, "FLASH_VARLEN", one_by_one)
    monkeypatch.setattr(modeling_ingot.IngotModel, "_backend", lambda *_: "varlen")
    for maker in ("create_causal_mask", "create_sliding_window_causal_mask"):
        monkeypatch.setattr(modeling_ingot, maker, lambda **_: pytest.fail("a mask was made"))
    found = model(rows, labels=rows, position_ids=positions, skip_logits=False, **bounds(positions, spare=2))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss)


def test_the_kernel_is_chosen_where_it_can_be(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_ingot, "FLASH_VARLEN", one_by_one)

    class States:
        """Two rows of embeddings on a GPU, as far as the choice looks at them."""

        device, dtype = torch.device("cuda"), torch.bfloat16

        def __len__(self) -> int:
            return 2

    several, single = ({"cu_seq_lens_q": torch.arange(n), "max_length_q": 9} for n in (5, 3))

    def chosen(given: dict[str, Any], dtype: torch.dtype = torch.bfloat16, **changes: Any) -> str:
        states: Any = States()
        states.dtype = dtype
        return tiny(**{"head_dim": 8, **changes}).train().model._backend(states, given)

    assert chosen(several) == "varlen"
    assert chosen(single) == chosen({}) == chosen(several, torch.float32) == "sdpa"  # float32 has no such kernel
    assert chosen(several, attention_dropout=0.1) == "sdpa"
    assert chosen(several, position_embedding_type="alibi") == "sdpa"
    assert chosen(several, attn_implementation="eager") == "eager"


def test_beginnings_alone_keep_documents_apart(tiny: Callable[..., Any], tokens: Callable[..., torch.Tensor]) -> None:
    """As upstream's flattening collator may give them: without position ids."""
    model = tiny().train()
    _, rows, positions = pack(tokens)
    expected = model(rows, labels=rows, position_ids=positions).loss
    assert torch.equal(model(rows, labels=rows, **bounds(positions, spare=2)).loss, expected)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_beginnings_do_not_change_what_masks_say(
    tiny: Callable[..., Any], tokens: Callable[..., torch.Tensor], kind: dict[str, Any], backend: str
) -> None:
    model = tiny(**kind, attn_implementation=backend).train()
    _, rows, positions = pack(tokens)
    whole = torch.arange(rows.shape[1]).expand(2, -1)
    for places in (positions, whole):
        plain = model(rows, labels=rows, position_ids=places).loss
        told = model(rows, labels=rows, position_ids=places, **bounds(places)).loss
        assert torch.equal(plain, told)


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
