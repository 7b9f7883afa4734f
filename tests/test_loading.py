"""A folder loads as it was saved, and every way in which it can be broken is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingot.loading import check_files, check_model, load_model, load_tokenizer
from ingot.recipe import InputError
from ingot.runs import describe_file
from ingot.tokenization.build import save_tokenizer, train_bpe
from modeling import IngotConfig, IngotForCausalLM


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished pretrain run with a tiny tied model."""
    folder = tmp_path / "pretrain"
    torch.manual_seed(0)
    config = IngotConfig(
        vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip
    IngotForCausalLM(config).save_pretrained(folder / "model")
    save_tokenizer(train_bpe(iter(["free people at sea and at work"] * 3), 262, "qwen2"), folder / "model", "qwen2")
    files = {str(p.relative_to(folder)): describe_file(p) for p in (folder / "model").iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"stage": "pretrain", "files": files}))
    return folder


@pytest.fixture
def hub_folder(run_folder: Path) -> Path:
    """The same model as a Hub folder, which has no manifest."""
    return (run_folder / "model").rename(run_folder / "hub")


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Edits the tensors of a Hub folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_a_run_folder_and_its_model_folder_load(run_folder: Path) -> None:
    for path in (run_folder, run_folder / "model"):
        model = load_model(path)
        assert type(model) is IngotForCausalLM and not model.training and model.dtype == torch.float32
        assert load_tokenizer(path)("free")["input_ids"]
    assert load_model(run_folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "edit,message",
    [
        (lambda t: t["model.norm.weight"].fill_(float("nan")), r"model\.norm\.weight is not finite"),
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing from the weights"),
        (lambda t: t.update(bogus=torch.zeros(2)), "bogus is unknown to the architecture"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight is not of the shape"),
        (lambda t: t.update({"lm_head.weight": torch.ones(300, 8)}), "tie_word_embeddings: true; set it to false"),
    ],
)
def test_wrong_tensors_are_named(hub_folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(change(hub_folder, edit))


def test_a_changed_or_missing_file_of_a_run_is_named(run_folder: Path) -> None:
    weights = run_folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not as it was written .*ingot verify --accept"):
        load_model(run_folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        check_files(run_folder / "model")


def test_truncated_files_are_named(hub_folder: Path) -> None:
    for name, load in (("model.safetensors", load_model), ("tokenizer.json", load_tokenizer)):
        (hub_folder / name).write_bytes((hub_folder / name).read_bytes()[:50])
        with pytest.raises(InputError, match=rf"^{hub_folder / name}: .*(restore it|cannot be read)"):
            load(hub_folder)


def test_looking_at_a_model_is_no_business_of_all_processes(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # under ZeRO-3 upstream's from_config has every process share out the weights, and only the first one looks
    def share_out(*_: Any, **__: Any) -> None:
        raise AssertionError("from_config was called")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", share_out)
    assert check_model(hub_folder).vocab_size == 300
