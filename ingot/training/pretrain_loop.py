"""What pretraining does, in reading order: batch sizes, model, data, trainer, result."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames

from ingot.data.assembly import collate
from ingot.loading import load_tokenizer
from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.planning.held import hold, table
from ingot.plots import plot_loss
from ingot.recipe import InputError
from ingot.runs import RunFolder, get_logger, is_main_process, num_processes, write_text
from ingot.tokenization.build import copy_tokenizer
from ingot.training.arguments import make_arguments
from ingot.training.backends import describe_backends
from ingot.training.callbacks import (
    METRICS,
    LookBeforeSaving,
    MetricsCallback,
    SamplesCallback,
    StopOnSignal,
    Throughput,
    read_metrics,
)
from ingot.training.compiling import compile_layers, decide, take_keys
from ingot.training.continuing import train_to_the_end
from ingot.training.float8 import train_in_float8
from ingot.training.launch import copying, uses_fsdp
from ingot.training.lion import Lion
from ingot.training.optim import MuonFactory
from ingot.training.prediction import predict
from ingot.training.pretrain import PretrainRecipe
from ingot.training.pretrain_data import RunData, data_report, training_blocks
from ingot.training.pretrain_trainer import PretrainTrainer
from ingot.training.profiling import profile_report, step_profile
from ingot.training.schedule import check_schedule
from ingot.vocabulary import Shards, check_pair
from modeling import IngotConfig, IngotForCausalLM
from modeling.modeling_ingot import FUSED_AVAILABLE

logger = get_logger(__name__)

PLAN_NOTE = (
    "Predicted for this machine from the recipe's `plan` section. Memory: the peak that torch allocated on the first "
    "GPU. Time and money: measured with start, evaluation and saving. A law's loss is that of its own tokenizer and "
    "text: fit one to your runs with `ingot plan fit`."
)


def pretrain(recipe: PretrainRecipe, run: RunFolder, training: dict[str, Any]) -> dict[str, Any]:
    """Trains to the end, or continues to it, and writes the model to `model/` in the run folder.

    Raises: InputError for a recipe that contradicts itself, KeyboardInterrupt when stopped by a signal (after saving).
    """
    folder = run.path
    asked, training = take_keys(training)
    arguments, blocks = training_arguments(recipe, folder, training)
    config, tokens = model_config(recipe), blocks * recipe.data.seq_length
    flops = training_flops_per_token(architecture_of_config(config), recipe.data.seq_length)
    compiling = decide(asked, arguments.device, flops * tokens / num_processes())
    predicted = predict(recipe, config, arguments, tokens, compiling.wanted)
    tokenizer = load_tokenizer(recipe.model.tokenizer)
    data = RunData(recipe.data, arguments.seed, blocks, arguments.max_steps)
    data.heldout.check_best(arguments.metric_for_best_model)
    set_seed(arguments.seed)
    model = build_model(recipe, tokenizer, data.shards)
    if arguments.device.type == "cpu" and recipe.model.attn_implementation == "flex_attention":
        raise InputError("model.attn_implementation: flex_attention cannot train on a CPU; leave it out")
    if recipe.run.fp8:
        refuse_split_float8(arguments)
        train_in_float8(model, head=recipe.run.fp8 != "layers")
    compile_layers(model, compiling)
    check_prompts(recipe, tokenizer, model.config.max_position_embeddings)
    optimizer = optimizer_for(recipe, arguments)
    try:
        trainer = PretrainTrainer(
            model=model,
            args=arguments,
            train_dataset=cast(Dataset[Any], data.train),
            eval_dataset=cast(Dataset[Any], data.heldout),
            processing_class=tokenizer,
            data_collator=collate,
            optimizer_cls_and_kwargs=optimizer,
            callbacks=callbacks(recipe, folder, arguments, model, tokenizer, data),
        )
    except (ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "requires" not in str(error):  # not a tracker that is not installed
            raise
        raise InputError(f"training: {' '.join(str(error).split())}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.step_profile = step_profile(recipe.run.profile, folder, arguments.device.type == "cuda")
    describe(model, data, arguments)
    for line in describe_backends(model, arguments.device, compute_format(arguments), bool(recipe.run.fp8), compiling):
        logger.info(line)
    train_to_the_end(trainer, recipe.run, recipe.run.optimizer or OptimizerNames(arguments.optim).value)
    return conclude(trainer, run, tokenizer, data, predicted)


def training_arguments(
    recipe: PretrainRecipe, folder: Path, training: dict[str, Any]
) -> tuple[TrainingArguments, int]:
    """TrainingArguments for this number of processes, and the blocks that the whole run reads.

    Raises: InputError when the batch sizes do not go into each other or upstream refuses a value.
    """
    values = batch_sizes(recipe, dict(training))
    per_step = num_processes() * values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    steps = values.get("max_steps") or 0
    if steps <= 0:
        ((_, source),) = recipe.data.sources()
        epoch = training_blocks(recipe.data, source.shards, 0).blocks_per_epoch
        steps = math.ceil(epoch * float(values["num_train_epochs"]) / per_step)
    fixed = {
        "output_dir": str(folder),
        "max_steps": steps,
        "train_sampling_strategy": "sequential",  # the blocks come shuffled
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    defaults = {
        "report_to": "none",
        "ddp_find_unused_parameters": False,
    }
    arguments = make_arguments(TrainingArguments, {**defaults, **values, **copying(values), **fixed})
    if arguments.fp16 and arguments.device.type == "cpu":
        raise InputError("training.fp16: needs a GPU; on a CPU leave it out, or set training.bf16")
    check_schedule(arguments)
    return arguments, steps * per_step


def batch_sizes(recipe: PretrainRecipe, values: dict[str, Any]) -> dict[str, Any]:
    """Micro-batch and accumulation that make a step `run.global_batch_size` blocks on any number of processes."""
    values.setdefault("per_device_train_batch_size", 8)
    wanted, processes = recipe.run.global_batch_size, num_processes()
    if wanted is None:
        values.setdefault("gradient_accumulation_steps", 1)
        return values
    if wanted % processes:
        raise InputError(f"run.global_batch_size: {wanted} blocks cannot be shared by {processes} processes")
    share = wanted // processes
    micro = min(values["per_device_train_batch_size"], share)
    if share % micro:
        raise InputError(
            f"training.per_device_train_batch_size: {micro} does not divide the {share} blocks of each process "
            f"(run.global_batch_size {wanted} / {processes})"
        )
    return values | {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}


def model_config(recipe: PretrainRecipe) -> IngotConfig:
    """The architecture that the recipe says.

    Raises: InputError for contradictory values.
    """
    values = {"max_position_embeddings": recipe.data.seq_length, **recipe.model.upstream_values()}
    if values.get("loss_implementation") == "fused" and not FUSED_AVAILABLE:
        raise InputError(f"model.loss_implementation: fused needs torch 2.13, not {torch.__version__}; take chunked")
    if recipe.model.attn_implementation != "sdpa":
        values["attn_implementation"] = recipe.model.attn_implementation
    try:
        return IngotConfig(**values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"model: {error}") from error


def build_model(
    recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase, shards: Sequence[Shards] = ()
) -> IngotForCausalLM:
    """A model of random weights that fits the tokenizer and the tokens of the shards.

    Raises: InputError when they do not go together.
    """
    config = model_config(recipe)
    check_pair(tokenizer, config.vocab_size, "model.vocab_size", needs=("eos",), new=True, shards=shards)
    config.bos_token_id = None
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    try:
        return IngotForCausalLM(config)
    except (ImportError, ValueError) as error:
        if recipe.model.attn_implementation == "sdpa":
            raise
        raise InputError(f"model.attn_implementation: {' '.join(str(error).split())}") from error


def check_prompts(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
    """Raises: InputError for a prompt that the model cannot continue."""
    for prompt in recipe.run.sample_prompts:
        tokens = len(tokenizer(prompt)["input_ids"])
        if not 0 < tokens < positions:
            raise InputError(
                f"run.sample_prompts: '{prompt[:40]}' has {tokens} tokens; give 1 to {positions - 1}, so that "
                f"one of the model's {positions} positions is left to continue it"
            )


def optimizer_for(recipe: PretrainRecipe, arguments: TrainingArguments) -> tuple[Any, dict[str, Any]] | None:
    """What Trainer takes as `optimizer_cls_and_kwargs`; None leaves `training.optim` to upstream.

    Raises: InputError for a strategy under which the optimizer would not see whole matrices.
    """
    if recipe.run.optimizer is None:
        return None
    if recipe.run.optimizer == "lion":
        given = recipe.training.upstream_values()
        # upstream's defaults are AdamW's
        betas = (given.get("adam_beta1", 0.9), given.get("adam_beta2", 0.99))
        return Lion, {"lr": arguments.learning_rate, "betas": betas}
    refuse_sharded_muon(arguments)
    kwargs = {
        "weight_decay": arguments.weight_decay,
        "lr": arguments.learning_rate,
        "momentum": arguments.adam_beta1,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "dtype": torch.bfloat16 if arguments.bf16 else torch.float32,
    }
    return MuonFactory, kwargs


def refuse_split_float8(arguments: TrainingArguments) -> None:
    """Raises: InputError under ZeRO-3, which hands a module's weights out only to modules that it knows."""
    if arguments.deepspeed_plugin is None:
        return
    strategy = _split_by(arguments.deepspeed_plugin.deepspeed_config.get("zero_optimization", {}))
    if strategy is not None:
        raise InputError(f"run.fp8: not with {strategy}; use FSDP2, which splits as much, ZeRO-1, ZeRO-2 or DDP")


def refuse_sharded_muon(arguments: TrainingArguments) -> None:
    """Raises: InputError under ZeRO-3, offload and FSDP, where no process has a layer's gradients whole."""
    strategy = None
    if arguments.deepspeed_plugin is not None:
        zero = arguments.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        strategy = _split_by(zero)
    elif uses_fsdp():
        strategy = "FSDP2"
    if strategy is not None:
        raise InputError(
            f"run.optimizer: muon needs whole matrices and {strategy} splits them; use ZeRO-1, ZeRO-2 or DDP, "
            "or --run.optimizer=null"
        )


def _split_by(zero: dict[str, Any]) -> str | None:
    """The DeepSpeed strategy that leaves no process a whole gradient."""
    if zero.get("offload_optimizer"):
        return f"ZeRO-{zero.get('stage')} with offload"
    return "ZeRO-3" if zero.get("stage") == 3 else None


def callbacks(
    recipe: PretrainRecipe,
    folder: Path,
    arguments: TrainingArguments,
    model: IngotForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
) -> list[TrainerCallback]:
    """Metrics, the check for numbers that are not finite, samples, and the stop on a signal."""
    architecture, schedule = architecture_of_config(model.config), data.schedule
    flops = {length: training_flops_per_token(architecture, length) for length in schedule.lengths}
    tokens_per_step = data.num_blocks * data.seq_length // arguments.max_steps
    throughput = Throughput(tokens_per_step, lambda step: flops[schedule.length_at(step)])
    to_bits = 1 / (math.log(2) * data.heldout.bytes_per_target)
    return [
        MetricsCallback(folder, throughput, to_bits, data.epochs),
        LookBeforeSaving(),
        SamplesCallback(folder, tokenizer, recipe.run.sample_prompts, recipe.run.sample_tokens),
        StopOnSignal(),
    ]


def compute_format(arguments: TrainingArguments) -> torch.dtype:
    """The format of matrix products."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


def describe(model: IngotForCausalLM, data: RunData, arguments: TrainingArguments) -> None:
    """Says in a few lines what is about to run, where and on what."""
    where = "CPU" if arguments.device.type == "cpu" else torch.cuda.get_device_name()
    precision = {torch.bfloat16: "bf16 autocast", torch.float16: "fp16 autocast"}.get(
        compute_format(arguments), "float32"
    )
    logger.info(
        "pretrain: %s parameters, %d processes on %s, %s",
        f"{model.num_parameters():,}", num_processes(), where, precision,
    )  # fmt: skip
    logger.info(
        "%s tokens in %d steps: %.2f epochs of %s tokens", f"{data.num_blocks * data.seq_length:,}",
        arguments.max_steps, data.epochs, f"{data.num_tokens:,}",
    )  # fmt: skip
    data.describe()


def conclude(
    trainer: PretrainTrainer,
    run: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
    predicted: dict[str, Any],
) -> dict[str, Any]:
    """Evaluates, saves the model with its tokenizer, and writes the report with the loss curve and the plan."""
    folder, evaluation = run.path, last_evaluation(trainer)
    loss = float(evaluation["eval_loss"])
    model = cast(IngotForCausalLM, trainer.model)
    save_model(trainer, folder / "model", tokenizer)
    metrics = read_metrics(folder / METRICS)
    rates = [m["tokens_per_second"] for m in metrics if "tokens_per_second" in m]
    results: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "steps": trainer.state.global_step,
        "tokens": data.num_blocks * data.seq_length,
        "heldout_loss": loss,
        "heldout_bits_per_byte": loss / math.log(2) / data.heldout.bytes_per_target,
        "tokens_per_second": median(rates) if rates else None,
        "save_pause_seconds": round(median(trainer.pauses), 2) if trainer.pauses else None,
        "save_seconds": round(median(trainer.saves), 2) if trainer.saves else None,
    }
    of_data = data.results(evaluation)
    held = hold(predicted, {**results, **measurements(metrics, run, loss)})
    if is_main_process():
        plot_loss(metrics, folder / "loss.png")
        rows = "\n".join(f"| {key} | {value} |" for key, value in results.items())
        parts = [
            "# Pretraining",
            f"| | |\n|---|---|\n{rows}",
            "![loss](loss.png)",
            data_report(of_data),
            *profile_report(folder),
            "## Plan and measurement",
            table(held),
        ]
        write_text(folder / "report.md", "\n\n".join([*parts, PLAN_NOTE]) + "\n")
    return {**results, **of_data, "plan": held}


def measurements(metrics: Sequence[Mapping[str, Any]], run: RunFolder, loss: float) -> dict[str, Any]:
    """What the plan is held against, beside the results: memory, MFU, hours, money and loss."""
    used = [m["mfu"] for m in metrics if "mfu" in m]
    price = run.recipe.plan.usd_per_gpu_hour if isinstance(run.recipe, PretrainRecipe) else None
    return {
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
        "mfu": median(used) if used else None,
        "hours": run.elapsed / 3600,
        "usd": None if price is None else run.elapsed / 3600 * num_processes() * price,
        "loss": loss,
    }


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """The held-out losses of the finished model, in nats per token; evaluated now unless its step was."""
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    step = state.best_global_step if best else state.global_step
    found = [log for log in state.log_history if "eval_loss" in log and log["step"] == step]
    return found[-1] if found else trainer.evaluate()


def save_model(trainer: Trainer, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a Hub-format folder: whole weights, code, tokenizer; the cache is on again, which training turned off."""
    cast(IngotForCausalLM, trainer.model).config.use_cache = True
    trainer.save_model(str(folder))
    if is_main_process():
        copy_tokenizer(Path(tokenizer.name_or_path), folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says the same
