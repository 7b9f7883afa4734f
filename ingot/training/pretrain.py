"""The pretrain stage: a model of random weights and token shards in, a model that writes out.

Light to import: what trains is in `pretrain_loop`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ingot.planning.section import PlanSection
from ingot.recipe import FilePath, Recipe, RunSection, Section, StageFolder, UpstreamSection
from ingot.runs import open_run


class PretrainModel(UpstreamSection, upstream="modeling.IngotConfig"):
    """The architecture: any field of IngotConfig, and the tokenizer that goes with it."""

    tokenizer: Annotated[FilePath, StageFolder("train_tokenizer", hub=True)] = Field(description="tokenizer folder")

    def problems(self, seq_length: int) -> Iterator[str]:
        """What IngotConfig refuses, told before any data is read."""
        from huggingface_hub.errors import StrictDataclassError

        from modeling import IngotConfig

        try:
            IngotConfig(**{"max_position_embeddings": seq_length, **self.upstream_values()})
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            yield f"model: {' '.join(str(error).split())}"


# keys of TrainingArguments that would have no effect here, each with the reason
UNUSED = {
    "data_seed": "the order of the blocks is drawn from training.seed",
    "dataloader_drop_last": "blocks run on from one pass to the next",
    "do_train": "this stage trains",
    "do_eval": "training.eval_strategy says when",
    "do_predict": "nothing is predicted here",
}


class PretrainData(Section):
    """The token shards and how they are cut."""

    shards: Annotated[FilePath, StageFolder("prepare_data")] = Field(description="output folder of prepare_data")
    seq_length: int = Field(gt=1, description="tokens in a block")


class PretrainTraining(UpstreamSection, upstream="transformers.TrainingArguments"):
    """How it is trained: any field of transformers.TrainingArguments."""


class PretrainRun(RunSection):
    """The run folder, and what TrainingArguments has no key for."""

    optimizer: Literal["muon"] | None = Field(
        None, description="muon: Muon for the matrices of the layers, AdamW for the rest; null: training.optim"
    )
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="blocks in one optimizer step over all processes; sets gradient_accumulation_steps, so that a run "
        "is the same on one process and on eight",
    )
    sample_prompts: list[str] = Field([], description="prompts that the model continues at every evaluation")
    sample_tokens: int = Field(64, gt=0, description="tokens of each of these samples")


class PretrainRecipe(Recipe, stage="pretrain"):
    """Pretrain a model from random weights on token shards."""

    model: PretrainModel
    data: PretrainData
    training: PretrainTraining
    run: PretrainRun
    plan: PlanSection = Field(default_factory=PlanSection, description="what is expected of the run")

    def problems(self) -> Iterator[str]:
        """Contradictions that need no library to see."""
        training = self.training.upstream_values()
        if (training.get("max_steps") or 0) <= 0 and "num_train_epochs" not in training:
            yield "training.max_steps: missing; give max_steps or num_train_epochs"
        positions = self.model.upstream_values().get("max_position_embeddings")
        if positions is not None and positions < self.data.seq_length:
            yield f"data.seq_length: {self.data.seq_length} is longer than model.max_position_embeddings: {positions}"
        if self.run.optimizer is not None and "optim" in training:
            yield "run.optimizer: also training.optim is set; keep one of them"
        if self.run.global_batch_size is not None and "gradient_accumulation_steps" in training:
            yield "training.gradient_accumulation_steps: follows from run.global_batch_size; keep one of them"
        for key in ("eval_strategy", "save_strategy", "logging_strategy"):
            if training.get(key) == "epoch":
                yield f"training.{key}: epoch: blocks run on from one pass to the next; write steps and their number"
        if training.get("train_sampling_strategy", "sequential") != "sequential":
            yield "training.train_sampling_strategy: leave it out; the order of the blocks is drawn from training.seed"
        for key, reason in UNUSED.items():
            if key in training:
                yield f"training.{key}: leave it out; {reason}"
        if training.get("fp16") and training.get("bf16"):
            yield "training.fp16: also training.bf16 is set; keep one of them"
        yield from self.model.problems(self.data.seq_length)
        yield from self.plan.problems()
        if "learning_rate" not in training:
            yield "training.learning_rate: missing; add it to the recipe or give --training.learning_rate=..."


def run(recipe: PretrainRecipe) -> dict[str, Any]:
    """Runs the stage; returns steps, tokens, parameters and the held-out loss in nats per token and bits per byte."""
    from ingot.training.launch import prepare_launch

    training = prepare_launch(recipe.training.upstream_values())
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        from ingot.training.quiet import keep_quiet

        keep_quiet()
        from ingot.training.pretrain_loop import pretrain

        return folder.finish(pretrain(recipe, folder, training))
