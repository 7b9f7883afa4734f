"""The training steps whose memory is measured, and the real Trainer of each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ingot.data.assembly import Block, collate
from ingot.planning.setups import LossImplementation, TrainingSetup
from ingot.recipe_yaml import read_yaml
from ingot.training.arguments import make_arguments
from ingot.training.compiling import Compiling, compile_layers
from ingot.training.float8 import train_in_float8
from ingot.training.pretrain_loop import optimizer_for
from ingot.training.pretrain_trainer import PretrainTrainer
from modeling import IngotConfig, IngotForCausalLM

RECIPES = Path(__file__).parents[2] / "recipes"
DOCUMENTS = 4  # in a packed block


@dataclass(frozen=True)
class Case:
    """One training step: a model, its batch, and what decides over memory."""

    model: str  # a folder of recipes/, or any name when `values` are given
    micro_batch: int
    seq_length: int
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    bf16: bool = True
    loss_implementation: LossImplementation = "auto"
    packed: bool = True  # several documents in a block: in float32 attention needs a mask
    compiled: bool = True  # on a GPU, as in every run of some length; what is simulated is not
    fp8: bool = False
    gradient_accumulation_steps: int = 1
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of IngotConfig

    @property
    def name(self) -> str:
        """The case in one line."""
        parts = [self.model, f"{self.micro_batch}x{self.seq_length}", self.optimizer]
        parts += [] if self.loss_implementation == "auto" else [f"{self.loss_implementation} loss"]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += [] if self.bf16 else ["float32"]
        parts += ["fp8"] if self.fp8 else []
        parts += [] if self.compiled else ["not compiled"]
        parts += [] if self.packed else ["one document a block"]
        parts += [f"{self.gradient_accumulation_steps} micro-batches"] if self.gradient_accumulation_steps > 1 else []
        return ", ".join(parts)

    @property
    def config(self) -> IngotConfig:
        """The model's configuration: the recipe's."""
        values = dict(self.values) or read_yaml(RECIPES / self.model / "pretrain.yaml")["model"]
        values = {key: value for key, value in values.items() if key != "tokenizer"}
        own = {"max_position_embeddings": self.seq_length, "loss_implementation": self.loss_implementation}
        return IngotConfig(**{**values, **own})

    @property
    def setup(self) -> TrainingSetup:
        """The same in the planner's words."""
        return TrainingSetup(
            micro_batch=self.micro_batch,
            seq_length=self.seq_length,
            precision="fp8" if self.fp8 else "bf16" if self.bf16 else "fp32",
            compiled=self.compiled,
            optimizer=self.optimizer,
            gradient_checkpointing=self.gradient_checkpointing,
            loss_implementation=self.loss_implementation,
            packed=self.packed,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )


CASES = (
    Case("tiny", 32, 512),
    Case("tiny", 64, 512, bf16=False),
    Case("125m", 16, 1024),
    Case("125m", 32, 1024, "muon"),
    Case("125m", 16, 1024, gradient_checkpointing=True, loss_implementation="chunked"),
    Case("360m", 8, 2048, packed=False),
    Case("360m", 16, 2048, gradient_checkpointing=True, gradient_accumulation_steps=2),
    Case("730m-12gb", 4, 384, "adamw_8bit"),
    Case("730m-12gb", 16, 384, loss_implementation="plain"),
    Case("730m-12gb", 8, 384, "muon", gradient_checkpointing=True),
    Case("1b5-24gb", 2, 1024, "sgd"),
    Case("1b8", 1, 2048, "adamw_torch"),
    Case("1b8", 4, 2048),
    Case("1b8", 8, 2048, loss_implementation="chunked"),
    Case("1b8", 8, 2048, packed=False, compiled=False),
    Case("1b8", 24, 2048),
    Case("1b8", 24, 2048, fp8=True),
    Case("1b8", 16, 2048, gradient_checkpointing=True),
    Case("1b8", 8, 2048, "muon", gradient_checkpointing=True),
    Case("moe-small", 8, 1024),
    Case("moe-small", 32, 1024, gradient_checkpointing=True),
)


class RandomBlocks(Dataset[Block]):
    """Blocks of random tokens, shaped as pretraining's; a packed one holds documents of equal length."""

    def __init__(self, case: Case, num_blocks: int, rows: int) -> None:
        self.case, self.num_blocks, self.rows = case, num_blocks, rows

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Block:
        length = self.case.seq_length
        ids = torch.randint(self.rows, (length,), generator=torch.Generator().manual_seed(index))
        document = length // DOCUMENTS if self.case.packed else length
        block = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(length) % document}
        return {name: values.numpy() for name, values in block.items()}


def make_trainer(case: Case, output_dir: str, steps: int, use_cpu: bool) -> PretrainTrainer:
    """Pretraining's own trainer for a case, on random tokens; layers are compiled on a GPU."""
    optim = {} if case.optimizer == "muon" else {"optim": case.optimizer}
    values: dict[str, Any] = {
        "output_dir": os.fspath(output_dir), "max_steps": steps, "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.gradient_accumulation_steps,
        "gradient_checkpointing": case.gradient_checkpointing, "bf16": case.bf16, "learning_rate": 1e-4,
        "weight_decay": 0.1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "remove_unused_columns": False, "use_cpu": use_cpu, "dataloader_pin_memory": not use_cpu, **optim,
    }  # fmt: skip
    arguments = make_arguments(TrainingArguments, values)
    run = SimpleNamespace(optimizer="muon" if case.optimizer == "muon" else None)
    blocks = steps * case.micro_batch * case.gradient_accumulation_steps
    with torch.device(arguments.device):
        model = IngotForCausalLM(case.config)
    if case.fp8:
        train_in_float8(model)
    compile_layers(model, Compiling(case.compiled and not use_cpu))
    return PretrainTrainer(
        model=model,
        args=arguments,
        train_dataset=cast(Any, RandomBlocks(case, blocks, case.config.vocab_size)),
        data_collator=collate,
        # `run` is all that it reads of a recipe
        optimizer_cls_and_kwargs=optimizer_for(cast(Any, SimpleNamespace(run=run)), arguments),
    )
