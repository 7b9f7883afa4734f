"""The training setup that a recipe describes, and the strategy of an Accelerate config file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from ingot.planning.setups import LossImplementation, Precision, Strategy, TrainingSetup
from ingot.recipe_yaml import InputError, read_yaml

# Defaults of transformers.TrainingArguments, and of TRL's configs where those differ.
MICRO_BATCH = 8
TRL_MAX_LENGTH = 1024


def setup_of_recipe(recipe: Any, strategy: Strategy = "single", num_gpus: int = 1) -> TrainingSetup:
    """The setup of a checked recipe of pretrain, sft or dpo on so many GPUs.

    An adapter is taken to be on all linear layers. Raises: InputError for another stage, or values whose memory is not
    known.
    """
    if recipe.stage == "pretrain":
        return _pretrain(recipe, strategy, num_gpus)
    if recipe.stage in ("sft", "dpo"):
        return _finetune(recipe, strategy, num_gpus)
    raise InputError(f"a recipe of {recipe.stage} trains nothing; its memory cannot be planned")


def _pretrain(recipe: Any, strategy: Strategy, num_gpus: int) -> TrainingSetup:
    training, wanted = recipe.training.upstream_values(), recipe.run.global_batch_size
    micro = int(training.get("per_device_train_batch_size", MICRO_BATCH))
    if wanted is not None:
        micro = max(1, min(micro, wanted // num_gpus))
    return TrainingSetup(
        micro_batch=micro,
        seq_length=recipe.data.seq_length,
        strategy=strategy,
        num_gpus=num_gpus,
        precision=_precision(training, recipe.run),
        compiled=bool(training.get("torch_compile", True)),  # unless the run is short
        optimizer=recipe.run.optimizer or training.get("optim", "adamw_torch_fused"),
        gradient_checkpointing=_checkpointing(training, False),
        gradient_accumulation_steps=int(training.get("gradient_accumulation_steps", 1)),
        global_batch_size=wanted,
        loss_implementation=_loss(recipe.model.upstream_values().get("loss_implementation", "auto")),
        eval_micro_batch=int(training.get("per_device_eval_batch_size", MICRO_BATCH)),
    )


def _finetune(recipe: Any, strategy: Strategy, num_gpus: int) -> TrainingSetup:
    training, model, is_dpo = recipe.training.upstream_values(), recipe.model, recipe.stage == "dpo"
    length = training.get("max_length", TRL_MAX_LENGTH)
    if length is None:
        raise InputError("training.max_length: null; give the longest sequence, for its memory to be known")
    reference = is_dpo and model.adapter == "none" and not training.get("precompute_ref_log_probs", False)
    return TrainingSetup(
        micro_batch=int(training.get("per_device_train_batch_size", MICRO_BATCH)),
        seq_length=int(length),
        strategy=strategy,
        num_gpus=num_gpus,
        precision=_precision({"bf16": not training.get("fp16", False), **training}, recipe.run),
        optimizer=training.get("optim", "adamw_torch_fused"),
        gradient_checkpointing=_checkpointing(training, True),
        gradient_accumulation_steps=int(training.get("gradient_accumulation_steps", 1)),
        packed=True,  # or padded, which takes a mask just so
        adapter=model.adapter,
        rank=model.r,
        stage=recipe.stage,
        reference_model=reference,
        weights_in_bf16=model.dtype == "bfloat16",
    )


def _precision(training: Mapping[str, Any], run: Any) -> Precision:
    """float16 takes as much as bfloat16; fp8 is the run section's, where there is such a key."""
    if dict(run).get("fp8"):
        return "fp8"
    return "bf16" if training.get("bf16") or training.get("fp16") else "fp32"


def _checkpointing(training: Mapping[str, Any], default: bool) -> bool:
    return bool(training.get("activation_checkpointing", training.get("gradient_checkpointing", default)))


def _loss(name: str) -> LossImplementation:
    assert name in get_args(LossImplementation), name  # the recipe was checked
    return name  # type: ignore[return-value]


def strategy_of(path: Path) -> Strategy:
    """The strategy of an Accelerate config file, and of the DeepSpeed file that it names.

    Raises: InputError for a file that describes none of them.
    """
    config = read_yaml(path)
    kind = str(config.get("distributed_type", "NO")).upper()
    if kind == "DEEPSPEED":
        return _deepspeed_strategy(path, config)
    if kind == "FSDP":
        if int(config.get("fsdp_config", {}).get("fsdp_version", 1)) != 2:
            raise InputError(f"{path}: fsdp_config.fsdp_version is not 2; the memory of FSDP 1 is not known")
        return "fsdp2"
    if kind in ("MULTI_GPU", "MULTI_CPU"):
        return "ddp"
    if kind == "NO":
        return "single"
    raise InputError(f"{path}: distributed_type {kind}: its memory is not known; use NO, MULTI_GPU, DEEPSPEED or FSDP")


def _deepspeed_strategy(path: Path, config: dict[str, Any]) -> Strategy:
    section = config.get("deepspeed_config", {})
    zero: dict[str, Any] = {"stage": section.get("zero_stage")}
    if "deepspeed_config_file" in section:
        file = _beside(path, Path(section["deepspeed_config_file"]))
        zero = json.loads(file.read_text(encoding="utf-8")).get("zero_optimization", {})
    stage, offload = zero.get("stage"), (zero.get("offload_optimizer") or {}).get("device") == "cpu"
    if offload and stage != 3:
        raise InputError(f"{path}: offload_optimizer with ZeRO stage {stage}: its memory is not known; use stage 3")
    strategies: dict[Any, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3_offload" if offload else "zero3"}
    if stage not in strategies:
        raise InputError(f"{path}: zero_optimization.stage is {stage}; there are 1, 2 and 3")
    return strategies[stage]


def _beside(path: Path, named: Path) -> Path:
    """A file that a config names, from where the command is run or from the config's own project folder."""
    for file in (named, path.resolve().parent.parent / named):
        if file.is_file():
            return file
    raise InputError(f"{path}: deepspeed_config_file {named}: no such file")
