"""Pretraining a model of a few thousand parameters: the same weights however it is cut, and mistakes named."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from ingot import plots
from ingot.data.packing import TokenBlocks
from ingot.data.shards import TokenShards
from ingot.loading import load_model, load_tokenizer
from ingot.recipe import InputError
from ingot.runs import damage, read_json, write_json
from ingot.training import pretrain_loop
from ingot.training.callbacks import read_metrics
from ingot.training.checkpoints import checkpoints_of
from ingot.training.pretrain_trainer import PretrainTrainer
from modeling import IngotForCausalLM

from .conftest import Pretrain
from .pretrain_toys import SEQ_LENGTH, pretrain_recipe

Weights = Callable[[Path], dict[str, torch.Tensor]]
NO_EVALUATION = {"training__eval_strategy": "no", "training__eval_steps": None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    clock = ("tokens_per_second", "eval_seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(folder / "metrics.jsonl")]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException | None = None) -> None:
    """Sends Ctrl-C (or raises an error) while the step after this one is computed."""

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                if error is not None:
                    raise error
                os.kill(os.getpid(), signal.SIGINT)

    original = pretrain_loop.callbacks
    monkeypatch.setattr(pretrain_loop, "callbacks", lambda *args: [*original(*args), Interrupt()])


def full_disk(*args: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_learns_and_leaves_everything_it_promises(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_loop, "plot_loss", plots.plot_loss)
    folder, results = pretrain(run__sample_prompts=["red blue", "one"], run__sample_tokens=8)
    metrics = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert len(losses) == 12 and losses[0] == pytest.approx(math.log(384), abs=0.1) and losses[-1] < losses[0] - 1
    heldout = [line for line in metrics if "eval_loss" in line]
    assert [line["step"] for line in heldout] == [6, 12] and heldout[1]["eval_loss"] < heldout[0]["eval_loss"]
    assert results["heldout_loss"] == heldout[1]["eval_loss"]
    assert results["heldout_bits_per_byte"] == pytest.approx(heldout[1]["eval_bits_per_byte"])
    assert (results["steps"], results["tokens"]) == (12, 12 * 4 * SEQ_LENGTH)
    assert all(line["tokens_per_second"] > 0 for line in metrics if "loss" in line)
    assert metrics[-1]["epoch"] == pytest.approx(12 * 4 * SEQ_LENGTH / 5835, abs=1e-3)
    assert read_json(folder / "manifest.json")["results"] == results
    assert "| heldout_loss |" in (folder / "report.md").read_text()
    assert Image.open(folder / "loss.png").width > 500
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-000006.md", "step-000012.md"]
    assert (folder / "samples/step-000012.md").read_text(encoding="utf-8").startswith("**red blue**")
    assert [p.name for p in checkpoints_of(folder)] == ["checkpoint-8", "checkpoint-12"]
    assert not (folder / ".staging").exists()


def test_the_model_folder_loads_anywhere(pretrain: Pretrain, corpus: Path) -> None:
    folder, results = pretrain()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert type(model) is IngotForCausalLM and model.num_parameters() == results["parameters"]
    assert model.config.use_cache is True and model.config.max_position_embeddings == SEQ_LENGTH
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / "model" / file).read_bytes() == (corpus / "tokenizer" / file).read_bytes()
    ends = (0, 3)
    assert (model.config.eos_token_id, model.config.pad_token_id) == ends
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == ends
    names = {p.name for p in (folder / "model").iterdir()}
    assert "training_args.bin" not in names and {"modeling_ingot.py", "chat_template.jinja"} <= names
    load_model(folder)  # nothing missing, tied as it says


def test_a_finished_run_is_not_touched_again(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    folder, results = pretrain()
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(pretrain_loop, "pretrain", lambda *args: pytest.fail("trained again"))
    assert pretrain() == (folder, results)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times


def test_the_seed_decides(pretrain: Pretrain, weights: Weights) -> None:
    changes = {**NO_EVALUATION, "training__max_steps": 3}
    folders = [pretrain(f"run-{i}", training__seed=seed, **changes)[0] for i, seed in enumerate((1, 1, 2))]
    assert_equal(weights(folders[0]), weights(folders[1]))
    with pytest.raises(AssertionError):
        assert_equal(weights(folders[0]), weights(folders[2]))


def test_the_first_loss_is_the_mean_over_all_labels(pretrain: Pretrain, corpus: Path, tmp_path: Path) -> None:
    folder, _ = pretrain(run__global_batch_size=8, **NO_EVALUATION)
    recipe = pretrain_recipe(corpus, tmp_path / "other")
    set_seed(1)
    model = pretrain_loop.build_model(recipe, load_tokenizer(corpus / "tokenizer")).eval()
    blocks = TokenBlocks(corpus / "shards", "train", SEQ_LENGTH, seed=1, num_blocks=8)
    total, count = 0.0, 0
    for i in range(8):
        block = {key: torch.tensor(value) for key, value in blocks[i].items()}
        starts = [j for j in range(SEQ_LENGTH) if block["position_ids"][j] == 0] + [SEQ_LENGTH]
        for begin, end in zip(starts, starts[1:], strict=False):  # each document alone
            ids = block["input_ids"][begin:end]
            with torch.no_grad():
                logits = model(ids[None]).logits[0]
            total += float(cross_entropy(logits[:-1], ids[1:], reduction="sum")) if len(ids) > 1 else 0.0
            count += len(ids) - 1
    assert lines_of(folder)[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_the_held_out_loss_is_that_of_the_documents_alone(pretrain: Pretrain, corpus: Path) -> None:
    folder, results = pretrain(data__seq_length=512, training__max_steps=3, training__per_device_train_batch_size=1)
    model, shards = load_model(folder), TokenShards(corpus / "shards", "validation")
    nats, targets, num_bytes = 0.0, 0, 0
    tokenizer = load_tokenizer(folder)
    for i in range(shards.num_documents):
        ids = torch.tensor(shards.document(i).astype(int))
        with torch.no_grad():
            nats += float(cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum"))
        targets += len(ids) - 1
        num_bytes += len(tokenizer.decode(ids[:-1]).encode())
    assert results["heldout_loss"] == pytest.approx(nats / targets, abs=1e-6)
    assert results["heldout_bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_held_out_loss_does_not_depend_on_the_batch(size: int, pretrain: Pretrain) -> None:
    changes = {"training__max_steps": 2, "training__eval_steps": 2}
    expected = pretrain(**changes)[1]["heldout_loss"]
    found = pretrain("other", training__per_device_eval_batch_size=size, **changes)[1]["heldout_loss"]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", None])
def test_one_batch_of_eight_is_eight_of_one(optimizer: str | None, pretrain: Pretrain, weights: Weights) -> None:
    changes = {"run__global_batch_size": 8, "run__optimizer": optimizer, "training__max_steps": 6, **NO_EVALUATION}
    runs = [pretrain(f"run-{micro}", training__per_device_train_batch_size=micro, **changes)[0] for micro in (8, 4, 1)]
    expected = lines_of(runs[0])
    assert len(expected) == 7
    for folder in runs[1:]:
        for line, wanted in zip(lines_of(folder), expected, strict=True):
            assert line == pytest.approx(wanted, abs=2e-6)
        assert_equal(weights(folder), weights(runs[0]), 2e-5)


def test_checkpointing_activations_changes_nothing(pretrain: Pretrain, weights: Weights) -> None:
    changes = {"training__max_steps": 4, "model__residual_dropout": 0.1, **NO_EVALUATION}
    plain, _ = pretrain(**changes)
    saving, _ = pretrain("saving", training__gradient_checkpointing=True, **changes)
    assert_equal(weights(saving), weights(plain), 1e-6)


@pytest.mark.parametrize(("optimizer", "step"), [("muon", 6), (None, 6), ("muon", 1), ("muon", 8)])
def test_an_interrupted_run_ends_in_the_same_weights(
    optimizer: str | None, step: int, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    changes = {"run__optimizer": optimizer, "model__residual_dropout": 0.1, "run__sample_prompts": ["red"]}
    whole, expected = pretrain(**changes)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            pretrain("interrupted", **changes)
    parts = whole.parent / "interrupted"
    assert checkpoints_of(parts)[-1].name == f"checkpoint-{step}" and damage(checkpoints_of(parts)[-1]) is None
    assert not (parts / "manifest.json").exists()
    _, results = pretrain("interrupted", **changes)
    assert_equal(weights(parts), weights(whole))
    assert lines_of(parts) == lines_of(whole)
    assert results["heldout_loss"] == expected["heldout_loss"]
    assert (parts / "samples/step-000012.md").read_text() == (whole / "samples/step-000012.md").read_text()


def test_a_crashed_run_with_a_damaged_checkpoint_ends_in_the_same_weights(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    whole, _ = pretrain(training__logging_steps=5, training__save_steps=3)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11, RuntimeError("the machine stops"))
        with pytest.raises(RuntimeError, match="the machine stops"):
            pretrain("crashed", training__logging_steps=5, training__save_steps=3)
    parts = whole.parent / "crashed"
    assert [line["step"] for line in lines_of(parts) if "loss" in line] == [3, 5, 6, 9, 10]
    (parts / "checkpoint-9/model.safetensors").write_bytes(b"")
    pretrain("crashed", training__logging_steps=5, training__save_steps=3)
    assert_equal(weights(parts), weights(whole))
    assert lines_of(parts) == lines_of(whole)


def test_a_run_that_stops_after_its_last_step_is_concluded(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    whole, expected = pretrain()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_loop, "save_model", full_disk)
        with pytest.raises(OSError, match="No space"):
            pretrain("stopped")
    parts, results = pretrain("stopped")
    assert_equal(weights(parts), weights(whole))
    assert lines_of(parts) == lines_of(whole) and results["heldout_loss"] == expected["heldout_loss"]


BEST = {"training__load_best_model_at_end": True, "training__eval_steps": 4, "training__save_total_limit": 1}


@pytest.mark.parametrize("best", [4, 12])
def test_the_best_model_is_kept_with_its_own_loss(
    best: int, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    monkeypatch.setattr(
        PretrainTrainer, "_heldout_loss", lambda self, blocks: 1.0 + abs(self.state.global_step - best)
    )
    folder, results = pretrain(**BEST)
    assert results["heldout_loss"] == 1.0
    assert_equal(weights(folder), weights_of_checkpoint(folder / f"checkpoint-{best}"))
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_loop, "save_model", full_disk)
        with pytest.raises(OSError, match="No space"):
            pretrain("stopped", **BEST)
    parts, again = pretrain("stopped", **BEST)
    assert again["heldout_loss"] == 1.0
    assert_equal(weights(parts), weights(folder))


def weights_of_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_an_interrupt_keeps_its_checkpoint_beside_the_best(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        pretrain(**BEST)
    assert [p.name for p in checkpoints_of(tmp_path / "pretrain")][-1] == "checkpoint-7"


def test_a_loss_that_is_not_a_number_is_never_saved(pretrain: Pretrain, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"is nan at step \d+"):
        pretrain(
            training__learning_rate=1e38, training__logging_steps=100, training__save_steps=2,
            training__warmup_steps=3, training__max_grad_norm=0, training__save_total_limit=None,
            run__optimizer=None, **NO_EVALUATION,
        )  # fmt: skip
    for checkpoint in checkpoints_of(tmp_path / "pretrain"):
        assert all(tensor.isfinite().all() for tensor in weights_of_checkpoint(checkpoint).values())
    assert not (tmp_path / "pretrain/manifest.json").exists()


def test_epochs_give_the_number_of_steps(pretrain: Pretrain, corpus: Path) -> None:
    changes = {"training__max_steps": None, "training__num_train_epochs": 2, "run__global_batch_size": 100}
    folder, results = pretrain(training__per_device_train_batch_size=50, **changes, **NO_EVALUATION)
    blocks = TokenShards(corpus / "shards", "train").num_tokens // SEQ_LENGTH
    assert results["steps"] == math.ceil(2 * blocks / 100) == 4
    assert lines_of(folder)[-1]["step"] == 4


def test_a_run_without_evaluation_is_evaluated_at_its_end(pretrain: Pretrain) -> None:
    folder, results = pretrain(run__sample_prompts=["red"], **NO_EVALUATION)
    (line,) = [line for line in lines_of(folder) if "eval_loss" in line]
    assert line["step"] == 12 and line["eval_loss"] == results["heldout_loss"]
    assert [p.name for p in (folder / "samples").iterdir()] == ["step-000012.md"]


def test_a_models_own_tokenizer_serves_the_next_run(pretrain: Pretrain) -> None:
    first, _ = pretrain(training__max_steps=2, **NO_EVALUATION)
    _, results = pretrain("second", model__tokenizer=str(first), training__max_steps=2, **NO_EVALUATION)
    assert results["steps"] == 2


def test_bf16_and_other_blocks_train(pretrain: Pretrain) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    changes = {"training__bf16": True, **{f"model__{key}": value for key, value in experts.items()}}
    folder, _ = pretrain(**changes, **NO_EVALUATION)
    losses = [line["loss"] for line in lines_of(folder) if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert all(tensor.dtype == torch.float32 for tensor in weights_of_checkpoint(folder / "checkpoint-12").values())


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
    ({"training__fp16_full_eval": True, "training__bf16_full_eval": True}, "training: "),
    ({"run__sample_prompts": ["red " * 20]}, "run.sample_prompts: 'red red red red red red red red red red ' has 8"),
    ({"run__sample_prompts": ["red", ""]}, "run.sample_prompts: '' has 0 tokens; give 1 to 31"),
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
    with pytest.raises(InputError, match="the tokenizer cannot be loaded"):
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
