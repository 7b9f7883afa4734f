"""Pretraining recipes that cannot be: told in one line, before anything is trained."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingot.recipe import InputError
from ingot.runs import write_json
from ingot.training import pretrain_loop

from .conftest import Pretrain
from .pretrain_toys import NO_EVALUATION, pretrain_recipe

MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"model__vocab_size": 256},
        "model.vocab_size: 256 rows are too few for the tokenizer's 260 tokens; set it to 384",
    ),
    ({"model__vocab_size": 300}, "model.vocab_size: 300 is not a multiple of 128"),
    ({"model__num_key_value_heads": 3}, "model: num_key_value_heads 3 does not divide num_attention_heads 2"),
    ({"model__hidden_act": "slu"}, "model: hidden_act is 'slu'"),
    ({"training__load_best_model_at_end": True, **NO_EVALUATION}, "training: --load_best_model_at_end requires the"),
    ({"training__load_best_model_at_end": True}, "training: --load_best_model_at_end requires"),
    ({"training__bf16_full_eval": True}, "training.bf16_full_eval: leave it out; evaluations run as training does"),
    ({"run__optimizer": "lion", "training__optim_args": "a=1"}, "training.optim_args: leave it out; lion reads none"),
    ({"training__seed": 1 << 32}, "training.seed: 4294967296 is not from 0 to 2^32 - 1"),
    ({"training__log_level": "loud"}, "training.log_level: 'loud' is none of detail, debug, info"),
    ({"training__report_to": "nobody"}, "training: nobody is not supported"),
    ({"training__save_total_limit": 0}, "training.save_total_limit: 0 is less than 1"),
    ({"training__dataloader_persistent_workers": True}, "training.dataloader_persistent_workers: there are none"),
    ({"training__gradient_checkpointing_kwargs": {"a": 1}}, "training.gradient_checkpointing_kwargs: 'a' is none of"),
    ({"training__accelerator_config": "none.json"}, "training: [Errno 2] No such file or directory: 'none.json'"),
    ({"training__metric_for_best_model": "bleu"}, "training.metric_for_best_model: 'bleu' is none of eval_loss"),
    ({"model__attn_implementation": "flex_attention"}, "model.attn_implementation: flex_attention cannot train on a"),
    ({"model__eos_token_id": 5}, "model.eos_token_id: leave it out; the tokenizer says it"),
    ({"run__sample_prompts": ["red " * 20]}, "run.sample_prompts: 'red red red red red red red red red red ' has 8"),
    ({"run__sample_prompts": ["red", ""]}, "run.sample_prompts: '' has 0 tokens; give 1 to 31"),
    ({"training__bf16": None, "training__fp16": True}, "training.fp16: needs a GPU"),
    ({"model__attn_implementation": "flash_attention_3"}, "model.attn_implementation: "),
    ({"run__global_batch_size": 6}, "training.per_device_train_batch_size: 4 does not divide the 6 blocks"),
    ({"data__seq_length": 9999, "training__max_steps": None, "training__num_train_epochs": 1}, "less than one block"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_is_told_in_one_line(changes: dict[str, Any], message: str, pretrain: Pretrain) -> None:
    with pytest.raises(InputError) as caught:
        pretrain(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value).strip()


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"training__max_steps": None}, "training.max_steps: missing; give max_steps or num_train_epochs"),
    ({"training__learning_rate": None}, "training.learning_rate: missing"),
    ({"training__optim": "adamw_torch"}, "run.optimizer: also training.optim is set"),
    ({"run__global_batch_size": 8, "training__gradient_accumulation_steps": 2}, "follows from run.global_batch_size"),
    ({"model__max_position_embeddings": 16}, "data.seq_length: 32 is longer than model.max_position_embeddings: 16"),
    ({"training__eval_strategy": "epoch"}, "training.eval_strategy: epoch: blocks run on from one pass to the next"),
    ({"training__save_strategy": "epoch"}, "training.save_strategy: epoch"),
    ({"training__train_sampling_strategy": "random"}, "training.train_sampling_strategy: leave it out"),
    ({"training__disable_tqdm": True}, "training.disable_tqdm: not a key of a recipe"),
    ({"training__logging_nan_inf_filter": True}, "a loss that is not a number stops the run"),
    ({"run__optimizer": "moun"}, "run.optimizer: expected one of muon, lion, got 'moun'; did you mean 'muon'?"),
    ({"data__seq_length": 1}, "data.seq_length: expected a whole number above 1, got 1"),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_a_wrong_recipe_is_told_before_anything_starts(
    changes: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        pretrain_recipe(corpus, tmp_path, **changes)
    assert message in str(caught.value)


def test_shards_of_another_tokenizer_are_refused(pretrain: Pretrain, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    for file in (corpus / "tokenizer").glob("*token*"):
        (other / file.name).write_bytes(file.read_bytes())
    text = json.loads((other / "tokenizer.json").read_text())
    text["model"]["merges"] = []
    text["pre_tokenizer"] = None
    write_json(other / "tokenizer.json", text)
    with pytest.raises(InputError, match=r"data\.shards: .* holds tokens of another tokenizer than model\.tokenizer"):
        pretrain(model__tokenizer=str(other))


def test_a_folder_without_a_tokenizer_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    write_json(tmp_path / "hub/config.json", {"model_type": "ingot"})
    with pytest.raises(InputError, match="tokenizer_config.json: missing"):
        pretrain(model__tokenizer=str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("wanted", "micro", "processes", "expected"),
    [(None, 4, 1, (4, 1)), (None, None, 2, (8, 1)), (16, 4, 1, (4, 4)), (16, 4, 2, (4, 2)), (16, 16, 4, (4, 1))]
    + [(8, 1, 8, (1, 1)), (24, 3, 2, (3, 4))],
)
def test_batch_sizes_make_the_global_batch(
    wanted: int | None,
    micro: int | None,
    processes: int,
    expected: tuple[int, int],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    recipe = pretrain_recipe(corpus, tmp_path, run__global_batch_size=wanted)
    values = pretrain_loop.batch_sizes(recipe, {} if micro is None else {"per_device_train_batch_size": micro})
    assert (values["per_device_train_batch_size"], values["gradient_accumulation_steps"]) == expected


def test_a_global_batch_that_cannot_be_shared_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = pretrain_recipe(corpus, tmp_path, run__global_batch_size=16)
    with pytest.raises(InputError, match=r"run\.global_batch_size: 16 blocks cannot be shared by 3 processes"):
        pretrain_loop.batch_sizes(recipe, {})


def plugin(**zero: Any) -> Any:
    return SimpleNamespace(deepspeed_config={"zero_optimization": zero})


@pytest.mark.parametrize(
    ("arguments", "strategy"),
    [
        (SimpleNamespace(deepspeed_plugin=plugin(stage=3)), "ZeRO-3"),
        (
            SimpleNamespace(deepspeed_plugin=plugin(stage=2, offload_optimizer={"device": "cpu"})),
            "ZeRO-2 with offload",
        ),
        (
            SimpleNamespace(deepspeed_plugin=plugin(stage=3, offload_optimizer={"device": "cpu"})),
            "ZeRO-3 with offload",
        ),
        (SimpleNamespace(deepspeed_plugin=plugin(stage=2)), None),
        (SimpleNamespace(deepspeed_plugin=None), "FSDP2"),
        (SimpleNamespace(deepspeed_plugin=None), None),
    ],
)
def test_muon_is_refused_where_no_process_has_whole_matrices(
    arguments: Any, strategy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strategy == "FSDP2":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch does with fsdp2.yaml
    if strategy is None:
        pretrain_loop.refuse_sharded_muon(arguments)
        return
    with pytest.raises(InputError, match=f"muon needs whole matrices and {strategy} splits them"):
        pretrain_loop.refuse_sharded_muon(arguments)
