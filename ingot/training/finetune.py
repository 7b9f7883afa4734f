"""What sft and dpo share: the start model, TRL's trainers made safe, the training run, and the saved model."""

import copy
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames

from ingot.loading import load_config, load_model, load_tokenizer
from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.recipe import InputError
from ingot.runs import get_logger, is_main_process, model_folder, num_processes, read_json, sha256_json, write_json
from ingot.tokenization.build import copy_tokenizer
from ingot.tokenization.chat_template import stop_token_ids
from ingot.training.adapters import (
    TOLERANCE,
    AdapterModel,
    adapter_in_float32,
    check_equal,
    merge_adapter,
    probe_logits,
)
from ingot.training.arguments import make_arguments
from ingot.training.callbacks import LookBeforeSaving, MetricsCallback, StopOnSignal, Throughput
from ingot.training.continuing import train_to_the_end
from ingot.training.heldout import packing_leak
from ingot.training.launch import copying, uses_fsdp
from ingot.training.processes import on_main
from ingot.training.safety import TrainingRun
from ingot.vocabulary import check_pair
from modeling import IngotForCausalLM

logger = get_logger(__name__)


class Start(NamedTuple):
    """The model that training starts from."""

    folder: Path
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model takes, where its config says so."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)


def open_start(path: Path) -> Start:
    """Reads config and tokenizer of the model to start from, and checks that they belong together.

    Raises: InputError when there is no tokenizer, or they do not.
    """
    folder, tokenizer, config = model_folder(path), load_tokenizer(path), load_config(path)
    check_pair(tokenizer, config.get_text_config().vocab_size, f"run.from: {folder}", needs=("eos", "pad"))
    return Start(folder, config, tokenizer)


def training_arguments(config_class: type[Any], values: dict[str, Any], run_dir: Path, start: Start) -> Any:
    """trl's SFTConfig or DPOConfig from the recipe's `training` section.

    Raises: InputError when upstream refuses a value.
    """
    fixed = {"output_dir": str(run_dir), "disable_tqdm": True, "logging_nan_inf_filter": False}
    values = {"report_to": "none", **values, **copying(values), **fixed}
    # TRL reads a coefficient of None as "add the experts' balance loss", in a model without experts too
    if getattr(start.config, "router_aux_loss_coef", 0.0) is None:
        values.setdefault("router_aux_loss_coef", 0.0)
    args = make_arguments(config_class, values)
    _refuse_sharded(args)
    return args


def _refuse_sharded(args: TrainingArguments) -> None:
    """Measuring, merging and saving here need the whole model on a process."""
    plugin = args.deepspeed_plugin
    zero3 = plugin is not None and plugin.deepspeed_config.get("zero_optimization", {}).get("stage") == 3
    if zero3 or uses_fsdp():
        raise InputError(
            f"{'ZeRO-3' if zero3 else 'FSDP'} splits the weights, which sft and dpo do not support; launch with "
            "accelerate_configs/ddp.yaml, zero1.yaml or zero2.yaml, or train an adapter (model.adapter: qlora)"
        )


def check_packing(trainer: Any, section: AdapterModel) -> None:
    """Shows on one packed row that this model keeps packed rows apart; an architecture may ignore where they begin.

    Raises: InputError when it does not.
    """
    lengths = trainer.train_dataset["seq_lengths"] if trainer.args.packing else []
    index = next((i for i, rows in enumerate(lengths) if len(rows) > 1), None)
    if index is None:
        return
    leak, largest = packing_leak(trainer.model, trainer.data_collator([trainer.train_dataset[index]]))
    if leak > TOLERANCE["bfloat16" if section.adapter == "qlora" else section.dtype] * max(1.0, largest):
        raise InputError(
            f"training.packing: in a {type(trainer.model).__name__} packed rows see each other (logits differ by "
            f"{leak:.2g}); set it to false"
        )


class MeasureBefore(TrainerCallback):
    """Measures the start model on the held-out rows, once the trainer has set it up; a resume finds the result."""

    def __init__(
        self, run_dir: Path, rows: Any, measure: Callable[[torch.nn.Module], Any], load: Callable[[], PreTrainedModel]
    ) -> None:
        """`rows`: what is measured on, as JSON; `load`: the start model, for a resume that finds no result of it."""
        self.path, self.rows, self.measure, self.load = run_dir / "before.json", sha256_json(rows), measure, load

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs on every process."""
        if state.global_step > 0 and on_main(self._is_known):
            return
        model: Any = kwargs["model"] if state.global_step == 0 else self.load()
        if model.device != args.device:  # a model in 4 bits is there and cannot be moved
            model.to(args.device)
        measured = self.measure(model)
        if is_main_process():
            write_json(self.path, {"rows": self.rows, "measured": measured})

    def _is_known(self) -> bool:
        found = read_json(self.path) if self.path.is_file() else None
        return isinstance(found, dict) and found.get("rows") == self.rows

    def result(self) -> Any:
        """What was measured, now or before the run was interrupted."""
        return read_json(self.path)["measured"]


def train(trainer: Any, run: TrainingRun, before: MeasureBefore, tokens_per_row: float) -> None:
    """Trains from the newest checkpoint, or from the beginning.

    Raises: what `train_to_the_end` does.
    """
    run_dir = Path(trainer.args.output_dir)
    adapter_in_float32(trainer.model)
    trainer.remove_callback(PrinterCallback)
    metrics = MetricsCallback(run_dir, _throughput(trainer, tokens_per_row))
    for callback in (before, metrics, LookBeforeSaving(), StopOnSignal()):
        trainer.add_callback(callback)
    train_to_the_end(trainer, run, OptimizerNames(trainer.args.optim).value)


def _throughput(trainer: Any, tokens_per_row: float) -> Throughput:
    """Tokens per second; MFU where the FLOPs are known: an Ingot model with all its weights trained."""
    args, model = trainer.args, trainer.model
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes()
    flops = None
    if isinstance(model, IngotForCausalLM):
        flops = training_flops_per_token(architecture_of_config(model.config), round(tokens_per_row))
    return Throughput(round(tokens_per_row * rows), flops)


def save_result(
    trainer: Any, start: Start, section: AdapterModel, end_of_turn: int, probes: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Writes `<run.dir>/model` (and `adapter`) and proves that the folder holds the trained model.

    Returns the largest differences of logits on `probes`: `merge_max_difference` with an adapter, and
    `reload_max_difference`. On the main process only; the others wait.
    Raises: RuntimeError when one of them is more than rounding.
    """
    results: dict[str, float] = {}
    if is_main_process():
        run_dir, model = Path(trainer.args.output_dir), trainer.model
        if section.adapter != "none":
            model, results["merge_max_difference"] = merge_adapter(
                model, run_dir / "adapter", start.folder, section, probes
            )
        write_model(model, start, end_of_turn, run_dir / "model")
        results["reload_max_difference"] = _check_saved(model, run_dir / "model", section, probes)
    trainer.accelerator.wait_for_everyone()
    return results


def write_model(model: PreTrainedModel, start: Start, end_of_turn: int, folder: Path) -> None:
    """Writes a Hub-format folder: weights, code, tokenizer (byte for byte the start's), generation config.

    The config is the start's: a trainer turns `use_cache` off and changes what the router returns.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    model.config = _result_config(start, model.dtype)
    model.generation_config = generation_config(start, end_of_turn)
    model.save_pretrained(staging)
    copy_tokenizer(start.folder, staging)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def _result_config(start: Start, dtype: torch.dtype) -> PreTrainedConfig:
    config = copy.deepcopy(start.config)
    config.use_cache, config.dtype = True, dtype
    config.get_text_config().pad_token_id = start.tokenizer.pad_token_id
    return config


def generation_config(start: Start, end_of_turn: int) -> GenerationConfig:
    """The start's generation config; text ends at the end of a turn or of a document."""
    if (start.folder / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(start.folder)
    else:
        config = GenerationConfig.from_model_config(start.config)
    ends = config.eos_token_id or []
    ends = [end_of_turn, *stop_token_ids(start.tokenizer), *(ends if isinstance(ends, list) else [ends])]
    config.eos_token_id = list(dict.fromkeys(ends))
    config.pad_token_id = start.tokenizer.pad_token_id
    return config


def _check_saved(
    model: PreTrainedModel, folder: Path, section: AdapterModel, probes: Sequence[Sequence[int]]
) -> float:
    saved: Any = load_model(folder, unfinished=True)
    saved.to(model.device)
    return check_equal(probe_logits(model, probes), probe_logits(saved, probes), section.dtype, str(folder))
