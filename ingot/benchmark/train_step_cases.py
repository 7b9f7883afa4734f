"""What `ingot benchmark train_step` measures: a case for each row, and the recipe that a case runs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ingot.recipe_yaml import InputError, apply_overrides, read_yaml

ROOT = Path(__file__).parents[2]
LEARNING_RATE = 1e-5  # nothing is to be learned from random tokens
MICRO_BATCH = 8  # upstream's default
CORPORA = ("unpacked", "documents")
PRECISIONS = ("bf16", "fp8", "fp32")
VARIANTS = ("plain", "liger", "compile")
# keys of a recipe that the benchmark sets itself, each with the option that does
OWN = {
    "run.dir": None, "run.sample_prompts": None, "model.tokenizer": None, "data.shards": None, "data.mixture": None,
    "run.global_batch_size": "--accumulation", "training.gradient_accumulation_steps": "--accumulation",
    "training.per_device_train_batch_size": "--micro-batches", "training.max_steps": "--steps",
    "training.logging_steps": "--steps", "data.seq_length": "--seq-length",
    "training.bf16": "--precision", "run.fp8": "--precision",
}  # fmt: skip
# what a recipe may say of a whole run, and a few steps have no use for
DROPPED = (
    "num_train_epochs", "gradient_accumulation_steps", "lr_scheduler_kwargs", "warmup_steps", "eval_steps",
    "eval_delay", "eval_on_start", "save_steps", "save_total_limit", "load_best_model_at_end", "metric_for_best_model",
    "logging_strategy", "logging_first_step",
)  # fmt: skip
BUILT_ON_CPU = ("zero3", "zero3_offload")  # strategies in which upstream splits the weights while they are made
EXPERT_KEYS = ("num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef", "norm_topk_prob")


@dataclass(frozen=True)
class Case:
    """One run of a few steps: Ingot's stage, or the stock Trainer on a model of the same shape.

    seq_length: tokens of a block, None for the recipe's; variant: how the stock Trainer is run; accumulation:
    micro-batches of a step, or as many as the recipe's batch takes; memory_limit: bytes that torch's allocator may
    take; overrides: `--a.b=c` for the recipe.
    """

    recipe: str
    runner: Literal["ingot", "stock"]
    micro_batch: int
    corpus: str = "unpacked"
    precision: str = "bf16"
    variant: str = ""
    strategy: str = "single"
    num_processes: int = 1
    accumulation: int | Literal["recipe"] = 1
    seq_length: int | None = None
    gradient_checkpointing: bool = False
    twin: bool = False  # the dense model of as many active parameters, in place of experts
    steps: int = 15
    warmup_steps: int = 5
    memory_limit: int | None = None
    overrides: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The recipe's folder, or file when it is called otherwise than the stage."""
        path = Path(self.recipe)
        name = path.parent.name if path.stem == "pretrain" else path.stem
        return f"{name}, dense twin" if self.twin else name

    @property
    def how(self) -> str:
        """Everything but the micro-batch, in one line: rows of one line are tried at several micro-batches."""
        who = f"Trainer, {self.variant}, {self.precision}" if self.runner == "stock" else f"Ingot, {self.precision}"
        parts = [self.model, who.replace("Trainer, plain", "Trainer")]
        parts += [] if self.corpus == "unpacked" else [self.corpus]
        parts += [] if self.seq_length is None else [f"{self.seq_length} tokens"]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += [] if self.accumulation == 1 else [f"accumulation {self.accumulation}"]
        parts += [] if self.memory_limit is None else [f"in {self.memory_limit / 1e9:g} GB"]
        parts += [] if self.strategy == "single" else [f"{self.strategy} x {self.num_processes}"]
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """The case in one line."""
        return f"{self.how}, micro-batch {self.micro_batch}"

    @property
    def logging_steps(self) -> int:
        """Steps between two measurements: they begin with the first step after the warm-up and end with the last."""
        return math.gcd(self.warmup_steps, self.steps)

    def settings(self) -> dict[str, Any]:
        """The case as plain values."""
        return {**asdict(self), "overrides": list(self.overrides), "case": self.name, "how": self.how}


def case_of(settings: dict[str, Any]) -> Case:
    """The case that `settings` described."""
    values = {key: value for key, value in settings.items() if key not in ("case", "how")}
    return Case(**{**values, "overrides": tuple(values["overrides"])})


def base_tree(case: Case) -> dict[str, Any]:
    """The recipe with the case's overrides, before the benchmark's own settings.

    Raises: InputError for a file that is no recipe of pretrain.
    """
    tree = apply_overrides(read_yaml(Path(case.recipe)), case.overrides)
    missing = [name for name in ("model", "data", "training", "run") if not isinstance(tree.get(name), dict)]
    if missing:
        raise InputError(f"{case.recipe}: no section `{missing[0]}`; name a recipe of pretrain")
    return tree


def recipe_tree(case: Case, corpus: Path, run_dir: Path) -> dict[str, Any]:
    """The recipe that a case runs: the file's, on the toy corpus, for a few steps without saving or evaluation."""
    tree = base_tree(case)
    training = {key: value for key, value in tree["training"].items() if key not in DROPPED}
    training |= {
        "max_steps": case.warmup_steps + case.steps, "per_device_train_batch_size": case.micro_batch,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "logging_steps": case.logging_steps,
        "save_strategy": "no", "eval_strategy": "no", "bf16": case.precision != "fp32",
    }  # fmt: skip
    if compiles():
        training.setdefault("torch_compile", True)  # as a run of usual length decides
    if case.gradient_checkpointing:
        training["gradient_checkpointing"] = True
    data = {key: value for key, value in tree["data"].items() if key not in ("mixture", "seq_length_schedule")}
    data["shards"] = str(corpus / "shards")
    model = {**tree["model"], "tokenizer": str(corpus / "tokenizer")}
    if case.twin:
        model = dense_twin(model)
    if case.seq_length is not None:
        data["seq_length"] = model["max_position_embeddings"] = case.seq_length
    run = {key: value for key, value in tree["run"].items() if key != "sample_prompts"}
    run |= {"dir": str(run_dir), "global_batch_size": global_batch_size(case)}
    run["fp8"] = (run.get("fp8") or True) if case.precision == "fp8" else False
    return {**tree, "model": model, "data": data, "training": training, "run": run}


def compiles() -> bool:
    """Whether longer runs compile their layers here."""
    import torch

    from modeling.modeling_ingot import makes_kernels

    return torch.cuda.is_available() and makes_kernels(torch.device("cuda"))


def dense_twin(model: dict[str, Any]) -> dict[str, Any]:
    """A model section without experts, whose feed-forward is as wide as the experts that a token meets together."""
    shared = model.get("shared_expert_intermediate_size", 0)
    width = model["num_experts_per_tok"] * model["moe_intermediate_size"] + shared
    dropped = ("num_experts", "shared_expert_intermediate_size", *EXPERT_KEYS)
    return {**{key: value for key, value in model.items() if key not in dropped}, "intermediate_size": width}


def seq_length_of(case: Case) -> int:
    """Tokens of a block."""
    return case.seq_length or int(base_tree(case)["data"]["seq_length"])


def global_batch_size(case: Case) -> int:
    """Sequences of a step, over all processes.

    Raises: InputError when micro-batches of this size do not add up to the recipe's.
    """
    together = case.micro_batch * case.num_processes
    if case.accumulation != "recipe":
        return together * case.accumulation
    wanted = own_batch(case)
    if wanted is None:
        return together * int(base_tree(case)["training"].get("gradient_accumulation_steps", 1))
    if wanted % together:
        raise InputError(
            f"--accumulation recipe: {together} sequences at a time do not make the {wanted} of a step; "
            "give other --micro-batches, or a number"
        )
    return wanted


def makes_a_step(case: Case) -> bool:
    """Whether micro-batches of this size add up to a step."""
    wanted = own_batch(case) if case.accumulation == "recipe" else None
    return wanted is None or wanted % (case.micro_batch * case.num_processes) == 0


def own_batch(case: Case) -> int | None:
    """The recipe's sequences of a step, where it says."""
    wanted = base_tree(case)["run"].get("global_batch_size")
    return None if wanted is None else int(wanted)


def own_micro_batch(case: Case) -> int:
    """The recipe's."""
    return int(base_tree(case)["training"].get("per_device_train_batch_size", MICRO_BATCH))


def has_experts(case: Case) -> bool:
    """Whether the recipe is a mixture of experts."""
    return bool(base_tree(case)["model"].get("num_experts"))


def check_overrides(words: Sequence[str]) -> tuple[str, ...]:
    """`training.x=y` as overrides of a recipe.

    Raises: InputError for a key that the benchmark sets itself.
    """
    for word in words:
        key = word.removeprefix("--").partition("=")[0]
        if "=" not in word:
            raise InputError(f"--set {word}: needs a value: --set {word}=VALUE")
        if key in OWN:
            option = OWN[key]
            raise InputError(f"--set {key}: the benchmark sets it" + (f"; use {option}" if option else ""))
    return tuple(f"--{word.removeprefix('--')}" for word in words)


@dataclass(frozen=True)
class Ladder:
    """A case at several micro-batches.

    Up: from the smallest on, until one fails or is slower. With `start_at`, a ladder that has run: from its best
    micro-batch down, until one fits.
    """

    case: Case
    micro_batches: tuple[int, ...]
    start_at: "Ladder | None" = None

    def rungs(self) -> list[Case]:
        """The cases, from the smallest micro-batch on."""
        return [replace(self.case, micro_batch=size) for size in sorted(set(self.micro_batches))]


def ladders(
    base: Case,
    micro_batches: tuple[int, ...],
    stock_micro_batches: tuple[int, ...],
    corpora: Sequence[str],
    precisions: Sequence[str],
    variants: Sequence[str],
) -> Iterator[Ladder]:
    """All ladders of one recipe under one strategy; documents at the micro-batch that was best without them."""
    for twin in (False, True) if base.twin else (False,):
        best: dict[str, Ladder] = {}
        for corpus in corpora:
            for precision in precisions:
                case = replace(base, runner="ingot", corpus=corpus, precision=precision, twin=twin)
                found = Ladder(case, micro_batches, best.get(precision))
                best.setdefault(precision, found)
                yield found
    rounded = "fp32" if tuple(precisions) == ("fp32",) else "bf16"
    for variant in variants:
        stock = replace(base, runner="stock", variant=variant, corpus="unpacked", precision=rounded, twin=False)
        yield Ladder(stock, stock_micro_batches)
