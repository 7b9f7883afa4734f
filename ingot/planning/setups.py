"""How a model is trained, as far as memory goes, and the formats of the numbers that follow from it."""

from dataclasses import dataclass
from typing import Literal, get_args

from ingot.planning.optimizers import find_optimizer
from ingot.recipe_yaml import InputError

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
Precision = Literal["fp32", "bf16", "fp8"]
Adapter = Literal["none", "lora", "qlora"]
LossImplementation = Literal["auto", "plain", "chunked", "fused"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
MOST_BLOCKS = 10**6  # of a micro-batch; more is a slip of the hand


@dataclass(frozen=True)
class TrainingSetup:
    """A training run's settings that decide over memory. Raises: InputError when they cannot be.

    micro_batch: blocks (for DPO: pairs) of one forward pass on one GPU; global_batch_size: those of an optimizer step
    on all GPUs, which then decides over accumulation; packed: blocks hold several documents, which takes a mask where
    the flash kernel is not to be had; compiled: the layers are, as in every run of some length;
    reference_model: DPO's second model is in memory; weights_in_bf16: they are loaded so (DeepSpeed makes them so
    anyway); eval_micro_batch: 0 when nothing is evaluated.
    """

    micro_batch: int
    seq_length: int
    strategy: Strategy = "single"
    num_gpus: int = 1
    precision: Precision = "bf16"
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    global_batch_size: int | None = None
    packed: bool = True
    compiled: bool = False
    loss_implementation: LossImplementation = "auto"
    adapter: Adapter = "none"
    rank: int = 16
    stage: Literal["pretrain", "sft", "dpo"] = "pretrain"
    reference_model: bool = False
    weights_in_bf16: bool = False
    eval_micro_batch: int = 0

    def __post_init__(self) -> None:
        for name in ("micro_batch", "seq_length", "num_gpus", "gradient_accumulation_steps", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; it must be at least 1")
        for name in ("micro_batch", "gradient_accumulation_steps", "eval_micro_batch"):
            if getattr(self, name) > MOST_BLOCKS:
                raise InputError(f"{name}: {getattr(self, name)}; it must be at most {MOST_BLOCKS}")
        if self.strategy not in STRATEGIES:
            raise InputError(f"strategy: '{self.strategy}' is not one of {', '.join(STRATEGIES)}")
        if self.strategy == "single" and self.num_gpus > 1:
            raise InputError(f"strategy: 'single' is one GPU, not {self.num_gpus}; choose ddp, zero1-3 or fsdp2")
        find_optimizer(self.optimizer)
        self._refuse_what_training_refuses()

    def _refuse_what_training_refuses(self) -> None:
        if self.sharded_weights and self.stage != "pretrain":
            raise InputError(
                f"strategy: '{self.strategy}' splits the weights, which {self.stage} does not support; choose single, "
                "ddp, zero1 or zero2, or an adapter (model.adapter: qlora) on one of them"
            )
        if self.precision == "fp8" and self.strategy in ("zero3", "zero3_offload"):
            raise InputError(
                f"precision: 'fp8' does not go with the strategy '{self.strategy}'; choose fsdp2, which splits as "
                "much, ddp, zero1 or zero2, or bf16"
            )
        if self.optimizer != "muon":
            return
        if self.stage != "pretrain" or self.adapter != "none":
            raise InputError(
                "optimizer: 'muon' is for pretraining all weights; choose another for sft, dpo and adapters"
            )
        if self.sharded_weights:
            raise InputError(
                f"optimizer: 'muon' needs whole matrices and the strategy '{self.strategy}' splits them; choose ddp, "
                "zero1 or zero2, or another optimizer"
            )

    @property
    def rows(self) -> int:
        """Sequences of one forward pass: for DPO a chosen and a rejected one for each pair."""
        return 2 * self.micro_batch if self.stage == "dpo" else self.micro_batch

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.rows * self.seq_length

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step on one GPU."""
        if self.global_batch_size is None:
            return self.gradient_accumulation_steps
        return max(1, -(-self.global_batch_size // (self.num_gpus * self.micro_batch)))

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed runs it: weights in bfloat16 and no autocast."""
        return self.strategy.startswith("zero")

    @property
    def sharded_weights(self) -> bool:
        """Whether a GPU holds only its share of the weights, and gathers a layer's when it needs them."""
        return self.strategy in ("zero3", "zero3_offload", "fsdp2")


@dataclass(frozen=True)
class Formats:
    """Bytes of one number, by what it is for."""

    weight: int  # as the model holds it
    gradient: int  # as backward leaves it
    compute: int  # inputs and outputs of matrix products
    norm: int  # what a norm keeps of its input
    residual: int  # the stream between the layers, and its gradient
    copies: int  # autocast's copy of a layer's weight; 0 without one
    head_copy: int  # the same of the head's
    master: int  # DeepSpeed's own copy of the weights; 0 without one


def formats_of(setup: TrainingSetup, own: bool = True) -> Formats:
    """The formats of a setup; own: for Ingot's model.

    Autocast (bf16 on one GPU or under DDP) keeps weights in float32 and copies them for the products. Ingot's model
    then has the residual stream and what norms keep in bfloat16, models of transformers in float32. fp8 casts a
    layer's weights on the fly, and the head's twice. FSDP2 gathers bfloat16 weights. DeepSpeed has all in bfloat16.
    """
    norm = 2 if own else 4
    if setup.precision == "fp32":
        return Formats(4, 4, 4, 4, 4, 0, 0, 4 if setup.deepspeed else 0)
    if setup.deepspeed:
        return Formats(2, 2, 2, 2, 2, 0, 0, 4)
    if setup.strategy == "fsdp2":
        return Formats(4, 4, 2, norm, 2, 0, 0, 0)
    if setup.weights_in_bf16:
        return Formats(2, 2, 2, norm, 2, 0, 0, 0)
    return Formats(4, 4, 2, norm, norm, 0 if setup.precision == "fp8" else 2, 2, 0)
