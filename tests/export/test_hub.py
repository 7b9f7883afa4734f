"""What is written into a Hub folder, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from ingot.export.hub import save_hub_folder, uses_remote_code
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError

from .conftest import make_model, save_hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder, saved from a model as training leaves it."""
    source = save_hub(
        tmp_path_factory.mktemp("source"), make_model(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    )
    target = tmp_path_factory.mktemp("target")
    save_hub_folder(load_model(source), load_tokenizer(source), target)
    return target


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def test_the_folder_is_complete(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "modeling_ingot.py", "configuration_ingot.py",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert set(read(saved / "config.json")["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert uses_remote_code(saved)


def test_the_cache_is_on_and_text_ends_at_either_stop_token(saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    end_of_turn, end_of_text, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|pad|>"])
    generation = read(saved / "generation_config.json")
    assert generation["eos_token_id"] == [end_of_turn, end_of_text] and generation["pad_token_id"] == pad
    config = read(saved / "config.json")
    assert config["use_cache"] is True and generation["use_cache"] is True
    assert config["pad_token_id"] == pad != tokenizer.eos_token_id


def test_older_readers_find_names_that_they_know(saved: Path) -> None:
    config = read(saved / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in config and "<|im_start|>" in config["additional_special_tokens"]
    assert config["chat_template"] == (saved / "chat_template.jinja").read_text()
    assert read(saved / "config.json")["rope_theta"] == 5e5
    assert AutoConfig.from_pretrained(saved).rope_parameters["rope_theta"] == 5e5


def test_the_tokenizer_reads_and_writes_as_before(saved: Path, tmp_path: Path) -> None:
    before, after = load_tokenizer(save_hub(tmp_path, make_model())), load_tokenizer(saved)
    text, turn = "free people 日本 🙂<|im_end|>", [{"role": "user", "content": "at sea"}]
    assert before(text)["input_ids"] == after(text)["input_ids"]
    assert before.apply_chat_template(turn, tokenize=False) == after.apply_chat_template(turn, tokenize=False)
    assert set(before.all_special_tokens) == set(after.all_special_tokens)


def test_a_tied_head_is_written_once_and_an_untied_one_in_full(tmp_path: Path, saved: Path) -> None:
    from safetensors import safe_open

    source = save_hub(tmp_path / "source", make_model(tie_word_embeddings=False))
    save_hub_folder(load_model(source), load_tokenizer(source), tmp_path / "target")
    for folder, tied in ((saved, True), (tmp_path / "target", False)):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" not in file.keys()) is tied  # noqa: SIM118 - not a dict


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_hub(tmp_path, make_model()))
    with pytest.raises(InputError, match="run.from: the tokenizer has ids up to 319 and the model 256 embedding rows"):
        save_hub_folder(make_model(vocab_size=256), tokenizer, tmp_path / "export")
    assert not (tmp_path / "export").exists()
