"""Pretraining a model of a few thousand parameters: the same weights however it is cut."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from ingot import plots
from ingot.data.packing import TokenBlocks
from ingot.data.shards import TokenShards
from ingot.faults import compare
from ingot.loading import load_model, load_tokenizer
from ingot.runs import DiskFull, NotFinite, damage, read_json
from ingot.training import pretrain_loop
from ingot.training.callbacks import read_metrics
from ingot.training.checkpoints import checkpoints_of
from ingot.training.pretrain_trainer import PretrainTrainer
from modeling import IngotForCausalLM

from .conftest import Pretrain
from .pretrain_toys import NO_EVALUATION, SEQ_LENGTH, pretrain_recipe

Weights = Callable[[Path], dict[str, torch.Tensor]]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what differs from run to run."""
    return compare.metrics(folder)


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


def test_batches_are_copied_to_a_gpu_without_waiting(corpus: Path, tmp_path: Path) -> None:
    recipe = pretrain_recipe(corpus, tmp_path)
    values = recipe.training.upstream_values()
    for use_cpu in (False, True):
        arguments, _ = pretrain_loop.training_arguments(recipe, tmp_path, {**values, "use_cpu": use_cpu})
        assert arguments.dataloader_pin_memory == arguments.accelerator_config.non_blocking == (not use_cpu)
    given = {**values, "use_cpu": False, "accelerator_config": {"non_blocking": False}}
    assert not pretrain_loop.training_arguments(recipe, tmp_path, given)[0].accelerator_config.non_blocking


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
        with pytest.raises(DiskFull, match="No space"):
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
        with pytest.raises(DiskFull, match="No space"):
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
    with pytest.raises(NotFinite, match=r"^step 3: loss is nan and grad_norm is nan. Its rows: 8, 9, 10, 11, see "):
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


def test_the_held_out_loss_has_no_balance_loss_in_it(pretrain: Pretrain) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
    changes = {**{f"model__{key}": value for key, value in experts.items()}, "training__learning_rate": 1e-9}
    found = [pretrain(str(coef), **changes, model__router_aux_loss_coef=coef)[1] for coef in (0.0, 10.0)]
    assert found[0]["heldout_loss"] == pytest.approx(found[1]["heldout_loss"], abs=1e-3)


def test_bf16_and_other_blocks_train(pretrain: Pretrain) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    changes = {"training__bf16": True, **{f"model__{key}": value for key, value in experts.items()}}
    folder, _ = pretrain(**changes, **NO_EVALUATION)
    losses = [line["loss"] for line in lines_of(folder) if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert all(tensor.dtype == torch.float32 for tensor in weights_of_checkpoint(folder / "checkpoint-12").values())
