"""Configs, tokenizers and chat templates that were edited by hand are refused by the file that is wrong."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ingot import tokenizer_files
from ingot.faults.toys import make_start
from ingot.loading import check_checkpoint, load_config, load_model, load_tokenizer
from ingot.recipe import InputError


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub folder without a record."""
    return make_start(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture
def folder(start: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(start, tmp_path / "model"))


def edit(path: Path, drop: str | None = None, **changes: Any) -> None:
    tree = json.loads(path.read_text())
    if drop is not None:
        del tree[drop]
    path.write_text(json.dumps(tree | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sise": 32}, "hidden_sise: no such key; did you mean 'hidden_size'"),
        ({"xyzzy_q": 1}, "xyzzy_q: no such key; take it out"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected a whole number from 1 to 10000"),
        ({"num_hidden_layers": 9000, "layer_types": None}, "9000 layers, but the weights are"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: expected a whole number"),
        ({"vocab_size": 10**12}, "not of the shape that config.json says"),
        ({"hidden_size": 48}, "not of the shape that config.json says"),
        ({"eos_token_id": 384}, "eos_token_id: 384 is no token id of a vocabulary of 384 rows"),
        ({"model_type": "llama"}, "model_type: 'llama' does not go with architectures: IngotForCausalLM"),
        ({"rms_norm_eps": "small"}, "cannot be used"),
    ],
)
def test_a_config_that_was_edited(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / "config.json", **changes)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^{folder}/[\w.]+: .*{message}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 10


def test_token_ids_of_generation_config_are_looked_at(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[0, 999])
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id: 999 is no token id"):
        load_config(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"eos_token": "<|endoftexts|>"}, r"eos_token: '<\|endoftexts\|>' is no token of"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<|new|>"]}, r"special token '<\|new\|>' is none of"),
        ("tokenizer_config.json", {"chat_template": "other"}, "another chat template than the one in"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "the tokenizer cannot be loaded"),
    ],
)
def test_a_tokenizer_that_was_edited(file: str, change: dict[str, Any], message: str, folder: Path) -> None:
    edit(folder / file, **change)
    with pytest.raises(InputError, match=rf"^{folder}/[\w.]+: .*{message}") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_lost_a_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: missing"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{% for m in messages %}", "line 2 of the chat template: Unexpected end of template"),
        ("{{ ''.__class__.__mro__ }}", "the chat template was stopped: .*unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "the chat template was stopped: Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
    ],
)
def test_a_chat_template_that_must_not_be_used(
    template: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_files, "TEMPLATE_SECONDS", 0.5)
    edit(folder / "tokenizer_config.json", drop="chat_template")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=rf"chat_template\.jinja.*{message}") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_template_that_wants_other_turns_is_a_template(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", drop="chat_template")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('begin with a system message') }}")
    assert load_tokenizer(folder).chat_template


def test_a_checkpoint_with_right_checksums_and_wrong_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    check_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight is missing from the weights"):
        check_checkpoint(folder)
    save_file({**tensors, "model.norm.weight": torch.full((32,), float("inf"))}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: model\.norm\.weight is not finite"):
        check_checkpoint(folder)
    save_file({**tensors, "model.norm.weight": torch.ones(32).half()}, folder / "model.safetensors")
    with pytest.raises(
        InputError, match=r"model\.norm\.weight is stored as F16, but config\.json says torch\.float32"
    ):
        load_model(folder)
