"""The check that a tokenizer and a model belong together, and that every stage makes it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ingot.files import sha256_file
from ingot.recipe import InputError
from ingot.tokenization.build import copy_tokenizer
from ingot.vocabulary import Shards, check_pair, embedding_rows, rows_for
from modeling import IngotConfig, IngotForCausalLM

from .tokenization.conftest import folders, tokenizer  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent


def changed(folder: Path, target: Path, **values: Any) -> Any:
    """A tokenizer with another tokenizer_config.json."""
    target.mkdir()
    copy_tokenizer(folder, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return AutoTokenizer.from_pretrained(target)


def test_rows_are_a_multiple_of_128() -> None:
    assert [rows_for(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_a_new_model_has_rows_enough_and_a_multiple_of_128(tokenizer: Any) -> None:  # noqa: F811
    check_pair(tokenizer, 512, "model.vocab_size", new=True)
    check_pair(tokenizer, 640, "model.vocab_size", new=True)  # a recipe may ask for more
    for rows, message in (
        (384, "model.vocab_size: 384 rows are too few for the tokenizer's 512 tokens; set it to 512 or more"),
        (520, "model.vocab_size: 520 is not a multiple of 128; for the tokenizer's 512 tokens set it to 640"),
    ):
        with pytest.raises(InputError, match=message):
            check_pair(tokenizer, rows, "model.vocab_size", new=True)


def test_a_model_from_elsewhere_needs_a_row_for_every_id_and_no_multiple(tokenizer: Any) -> None:  # noqa: F811
    check_pair(tokenizer, 513, "model.path")
    with pytest.raises(
        InputError, match=r"x: the tokenizer has ids up to 511 and the model 511 embedding rows \(ids up"
    ):
        check_pair(tokenizer, 511, "x")


def test_a_token_that_only_the_config_names_has_no_row(folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match="ids up to 512 and the model 512 embedding rows"):
        check_pair(changed(folders["qwen2"], tmp_path / "a", eos_token="<end>"), 512, "x")


def test_roles_that_a_stage_needs_are_there(folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    without = changed(folders["qwen2"], tmp_path / "a", pad_token=None)
    check_pair(without, 512, "x", needs=("eos",))
    with pytest.raises(InputError, match="x: the tokenizer has no pad_token; name one in tokenizer_config.json"):
        check_pair(without, 512, "x", needs=("eos", "pad"))


def test_chat_marks_are_single_ids(folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    template = "{{ '<|turn|>' + messages[0]['content'] }}"
    spelt = changed(folders["qwen2"], tmp_path / "a", chat_template=template)
    spelt.chat_template = template
    with pytest.raises(
        InputError, match=r"x: the tokenizer cuts <\|turn\|> into \d+ tokens, which the model would have"
    ):
        check_pair(spelt, 512, "x")
    spelt.chat_template = "{{ raise_exception('only with tools') }}"
    check_pair(spelt, 512, "x")


def test_shards_of_another_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    ours = AutoTokenizer.from_pretrained(folders["qwen2"])
    known = sha256_file(folders["qwen2"] / "tokenizer.json")
    check_pair(ours, 512, "x", shards=[Shards("data.shards", tmp_path, known)])
    with pytest.raises(InputError, match="data.shards: .* holds tokens of another tokenizer than model.tokenizer"):
        check_pair(ours, 512, "x", shards=[Shards("data.shards", tmp_path, "0" * 64)])


def test_rows_of_a_loaded_model() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = IngotConfig(vocab_size=256, intermediate_size=16, head_dim=16, **small)
    assert embedding_rows(IngotForCausalLM(config)) == 256


@pytest.mark.parametrize(
    "file",
    [
        "training/pretrain_loop.py",
        "training/finetune.py",
        "evaluation/evaluate.py",
        "export/hub.py",
        "serving/loading.py",
    ],
)
def test_every_stage_with_a_model_and_a_tokenizer_checks_them(file: str) -> None:
    assert "check_pair(" in (ROOT / "ingot" / file).read_text(encoding="utf-8")
