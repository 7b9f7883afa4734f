"""Supervised fine-tuning: the pretrained model learns to answer, on TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ingot.data.conversations import ConversationData
from ingot.recipe import FilePath, Recipe, StageFolder, UpstreamSection
from ingot.runs import is_main_process, open_run
from ingot.training.adapters import AdapterModel
from ingot.training.launch import naming_lost_process, prepare_launch
from ingot.training.quiet import keep_quiet
from ingot.training.safety import TrainingRun

if TYPE_CHECKING:  # a wrong recipe is refused before torch and TRL are imported
    from ingot.training.encoding import Counts, Example
    from ingot.training.finetune import Start

# keys of SFTConfig that would have no effect, or a wrong one, each with the way out
REFUSED = {
    "chat_template_path": "the chat template is part of the tokenizer; change it in the folder of run.from",
    "eos_token": "the end of a turn comes from the chat template",
    "pad_token": "the pad token is part of the tokenizer",
    "dataset_text_field": "rows are conversations; map columns in the data section",
    "dataset_kwargs": "rows are tokenised here, each one checked",
    "completion_only_loss": "use assistant_only_loss",
}


class SFTTraining(UpstreamSection, upstream="trl.SFTConfig"):
    """trl.SFTConfig's keys."""

    def problems(self) -> Iterator[str]:
        """Keys that this stage cannot honour."""
        yield from (f"training.{key}: {why}" for key, why in REFUSED.items() if key in self.model_fields_set)
        given = self.upstream_values()
        if given.get("trust_remote_code"):
            yield "training.trust_remote_code: only architectures of transformers and Ingot itself are loaded"
        if given.get("packing_strategy", "bfd") != "bfd":
            yield "training.packing_strategy: only 'bfd' keeps rows whole and apart from each other"
        if given.get("truncation_mode", "keep_start") != "keep_start":
            yield "training.truncation_mode: only 'keep_start'; shorten the prompts instead"


class SFTRun(TrainingRun):
    """Where the model comes from and where the result goes."""

    from_: Annotated[FilePath, StageFolder("pretrain", hub=True)] = Field(
        alias="from", description="model to start from: a run folder or any Hub folder with a chat template"
    )


class SFTRecipe(Recipe, stage="sft"):
    """Fine-tune a model on conversations: `accelerate launch scripts/sft.py --config recipes/quickstart/sft.yaml`."""

    model: AdapterModel = Field(default_factory=AdapterModel)
    data: ConversationData
    training: SFTTraining
    run: SFTRun

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


def run(recipe: SFTRecipe) -> dict[str, Any]:
    """Runs the stage. Returns held-out loss before and after in nats per supervised token, and what was trained on."""
    keep_quiet()
    values = prepare_launch(recipe.training.upstream_values())
    with naming_lost_process(), open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        return folder.finish(_train(recipe, folder.path, values))


def _train(recipe: SFTRecipe, run_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    from trl import SFTConfig

    from ingot.data.conversations import load_rows
    from ingot.training import adapters, finetune, heldout
    from ingot.training.finetune_report import write_sft_report
    from ingot.training.prediction import check_memory

    start = finetune.open_start(recipe.run.from_)
    assistant_only = bool(values.pop("assistant_only_loss", False))
    args = finetune.training_arguments(SFTConfig, values, run_dir, start)
    check_memory(recipe, start.config, args)
    train_rows, validation_rows = load_rows(recipe.data, "sft")
    examples, held_out, counts, end_of_turn = _encode(start, train_rows, validation_rows, args, assistant_only)
    trainer = _trainer(recipe, args, start, examples, held_out)

    def measure(model: Any) -> dict[str, Any]:
        found = heldout.answer_log_probs(model, held_out, trainer.accelerator)
        return {"loss": heldout.mean_loss(found), "tokens": int(found[:, 1].sum())}

    load = partial(adapters.load_start_model, start.folder, recipe.model, args.device)
    before = finetune.MeasureBefore(run_dir, held_out, measure, load)
    mean_length = sum(len(row["input_ids"]) for row in trainer.train_dataset) / len(trainer.train_dataset)
    finetune.train(trainer, recipe.run, before, mean_length)
    after = measure(trainer.model)
    proof = finetune.save_result(trainer, start, recipe.model, end_of_turn, [e.input_ids for e in held_out[:4]])
    results = {
        "loss_before": before.result()["loss"],
        "loss_after": after["loss"],
        "validation_rows": len(held_out),
        "validation_tokens": after["tokens"],
        "train_rows": len(examples),
        "train_tokens": sum(label != -100 for e in examples for label in e.labels),
        "rows_cut": counts.cut,
        "rows_left_out": counts.left_out,
        "steps": trainer.state.global_step,
        **proof,
    }
    if is_main_process():
        write_sft_report(run_dir, results, validation_rows[:3])
    return results


def _encode(
    start: Start, train_rows: list[Any], validation_rows: list[Any], args: Any, assistant_only: bool
) -> tuple[list[Example], list[Example], Counts, int]:
    """Both sets as token ids, what happened to the training rows, and the token that ends a turn."""
    from ingot.training.encoding import ConversationEncoder

    encoder = ConversationEncoder(start.tokenizer, args.max_length, start.max_positions)
    examples, counts = encoder.encode(train_rows, "training", assistant_only)
    # the number that is reported is about answers, whatever the training looks at
    held_out, _ = encoder.encode(validation_rows, "validation", assistant_only=True)
    assert encoder.end_of_turn is not None
    return examples, held_out, counts, encoder.end_of_turn


def _trainer(recipe: SFTRecipe, args: Any, start: Start, examples: list[Example], held_out: list[Example]) -> Any:
    from datasets import Dataset

    from ingot.training import adapters, finetune, trl_trainers

    model = adapters.load_start_model(start.folder, recipe.model, args.device)
    adapters.check_target_modules(model, recipe.model)
    trainer = trl_trainers.SafeSFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([e._asdict() for e in examples]),
        eval_dataset=Dataset.from_list([e._asdict() for e in held_out]),
        processing_class=start.tokenizer,
        peft_config=adapters.lora_config(recipe.model),
    )
    trainer.held_out = held_out
    finetune.check_packing(trainer, recipe.model)
    return trainer
