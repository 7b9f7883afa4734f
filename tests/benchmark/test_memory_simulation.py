"""The closed-form estimate of memory against training steps whose bytes are counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ingot.benchmark.memory_cases import CASES, Case, make_trainer
from ingot.benchmark.memory_simulation import simulate
from ingot.benchmark.tracking import LiveBytes
from ingot.planning.architecture import architecture_of_config
from ingot.planning.memory_estimate import WORKSPACES, estimate_memory

GPU_12GB = 12 * 2**30
DENSE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
LARGE_TABLE = {**DENSE, "vocab_size": 151_936}
UNTIED = {**DENSE, "tie_word_embeddings": False, "qk_norm": False}
EXPERTS = {**DENSE, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 384}


def case(values: dict[str, Any], micro_batch: int = 4, seq_length: int = 256, **changes: Any) -> Case:
    return Case("small", micro_batch, seq_length, values=values, compiled=False, **changes)


@pytest.mark.parametrize(
    "one",
    [
        case(DENSE, 16),
        case(DENSE, 16, gradient_checkpointing=True),
        case(DENSE, 16, bf16=False),
        case(DENSE, 1, packed=False, optimizer="muon"),
        case(UNTIED, 8, gradient_accumulation_steps=2, optimizer="adamw_torch"),
        case(LARGE_TABLE, 4),
        case(LARGE_TABLE, 1, seq_length=128),
        case(LARGE_TABLE, 4, loss_implementation="plain", gradient_checkpointing=True),
        case(EXPERTS, 16),
    ],
    ids=lambda one: f"{one.config.vocab_size}-{one.name}",
)
def test_estimate_is_the_simulated_peak(one: Case) -> None:
    estimate = estimate_memory(architecture_of_config(one.config), one.setup, GPU_12GB)
    peak = simulate(one, GPU_12GB)["peak_bytes"]
    assert estimate.peak_bytes - WORKSPACES == pytest.approx(peak, rel=0.03)


def test_weights_and_states_are_counted_exactly() -> None:
    one = case(DENSE)
    architecture = architecture_of_config(one.config)
    found = simulate(one, GPU_12GB)
    totals = estimate_memory(architecture, one.setup, GPU_12GB).totals
    rounding = 512 * 200  # the allocator's, on some 50 tensors and their states
    assert 0 <= found["weights"] - totals["weights"] < rounding
    assert 0 <= found["kept_bytes"] - totals["weights"] - totals["optimizer_states"] < 3 * rounding
    assert totals["weights"] == 4 * architecture.total


def test_gradients_of_a_shared_weight_are_added_in_place() -> None:
    size = 4 * 2**20
    with FakeTensorMode(), LiveBytes() as live:
        weight, total = torch.nn.Parameter(torch.zeros(1024, 1024)), torch.zeros(())
        for _ in range(2):
            total = total + (2 * weight).sum()
        total.backward()
        assert 2 * size <= live.bytes < 2 * size + 4096
        assert 3 * size <= live.peak < 3 * size + 4096  # the weight and two gradients, and no third for their sum


def test_tracker_frees_what_nobody_holds() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(1000)  # 4000 bytes, rounded up to 4096
        torch.zeros(10_000)
        view = kept[10:]
        assert live.bytes == 4096
        del kept
        assert live.bytes == 4096
        del view
    assert live.bytes == 0
    assert live.peak == 4096 + 40_448


def test_cases_span_what_the_table_needs() -> None:
    assert len(CASES) >= 12
    assert len({one.name for one in CASES}) == len(CASES)
    assert {one.gradient_checkpointing for one in CASES} == {True, False}
    assert {"adamw_torch_fused", "muon", "adamw_8bit"} <= {one.optimizer for one in CASES}
    assert len({one.model for one in CASES}) >= 6
    for one in CASES:
        assert one.config.vocab_size > 0


def test_the_same_case_trains_for_real(tmp_path: Path) -> None:
    one = case(DENSE, 2, 64, optimizer="muon", gradient_accumulation_steps=2)
    trainer = make_trainer(one, str(tmp_path), 1, use_cpu=True)
    trainer.train()
    assert trainer.state.global_step == 1
    block = trainer.train_dataset[0]
    assert block["position_ids"].tolist().count(0) == 4  # documents in a packed block
