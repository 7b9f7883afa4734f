"""The pretrain stage: a model of random weights and token shards in, a model that writes out.

Light to import: what trains is in `pretrain_loop`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ingot.planning.section import PlanSection
from ingot.recipe import FilePath, Recipe, Section, StageFolder, UpstreamSection
from ingot.runs import get_logger, open_run
from ingot.training.safety import TrainingRun

logger = get_logger(__name__)


class PretrainModel(UpstreamSection, upstream="modeling.IngotConfig"):
    """The architecture: any field of IngotConfig, and the tokenizer that goes with it."""

    tokenizer: Annotated[FilePath, StageFolder("train_tokenizer", hub=True)] = Field(description="tokenizer folder")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = Field(
        "sdpa", description="which library computes attention; sdpa: torch, with the fastest of its kernels"
    )

    def problems(self, seq_length: int) -> Iterator[str]:
        """What IngotConfig refuses, told before any data is read."""
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if key in self.upstream_values():
                yield f"model.{key}: leave it out; the tokenizer says it"
        from huggingface_hub.errors import StrictDataclassError

        from modeling import IngotConfig

        try:
            IngotConfig(**{"max_position_embeddings": seq_length, **self.upstream_values()})
        except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
            yield f"model: {' '.join(str(error).split())}"


# keys of TrainingArguments that would have no effect here, or a wrong one, each with the reason
UNUSED = {
    "data_seed": "the order of the blocks is drawn from training.seed",
    "dataloader_drop_last": "blocks run on from one pass to the next",
    "do_train": "this stage trains",
    "do_eval": "training.eval_strategy says when",
    "do_predict": "nothing is predicted here",
    "bf16_full_eval": "evaluations run as training does",
    "fp16_full_eval": "evaluations run as training does",
    "use_liger_kernel": "it changes models of transformers only; compiled layers and the chunked loss do as much here",
    "label_smoothing_factor": "upstream's smoothing would compare each token with itself, not with the next",
}


class MixtureSource(Section):
    """One of the sources of a mixture."""

    shards: Annotated[FilePath, StageFolder("prepare_data")] = Field(description="output folder of prepare_data")
    weight: float = Field(gt=0, description="share of the blocks, in proportion to the other weights")
    name: str | None = Field(None, description="what metrics and report call it; unset: the folder's name")

    @property
    def label(self) -> str:
        """What metrics and report call it."""
        return self.name or self.shards.name


class LengthPhase(Section):
    """A part of the run with shorter sequences."""

    seq_length: int = Field(gt=1, description="tokens in a sequence; divides data.seq_length")
    share: float = Field(gt=0, lt=1, description="share of the steps")


class PretrainData(Section):
    """The token shards and how they are cut."""

    shards: Annotated[FilePath, StageFolder("prepare_data")] | None = Field(
        None, description="output folder of prepare_data; or give mixture"
    )
    mixture: list[MixtureSource] = Field([], description="several folders with weights, in place of shards")
    seq_length: int = Field(gt=1, description="tokens in a block")
    seq_length_schedule: list[LengthPhase] = Field(
        [], description="shorter sequences at the start of the run, in order; every step has as many tokens"
    )
    packing: Literal["concatenate", "best_fit"] = Field(
        "concatenate",
        description="concatenate: documents are joined and cut; best_fit: only documents longer than a block are cut, "
        "and blocks are filled up with padding",
    )

    def sources(self) -> list[tuple[str, MixtureSource]]:
        """Every source with its key in the recipe; shards alone are a mixture of one."""
        if self.shards is not None:
            return [("data.shards", MixtureSource(shards=self.shards, weight=1.0, name=None))]
        return [(f"data.mixture.{i}.shards", source) for i, source in enumerate(self.mixture)]

    def length_shares(self) -> list[tuple[int, float]]:
        """(sequence length, share of the steps), in the order of the run; the shares add up to one."""
        shorter = [(phase.seq_length, phase.share) for phase in self.seq_length_schedule]
        return [*shorter, (self.seq_length, 1 - sum(share for _, share in shorter))]

    def problems(self) -> Iterator[str]:
        """What is contradictory."""
        if self.shards is None and not self.mixture:
            yield "data.shards: missing; name an output folder of prepare_data, or several in data.mixture"
        if self.shards is not None and self.mixture:
            yield "data.mixture: also data.shards is set; keep one of them"
        yield from self._problems_of_mixture()
        for i, phase in enumerate(self.seq_length_schedule):
            if phase.seq_length >= self.seq_length or self.seq_length % phase.seq_length:
                key, whole = f"data.seq_length_schedule.{i}.seq_length", self.seq_length
                yield f"{key}: {phase.seq_length} is no part of data.seq_length: {whole}; give {whole // 2} or so"
        if sum(phase.share for phase in self.seq_length_schedule) >= 1:
            yield "data.seq_length_schedule: its shares leave nothing to data.seq_length; keep their sum below 1"

    def _problems_of_mixture(self) -> Iterator[str]:
        total = sum(source.weight for source in self.mixture)
        labels, folders = [s.label for s in self.mixture], [s.shards for s in self.mixture]
        for i, source in enumerate(self.mixture):
            key = f"data.mixture.{i}"
            if source.weight < total / 1000:
                yield f"{key}.weight: {source.weight} of {total:g} is less than one block in a thousand; leave it out"
            if source.shards in folders[:i]:
                yield f"{key}.shards: {source.shards} is in the mixture twice; give it once, with both weights added"
            elif source.label in labels[:i]:
                yield f"{key}.name: '{source.label}' is also the name of another source; give each a name of its own"
            elif not re.fullmatch(r"[\w.-]+", source.label):
                yield f"{key}.name: '{source.label}' names a metric; use letters, digits, '-', '_' and '.' alone"


class PretrainTraining(UpstreamSection, upstream="transformers.TrainingArguments"):
    """How it is trained: any field of transformers.TrainingArguments."""


class PretrainRun(TrainingRun):
    """The run folder, and what TrainingArguments has no key for."""

    how: ClassVar[tuple[str, ...]] = (*TrainingRun.how, "profile")

    optimizer: Literal["muon", "lion"] | None = Field(
        None,
        description="muon: Muon for the matrices of the layers, AdamW for the rest; lion: one state, and training's "
        "adam_beta1 and adam_beta2 (0.9 and 0.99 where unset); null: training.optim",
    )
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="blocks in one optimizer step over all processes; sets gradient_accumulation_steps, so that a run "
        "is the same on one process and on eight",
    )
    fp8: bool | Literal["layers"] = Field(
        False,
        description="products of the layers and the head in float8 (needs training.bf16, torchao, and a GPU from Ada "
        "or Hopper on); layers: the head's stay in bfloat16; weights, gradients and optimizer stay in float32",
    )
    sample_prompts: list[str] = Field([], description="prompts that the model continues at every evaluation")
    sample_tokens: int = Field(64, gt=0, description="tokens of each of these samples")
    profile: bool | Annotated[int, Field(gt=0)] = Field(
        False,
        description="time data, forward, backward, optimizer and the rest of 20 steps, or of so many, after the first "
        "5, and trace the kernels of one more: profile.json, kernels.md, trace.json.gz",
    )


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
            yield f"training.max_steps: {training.get('max_steps', 'missing')}; give max_steps or num_train_epochs"
        elif (training.get("max_steps") or 0) <= 0 and self.data.mixture:
            yield "training.max_steps: missing; the sources of a mixture do not end together, so epochs do not do"
        yield from self.data.problems()
        positions = self.model.upstream_values().get("max_position_embeddings")
        if positions is not None and positions < self.data.seq_length:
            yield f"data.seq_length: {self.data.seq_length} is longer than model.max_position_embeddings: {positions}"
        if self.run.optimizer is not None and "optim" in training:
            yield "run.optimizer: also training.optim is set; keep one of them"
        if self.run.optimizer is not None and "optim_args" in training:
            yield f"training.optim_args: leave it out; {self.run.optimizer} reads none"
        if self.run.optimizer == "lion" and "adam_epsilon" in training:
            yield "training.adam_epsilon: leave it out; lion takes the sign of the step and has no epsilon"
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
        if self.run.fp8 and self.data.seq_length % 16:
            yield f"run.fp8: needs sequences of a multiple of 16 tokens; data.seq_length is {self.data.seq_length}"
        if self.run.fp8 and not training.get("bf16"):
            yield "run.fp8: needs training.bf16: true; what is not in float8 is in bfloat16"
        if training.get("fp16") and training.get("bf16"):
            yield "training.fp16: also training.bf16 is set; keep one of them"
        yield from self.model.problems(self.data.seq_length)
        yield from self.plan.problems()
        if "learning_rate" not in training:
            yield "training.learning_rate: missing; add it to the recipe or give --training.learning_rate=..."


def run(recipe: PretrainRecipe) -> dict[str, Any]:
    """Runs the stage; returns steps, tokens, parameters and the held-out loss in nats per token and bits per byte."""
    from ingot.training.launch import naming_lost_process, prepare_launch

    training = prepare_launch(recipe.training.upstream_values())
    with naming_lost_process(), open_run(recipe) as folder:
        if folder.complete:
            if recipe.run.profile:
                logger.warning("run.profile: the run is complete, so no step is left to profile; name another run.dir")
            return folder.results
        from ingot.training.quiet import keep_quiet

        keep_quiet()
        from ingot.training.pretrain_loop import pretrain

        return folder.finish(pretrain(recipe, folder, training))
