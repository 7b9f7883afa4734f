"""The model card is valid metadata for the Hub and says what the runs measured."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ingot.export.card import CardText, Evaluated, Facts, flat_numbers, write_card
from ingot.export.lineage import Run, lineage

from .conftest import SCORE

RESULTS = {"base": {**SCORE, "bits_per_byte": 1.5}, "dpo": SCORE, "xz": {"bits_per_byte": 2.24}}


def card_of(
    folder: Path, runs: Sequence[Run] = (), evaluated: Evaluated | None = None, remote: bool = True
) -> ModelCard:
    """The card of a folder with little in it, as the Hub's library reads it."""
    config = {
        "architectures": ["IngotForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config | ({"auto_map": {}} if remote else {})))
    (folder / "chat_template.jinja").write_text("")
    text = CardText("Tiny | model", ["en"], "apache-2.0", "Speaks like a president.")
    write_card(Facts(text, folder, 12345, 5120, runs, evaluated, {"ingot": "0.1.0", "transformers": "5.23.0"}, 0.0))
    return ModelCard.load(folder / "README.md")


def test_metadata_is_read_by_the_hub_library(tmp_path: Path, runs: Path) -> None:
    card = card_of(tmp_path, lineage(runs / "dpo"), Evaluated(tmp_path, RESULTS, "dpo"))
    data = card.data
    assert (data.language, data.license, data.library_name) == (["en"], "apache-2.0", "transformers")
    assert (data.pipeline_tag, data.tags) == ("text-generation", ["ingot", "prepare_data", "pretrain", "dpo"])
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("held-out documents", "bits_per_byte"): 1.4321, ("held-out documents", "perplexity"): 23.4,
        ("held-out documents", "accuracy"): 0.345, ("continuation", "acc"): 0.61,
    }  # fmt: skip


def test_the_card_tells_of_every_run(tmp_path: Path, runs: Path) -> None:
    text = card_of(tmp_path, lineage(runs / "dpo")).text
    assert "prepare_data -> pretrain -> dpo" in text
    for row in ("| splits.train.documents | 1,234 |", "| eval_loss | 3.21 |", "| margin_after | 0.87 |"):
        assert row in text
    assert f"shards: {runs / 'prepare_data'}" in text.replace("\n      ", " ")
    assert "12,345" in text and "7,225" in text  # with and without embeddings
    assert "Speaks like a president." in text and "## Limitations" in text


def test_the_evaluation_marks_the_exported_model(tmp_path: Path) -> None:
    text = card_of(tmp_path, evaluated=Evaluated(tmp_path, RESULTS, "dpo")).text
    assert "| **dpo** (this model) | 1.432 | 23.4 | continuation acc 0.610 ± 0.034 (chance 0.250) |" in text
    assert "| base | 1.5 |" in text and "| xz | 2.24 |" in text
    others = card_of(tmp_path, evaluated=Evaluated(tmp_path, RESULTS, None))
    assert "did not measure this model" in others.text and others.data.eval_results is None


@pytest.mark.parametrize("remote", [True, False])
def test_the_code_to_load_it_trusts_remote_code_only_where_there_is_some(tmp_path: Path, remote: bool) -> None:
    text = card_of(tmp_path, remote=remote).text
    assert ("trust_remote_code=True" in text) is remote
    assert "apply_chat_template" in text


def test_a_pretrained_model_is_shown_with_plain_text(tmp_path: Path, runs: Path) -> None:
    assert "apply_chat_template" not in card_of(tmp_path, lineage(runs / "pretrain")).text


def test_nested_results_become_rows() -> None:
    assert list(flat_numbers({"a": {"b": 1, "c": [1]}, "d": "x"})) == [("a.b", 1), ("d", "x")]
