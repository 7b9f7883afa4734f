"""An adapter that is merged gives the model that was trained, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from ingot.loading import load_model
from ingot.recipe import InputError
from ingot.training import adapters, sft
from ingot.training.adapters import AdapterModel

from .finetune_toys import make_start, sft_recipe, write_rows

CPU = torch.device("cpu")
IDS = [[1, 70, 80, 90, 2, 202, 100, 110]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def with_random_adapter(start: Path, section: AdapterModel) -> Any:
    """The start model with an adapter whose effect is not zero."""
    torch.manual_seed(0)
    model = get_peft_model(adapters.load_start_model(start, section, CPU), adapters.lora_config(section))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_lora_trains_few_weights_and_merges_to_the_same_model(start: Path, rows: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "sft"
    results = sft.run(sft_recipe(run_dir, start, rows, {"adapter": "lora", "r": 4}, learning_rate=3e-2))
    assert results["loss_after"] < results["loss_before"] - 0.1
    assert results["merge_max_difference"] < 1e-4
    trained = PeftModel.from_pretrained(load_model(start), str(run_dir / "adapter"))
    merged = load_model(run_dir)
    expected, got = adapters.probe_logits(trained, IDS), adapters.probe_logits(merged, IDS)
    assert adapters.check_equal(expected, got, "float32", "merged") < 1e-4
    assert float((got[0] - adapters.probe_logits(load_model(start), IDS)[0]).abs().max()) > 0.01
    before, after = load_file(start / "model.safetensors"), load_file(run_dir / "model/model.safetensors")
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_qlora_trains_on_four_bits_and_is_merged_into_those(start: Path, rows: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "sft"
    section = {"adapter": "qlora", "r": 4}
    results = sft.run(
        sft_recipe(run_dir, start, rows, section, learning_rate=3e-2, eval_strategy="steps", eval_steps=4)
    )
    assert results["loss_after"] < results["loss_before"] - 0.1
    assert results["merge_max_difference"] < 1e-4
    merged = load_model(run_dir)
    assert merged.dtype == torch.float32
    base = adapters.load_start_model(start, AdapterModel.model_validate(section), CPU)
    trained = PeftModel.from_pretrained(base, str(run_dir / "adapter"))
    adapters._compute_in_float32(trained)
    expected, got = adapters.probe_logits(trained, IDS), adapters.probe_logits(merged, IDS)
    assert adapters.check_equal(expected, got, "float32", "merged") < 1e-4
    wrong = PeftModel.from_pretrained(load_model(start), str(run_dir / "adapter"))  # onto the original weights
    with pytest.raises(RuntimeError, match="logits differ"):
        adapters.check_equal(expected, adapters.probe_logits(wrong, IDS), "float32", "merged")


def test_evaluating_a_four_bit_model_leaves_its_gradients_alone(start: Path) -> None:
    model = with_random_adapter(start, AdapterModel.model_validate({"adapter": "qlora", "r": 4}))
    ids = torch.tensor(IDS)

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(ids)
    assert torch.equal(gradient(), before)


def test_a_merge_that_changes_the_model_is_refused(start: Path, tmp_path: Path) -> None:
    section = AdapterModel.model_validate({"adapter": "lora", "r": 4})
    model = with_random_adapter(start, section)
    merged, difference = adapters.merge_adapter(model, tmp_path / "adapter", start, section, IDS)
    assert difference < 1e-5
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    other = make_start(tmp_path / "other", initializer_range=0.03)
    with pytest.raises(RuntimeError, match="logits differ from those of the trained model by .*; not kept"):
        adapters.merge_adapter(model, tmp_path / "adapter", other, section, IDS)


def test_untied_models_stay_untied(tmp_path: Path) -> None:
    section = AdapterModel.model_validate({"adapter": "lora", "r": 4})
    start = make_start(tmp_path / "start", tie_word_embeddings=False)
    merged, _ = adapters.merge_adapter(with_random_adapter(start, section), tmp_path / "adapter", start, section, IDS)
    merged.save_pretrained(tmp_path / "merged")
    head = load_file(tmp_path / "merged/model.safetensors")["lm_head.weight"]
    assert torch.equal(head, load_file(start / "model.safetensors")["lm_head.weight"])


def test_differences_beyond_rounding_and_nan_are_refused() -> None:
    ten = [torch.full((2, 3), 10.0)]
    assert adapters.check_equal(ten, [ten[0] + 5e-4], "float32", "x") == pytest.approx(5e-4, rel=0.01)
    for wrong in (2e-3, float("nan")):
        with pytest.raises(RuntimeError, match="x: logits differ"):
            adapters.check_equal(ten, [ten[0] + wrong], "float32", "x")


def test_target_modules_that_are_not_there_are_refused(start: Path) -> None:
    model = load_model(start)
    section = AdapterModel.model_validate({"adapter": "lora", "target_modules": ["q_proj", "kv_proj"]})
    with pytest.raises(InputError, match="no linear layer named kv_proj; .*down_proj, gate_proj, k_proj"):
        adapters.check_target_modules(model, section)
    adapters.check_target_modules(model, AdapterModel.model_validate({"adapter": "lora"}))


def test_weights_that_are_missing_are_refused_for_four_bits_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    start = make_start(tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    for kind in ("none", "qlora"):
        with pytest.raises(InputError, match="up_proj"):
            adapters.load_start_model(start, AdapterModel.model_validate({"adapter": kind}), CPU)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"r": 4, "lora_alpha": 8}, "model.lora_alpha: has no effect with adapter 'none'; set model.adapter to lora"),
        (
            {"adapter": "lora", "bnb_4bit_quant_type": "fp4"},
            "no effect with adapter 'lora'; set model.adapter to qlora",
        ),
        ({"adapter": "qlora", "r": 4}, None),
    ],
)
def test_keys_that_the_adapter_would_ignore_are_refused(section: dict[str, Any], message: str | None) -> None:
    problems = list(AdapterModel.model_validate(section).problems())
    assert (message is None and not problems) or message in problems[0]
