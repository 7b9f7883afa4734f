"""The training steps whose memory is measured, and the real Trainer of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.utils.data import Dataset, default_collate
from transformers import TrainingArguments

from ingot.planning.architecture import architecture_of_config
from ingot.planning.memory import TrainingSetup
from ingot.training.pretrain_loop import optimizer_for
from ingot.training.pretrain_trainer import PretrainTrainer
from modeling import IngotConfig, IngotForCausalLM

# The models of recipes/, by folder: layers, width, query and key/value heads, head width, feed-forward, rows, tied.
SHAPES = {
    "tiny": (8, 512, 8, 4, 64, 1408, 10_240, True),
    "125m": (12, 768, 12, 4, 64, 2048, 32_768, True),
    "360m": (24, 1024, 16, 8, 64, 2816, 49_152, True),
    "730m-12gb": (12, 1536, 24, 6, 64, 7680, 151_936, True),
    "1b8": (24, 2048, 16, 8, 128, 6144, 151_936, False),
    "moe-small": (12, 768, 12, 4, 64, 2048, 32_768, True),
}
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512}


@dataclass(frozen=True)
class Case:
    """One training step: a model, its batch, and what decides over memory."""

    model: str
    micro_batch: int
    seq_length: int
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    bf16: bool = True
    loss_implementation: str = "auto"
    packed: bool = True  # several documents in a block: attention needs a mask
    gradient_accumulation_steps: int = 1

    @property
    def name(self) -> str:
        """The case in one line."""
        parts = [
            self.model,
            f"{self.micro_batch}x{self.seq_length}",
            self.optimizer,
            f"loss {self.loss_implementation}",
        ]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += [] if self.bf16 else ["fp32"]
        parts += [] if self.packed else ["one document a block"]
        parts += [f"{self.gradient_accumulation_steps} micro-batches"] if self.gradient_accumulation_steps > 1 else []
        return ", ".join(parts)

    @property
    def config(self) -> IngotConfig:
        """The model's configuration."""
        layers, width, heads, groups, head_dim, inner, rows, tied = SHAPES[self.model]
        experts = EXPERTS if self.model.startswith("moe") else {}
        return IngotConfig(
            vocab_size=rows, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, tie_word_embeddings=tied,
            max_position_embeddings=self.seq_length, loss_implementation=self.loss_implementation, **experts,
        )  # fmt: skip

    @property
    def setup(self) -> TrainingSetup:
        """The same in the planner's words."""
        return TrainingSetup(
            micro_batch=self.micro_batch,
            seq_length=self.seq_length,
            precision="bf16" if self.bf16 else "fp32",
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
    Case("1b8", 4, 2048),
    Case("1b8", 8, 2048, loss_implementation="chunked"),
    Case("1b8", 16, 2048, gradient_checkpointing=True),
    Case("1b8", 8, 2048, "muon", gradient_checkpointing=True),
    Case("1b8", 4, 2048, "adamw_torch"),
    Case("moe-small", 8, 1024),
)


class RandomBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of random tokens, shaped as pretraining's: packed ones hold four documents of equal length."""

    def __init__(self, case: Case, num_blocks: int, rows: int) -> None:
        self.case, self.num_blocks, self.rows = case, num_blocks, rows

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= self.num_blocks:
            raise IndexError(index)
        ids = torch.randint(self.rows, (self.case.seq_length,), generator=torch.Generator().manual_seed(index))
        document = self.case.seq_length // 4 if self.case.packed else self.case.seq_length
        return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(self.case.seq_length) % document}


def make_trainer(case: Case, output_dir: str, steps: int, use_cpu: bool) -> PretrainTrainer:
    """Pretraining's own trainer for a case, on random tokens."""
    arguments = TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=case.gradient_accumulation_steps,
        gradient_checkpointing=case.gradient_checkpointing,
        bf16=case.bf16,
        learning_rate=1e-4,
        weight_decay=0.1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=use_cpu,
        dataloader_pin_memory=not use_cpu,
        **({} if case.optimizer == "muon" else {"optim": case.optimizer}),
    )
    muon = "muon" if case.optimizer == "muon" else None
    recipe: Any = SimpleNamespace(run=SimpleNamespace(optimizer=muon))  # all that optimizer_for reads
    blocks = steps * case.micro_batch * case.gradient_accumulation_steps
    return PretrainTrainer(
        model=IngotForCausalLM(case.config),
        args=arguments,
        train_dataset=cast(Any, RandomBlocks(case, blocks, case.config.vocab_size)),
        data_collator=default_collate,
        optimizer_cls_and_kwargs=optimizer_for(recipe, arguments),
    )


def parts_of(case: Case) -> Iterator[Any]:
    """The planner's description of the model, and the setup."""
    yield architecture_of_config(case.config)
    yield case.setup
