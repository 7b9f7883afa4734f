"""Direct preference optimisation: the fine-tuned model learns which of two answers is better, on TRL's DPOTrainer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from ingot.data.conversations import ConversationData
from ingot.recipe import FilePath, Recipe, StageFolder, UpstreamSection
from ingot.runs import is_main_process, open_run
from ingot.training.adapters import AdapterModel
from ingot.training.launch import naming_lost_process, prepare_launch
from ingot.training.quiet import keep_quiet
from ingot.training.safety import TrainingRun

if TYPE_CHECKING:  # a wrong recipe is refused before torch and TRL are imported
    from datasets import Dataset
    from torch import Tensor

    from ingot.training.encoding import Pair
    from ingot.training.finetune import Start

# keys of DPOConfig that would have no effect, each with the way out
REFUSED = {
    "pad_token": "the pad token is part of the tokenizer",
    "padding_free": "TRL does not offer it for DPO at present",
}


class DPOTraining(UpstreamSection, upstream="trl.DPOConfig"):
    """trl.DPOConfig's keys."""

    def problems(self) -> Iterator[str]:
        """Keys that this stage cannot honour."""
        yield from (f"training.{key}: {why}" for key, why in REFUSED.items() if key in self.model_fields_set)
        given = self.upstream_values()
        if given.get("trust_remote_code"):
            yield "training.trust_remote_code: only architectures of transformers and Ingot itself are loaded"
        if given.get("truncation_mode", "keep_start") != "keep_start":
            yield "training.truncation_mode: only 'keep_start'; shorten the prompts instead"
        if given.get("precompute_ref_log_probs") and given.get("sync_ref_model"):
            yield "training.sync_ref_model: a moving reference cannot be precomputed; unset precompute_ref_log_probs"


class DPORun(TrainingRun):
    """Where the model comes from and where the result goes."""

    from_: Annotated[FilePath, StageFolder("sft", hub=True)] = Field(
        alias="from", description="model to start from, which is the reference too: a run folder or any Hub folder"
    )


class DPORecipe(Recipe, stage="dpo"):
    """Train a model on preference pairs: `accelerate launch scripts/dpo.py --config recipes/quickstart/dpo.yaml`."""

    model: AdapterModel = Field(default_factory=AdapterModel)
    data: ConversationData
    training: DPOTraining
    run: DPORun

    def problems(self) -> Iterator[str]:
        """Contradictions between keys."""
        yield from self.model.problems()
        yield from self.training.problems()
        yield from self.data.problems()
        if not self.data.validation and self.data.heldout is None and self.data.validation_rows is None:
            yield "data.validation_rows: nothing to measure with; set it to e.g. 100, or give validation or heldout"

    def source_files(self) -> Iterator[Path]:
        """The files that rows are read from."""
        yield from self.data.files()


def run(recipe: DPORecipe) -> dict[str, Any]:
    """Runs the stage. Returns the held-out reward margin and accuracy before and after, and what was trained on."""
    keep_quiet()
    values = prepare_launch(recipe.training.upstream_values())
    with naming_lost_process(), open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        return folder.finish(_train(recipe, folder.path, values))


def _train(recipe: DPORecipe, run_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    from trl import DPOConfig

    from ingot.data.conversations import load_rows
    from ingot.training import adapters, finetune, heldout
    from ingot.training.encoding import ConversationEncoder
    from ingot.training.finetune_report import write_dpo_report
    from ingot.training.prediction import check_memory

    start = finetune.open_start(recipe.run.from_)
    args = finetune.training_arguments(DPOConfig, values, run_dir, start)
    check_memory(recipe, start.config, args)
    train_rows, validation_rows = load_rows(recipe.data, "preference")
    encoder = ConversationEncoder(start.tokenizer, args.max_length, start.max_positions)
    pairs, counts = encoder.encode_pairs(train_rows, "training")
    held_out, _ = encoder.encode_pairs(validation_rows, "validation")
    trainer = _trainer(recipe, args, start, pairs, held_out)
    answers = [pair.chosen for pair in held_out] + [pair.rejected for pair in held_out]

    def measure(model: Any) -> list[list[float]]:
        return heldout.answer_log_probs(model, answers, trainer.accelerator).tolist()

    load = partial(adapters.load_start_model, start.folder, recipe.model, args.device)
    before = finetune.MeasureBefore(run_dir, answers, measure, load)
    tokens = sum(len(example.input_ids) for pair in pairs for example in pair)
    finetune.train(trainer, recipe.run, before, tokens / len(pairs))
    after = measure(trainer.model)
    assert encoder.end_of_turn is not None
    probes = [pair.chosen.input_ids for pair in held_out[:4]]
    proof = finetune.save_result(trainer, start, recipe.model, encoder.end_of_turn, probes)
    results = {
        **margins(before.result(), after, args.beta),
        "validation_pairs": len(held_out),
        "train_pairs": len(pairs),
        "rows_cut": counts.cut,
        "rows_left_out": counts.left_out,
        "steps": trainer.state.global_step,
        **proof,
    }
    if is_main_process():
        write_dpo_report(run_dir, results, validation_rows[:3])
    return results


def margins(before: list[list[float]], after: list[list[float]], beta: float) -> dict[str, float]:
    """What the training did to the held-out pairs.

    Both arguments are rows (log-probability, tokens), first of all chosen, then of all rejected answers. The reward
    margin is beta * ((chosen - its reference) - (rejected - its reference)) with the start model as reference
    (Rafailov et al., 2023), so it is 0 before. `accuracy`: share of pairs whose chosen answer is more likely per
    token; `reward_accuracy`: share with a positive margin; `chosen_loss`: nats per token of the chosen answers.
    """
    import torch

    old, new = (torch.tensor(rows, dtype=torch.float64) for rows in (before, after))
    rewards = beta * (new[:, 0] - old[:, 0])
    chosen, rejected = rewards.chunk(2)
    return {
        "margin_before": 0.0,
        "margin_after": float((chosen - rejected).mean()),
        "accuracy_before": _accuracy(old),
        "accuracy_after": _accuracy(new),
        "reward_accuracy_after": float((chosen > rejected).double().mean()),
        "chosen_loss_before": _chosen_loss(old),
        "chosen_loss_after": _chosen_loss(new),
    }


def _accuracy(rows: Tensor) -> float:
    chosen, rejected = (rows[:, 0] / rows[:, 1]).chunk(2)
    return float((chosen > rejected).double().mean())


def _chosen_loss(rows: Tensor) -> float:
    log_prob, tokens = rows.chunk(2)[0].sum(dim=0).tolist()
    return -log_prob / tokens


def _trainer(recipe: DPORecipe, args: Any, start: Start, pairs: list[Pair], held_out: list[Pair]) -> Any:
    from ingot.training import adapters, trl_trainers

    load = adapters.load_start_model
    model = load(start.folder, recipe.model, args.device)
    adapters.check_target_modules(model, recipe.model)
    # with an adapter, the reference is the model without it; with precomputed log-probabilities it is not needed
    needs_reference = recipe.model.adapter == "none" and not args.precompute_ref_log_probs
    cache = Path(args.output_dir) / ".cache"
    return trl_trainers.SafeDPOTrainer(
        model=model,
        ref_model=load(start.folder, recipe.model, args.device) if needs_reference else None,
        args=args,
        train_dataset=_dataset(pairs, cache / "train", args),
        eval_dataset=_dataset(held_out, cache / "validation", args),
        processing_class=start.tokenizer,
        peft_config=adapters.lora_config(recipe.model),
    )


def _dataset(pairs: list[Pair], folder: Path, args: Any) -> Dataset:
    """The pairs as TRL's columns, on disk: there TRL keeps the reference's log-probabilities, by data and model hash.

    A rerun finds them again, and so does every process of a distributed one. Other pairs, such as those of a changed
    recipe, have a folder of their own.
    """
    from datasets import Dataset, load_from_disk

    folder = folder.with_name(f"{folder.name}-{_fingerprint(pairs)}")
    with args.main_process_first(local=False):
        if not folder.is_dir():
            staging = folder.with_name(f"{folder.name}.partial")
            Dataset.from_list([_columns(pair) for pair in pairs]).save_to_disk(staging)
            staging.rename(folder)
        return cast("Dataset", load_from_disk(str(folder)))


def _fingerprint(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    return digest.hexdigest()[:16]


def _columns(pair: Pair) -> dict[str, list[int]]:
    answer = next(i for i, label in enumerate(pair.chosen.labels) if label != -100)
    return {
        "prompt_ids": pair.chosen.input_ids[:answer],
        "chosen_ids": pair.chosen.input_ids[answer:],
        "rejected_ids": pair.rejected.input_ids[answer:],
    }
