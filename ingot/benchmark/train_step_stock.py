"""The other side of the table: a plain transformers Trainer on upstream's model of a recipe's shape."""

import contextlib
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ingot.benchmark.train_step_cases import BUILT_ON_CPU, Case
from ingot.benchmark.train_step_child import RECIPE, RUN, Trained, device_of
from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.recipe import InputError, load_recipe
from ingot.runs import num_processes
from ingot.training.arguments import make_arguments
from ingot.training.callbacks import MetricsCallback, Throughput
from ingot.training.launch import prepare_launch
from ingot.training.pretrain import PretrainRecipe
from ingot.training.pretrain_loop import model_config
from modeling import IngotConfig

SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "hidden_act", "initializer_range", "attention_bias",
)  # fmt: skip
EXPERTS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef",
    "decoder_sparse_step", "mlp_only_layers",
)  # fmt: skip
# keys of a recipe that a stock run has, too
KEPT = (
    "gradient_checkpointing", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "seed",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compile": {"torch_compile": True},
    "liger": {"use_liger_kernel": True},
}
BLOCKS = 64  # different ones; more would teach nothing


class RandomBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of random tokens in memory."""

    def __init__(self, num_blocks: int, length: int, rows: int) -> None:
        self.num_blocks = num_blocks
        self.ids = torch.randint(rows, (BLOCKS, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index % BLOCKS], "labels": self.ids[index % BLOCKS]}


def run_stock(case: Case, folder: Path) -> Trained:
    """Trains for the steps of a case.

    Raises: InputError for a shape that upstream has no model of.
    """
    recipe = load_recipe(PretrainRecipe, folder / RECIPE)
    shape, given = model_config(recipe), recipe.training.upstream_values()
    values = prepare_launch({key: given[key] for key in KEPT if key in given})
    steps, length = case.warmup_steps + case.steps, recipe.data.seq_length
    batch = cast(int, recipe.run.global_batch_size)
    arguments = make_arguments(
        TrainingArguments,
        {
            **values, "output_dir": str(folder / RUN), "max_steps": steps, "logging_steps": case.logging_steps,
            "per_device_train_batch_size": case.micro_batch, "lr_scheduler_type": "constant",
            "gradient_accumulation_steps": batch // (case.micro_batch * num_processes()),
            "bf16": case.precision != "fp32",
            "optim": "adamw_torch_fused", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "ddp_find_unused_parameters": False,
            "dataloader_pin_memory": not values.get("use_cpu", False), **VARIANTS[case.variant],
        },
    )  # fmt: skip
    set_seed(arguments.seed)
    model = build(stock_config(shape), case)
    (folder / RUN).mkdir(exist_ok=True)
    throughput = Throughput(batch * length, training_flops_per_token(architecture_of_config(shape), length))
    blocks = RandomBlocks(steps * batch, length, shape.vocab_size)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=cast(Any, blocks),
        callbacks=[MetricsCallback(folder / RUN, throughput)],
    )
    trainer.train()
    return Trained(shape, length, batch * length, "adamw_torch_fused", trainer)


def build(config: PreTrainedConfig, case: Case) -> Any:
    """Float32 weights, drawn on the GPU where they lie whole."""
    whole = case.strategy not in BUILT_ON_CPU
    with torch.device(device_of(case)) if whole else contextlib.nullcontext():
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def stock_config(shape: IngotConfig) -> PreTrainedConfig:
    """Upstream's configuration of the same network: Qwen3, Qwen3-MoE, or Llama without norms of queries and keys.

    Raises: InputError when there is none.
    """
    usual = shape.position_embedding_type == "rope" and shape.norm_type == "rms_norm" and shape.norm_position == "pre"
    gated = shape.mlp_gated and not shape.mlp_bias and not shape.shared_expert_intermediate_size
    if not (usual and gated and not shape.use_sliding_window and (shape.qk_norm or not shape.num_experts)):
        raise InputError("the stock Trainer has no model of this shape: neither Qwen3, Qwen3-MoE nor Llama")
    values = {name: getattr(shape, name) for name in SHARED} | {"use_cache": False}
    if shape.num_experts:
        experts = {name: getattr(shape, name) for name in EXPERTS}
        return Qwen3MoeConfig(**values, **experts, output_router_logits=True)
    return Qwen3Config(**values) if shape.qk_norm else LlamaConfig(**values)
