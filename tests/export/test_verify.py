"""The clean process sees what the source sees, and every difference is told."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from ingot.export import verify
from ingot.export.hub import save_hub_folder
from ingot.export.probe import probe
from ingot.export.verify import differences, probe_in_clean_process
from ingot.loading import load_model, load_tokenizer

from .conftest import make_model, save_hub


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model as training leaves it."""
    return save_hub(tmp_path_factory.mktemp("source"), make_model(tie_word_embeddings=False))


def test_one_changed_weight_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_hub_folder(load_model(source), load_tokenizer(source), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][7, 3] += 1e-4
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(verify, "probe_in_clean_process", lambda folder: probe(folder, trust_remote_code=False))
    with pytest.raises(RuntimeError, match="is not equal to .*logits of prompt 1 differ by up to"):
        verify.verify_export(source, tmp_path)


def test_a_folder_that_needs_ingot_does_not_load_in_the_clean_process(source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "copy")
    code = folder / "modeling_ingot.py"
    code.write_text(code.read_text() + "\nfrom ingot.runs import write_json\n")
    with pytest.raises(RuntimeError, match="does not load in a clean process"):
        probe_in_clean_process(folder)


def test_a_stock_architecture_needs_no_code(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
    )  # fmt: skip
    source = save_hub(tmp_path / "source", Qwen3ForCausalLM(config))
    save_hub_folder(load_model(source), load_tokenizer(source), tmp_path / "target")
    assert not list((tmp_path / "target").glob("*.py"))
    assert list(differences(probe(source, False), probe(tmp_path / "target", False))) == []


def test_every_kind_of_difference_is_told(source: Path) -> None:
    expected = probe(source, trust_remote_code=False)
    assert list(differences(expected, expected)) == []
    changes: dict[str, Any] = {
        "greedy_text": ["a", "b", "c"],
        "chat_token_ids": [1],
        "logits": [expected["logits"][0][:, 1:], *expected["logits"][1:]],
        "hidden_states": [*expected["hidden_states"][:2], torch.full_like(expected["hidden_states"][2], float("nan"))],
    }
    told = list(differences(expected, expected | changes))
    assert [line.split(" differ")[0].split(" have")[0] for line in told] == [
        "chat token ids", "greedy text", "logits of prompt 1", "hidden states of prompt 3",
    ]  # fmt: skip
