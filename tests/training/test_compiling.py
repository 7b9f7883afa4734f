"""`training.torch_compile` compiles the layers one by one, and changes neither numbers nor names."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.recipe import InputError
from ingot.training import compiling
from ingot.training.callbacks import read_metrics
from ingot.training.compiling import Compiling, decide, take_keys
from modeling import IngotConfig, IngotForCausalLM

from .conftest import Pretrain

SAID = "training.torch_compile says so"
Weights = Callable[[Path], dict[str, torch.Tensor]]


def test_upstream_does_not_see_the_keys() -> None:
    values: dict[str, Any] = {"torch_compile": True, "torch_compile_mode": "max-autotune", "bf16": True}
    assert take_keys(values) == (Compiling(True, None, "max-autotune", SAID), {"bf16": True})
    assert take_keys({"torch_compile_backend": "eager"})[0] == Compiling(True, "eager", None, SAID)  # as upstream
    assert take_keys({"torch_compile": False}) == (Compiling(False, None, None, SAID), {})
    assert take_keys({"bf16": True}) == (None, {"bf16": True})


@pytest.mark.parametrize("key", ["torch_compile_backend", "torch_compile_mode"])
def test_what_torch_does_not_know_is_told_before_anything_runs(key: str) -> None:
    with pytest.raises(InputError, match=f"training.{key}: torch knows no 'silly'; there are .*(inductor|default)"):
        take_keys({key: "silly"})


def test_it_is_decided_by_machine_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(compiling, "makes_kernels", lambda device: device.type == "cuda")
    assert decide(None, gpu, 1e18).wanted
    short = decide(None, gpu, 1e16)
    assert not short.wanted and "too short" in short.reason
    assert not decide(None, cpu, 1e20).wanted
    asked = Compiling(True, reason=SAID)
    assert decide(asked, cpu, 1.0) is asked
    monkeypatch.setattr(compiling, "makes_kernels", lambda device: False)
    assert "no triton" in decide(None, gpu, 1e18).reason


def test_a_copy_of_a_compiled_model_has_layers_of_its_own() -> None:
    fields: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = IngotForCausalLM(IngotConfig(**fields, num_attention_heads=2, num_key_value_heads=1))
    compiling.compile_layers(model, Compiling(True, "eager"))
    other, ids = copy.deepcopy(model), torch.arange(8)[None]
    expected = model(ids).logits
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not other(ids).logits.any()
    torch.testing.assert_close(model(ids).logits, expected)


@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # inductor compiles for half a minute
def test_compiled_layers_train_the_same_model(backend: str, pretrain: Pretrain, weights: Weights) -> None:
    changes: dict[str, Any] = {"training__torch_compile": True, "training__torch_compile_backend": backend}
    compiled, results = pretrain("compiled", run__sample_prompts=["red"], **changes)
    plain, expected = pretrain("plain", run__sample_prompts=["red"])
    assert "layers: compiled one by one: training.torch_compile says so" in (compiled / "log.txt").read_text()
    assert "layers: not compiled: a CPU gains nothing by it" in (plain / "log.txt").read_text()
    assert weights(compiled).keys() == weights(plain).keys()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], tensor, rtol=1e-4, atol=1e-5)
    assert results["heldout_loss"] == pytest.approx(expected["heldout_loss"], abs=1e-5)
    losses = [
        [line["loss"] for line in read_metrics(f / "metrics.jsonl") if "loss" in line] for f in (compiled, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (compiled / "samples/step-000012.md").read_text().startswith("**red**")
