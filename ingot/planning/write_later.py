"""The text of a written folder's recipes after pretraining: sft, dpo, evaluate, export."""

from ingot.planning.memory import TrainingSetup
from ingot.planning.write_files import Plan, memory_rows, run_section
from ingot.planning.write_yaml import Raw, Row, quoted, recipe, section

STEP_ROWS = 16  # rows (pairs) of a step of SFT and DPO on one GPU, as in the quick start


def has_tuning(plan: Plan) -> bool:
    """Whether SFT and DPO are written: rows are made from the built-in corpus only, and they must fit."""
    whole = plan.choice.setup.strategy not in ("zero3", "zero3_offload", "fsdp2")  # sft and dpo refuse split weights
    return whole and plan.text.kind == "builtin" and plan.choice.sft is not None and plan.choice.dpo is not None


def adapter_section(setup: TrainingSetup) -> str:
    """Which weights are trained."""
    if setup.adapter == "none":
        return section("model", [("adapter", "none", "train every weight")])
    return section(
        "model",
        [
            ("adapter", setup.adapter, "small matrices beside the frozen weights: training all would not fit"),
            ("r", setup.rank, "rank of the matrices"),
            ("lora_alpha", 2 * setup.rank, "their product counts lora_alpha / r"),
        ],
    )


def rows_section(plan: Plan, what: str) -> str:
    """Rows that are made from the built-in corpus."""
    return (
        f"data:\n  train:\n    - builtin: sotu         # {what}\n"
        f"  heldout: {quoted(plan.run('prepare_data'))}   # rows from addresses that no training saw are measured with"
    )


def step_rows(setup: TrainingSetup, learning_rate: float, weight_decay: float) -> list[Row]:
    """Batch and learning rate of SFT and DPO."""
    accumulation = max(1, STEP_ROWS // setup.micro_batch)
    return [
        ("per_device_train_batch_size", setup.micro_batch, "as many as fit"),
        ("gradient_accumulation_steps", accumulation, f"{setup.micro_batch * accumulation} a step on one GPU"),
        *memory_rows(setup.optimizer, setup.gradient_checkpointing),
        *([] if setup.gradient_checkpointing else [("gradient_checkpointing", False, "TRL's default is true")]),
        ("learning_rate", learning_rate, ""),
        ("lr_scheduler_type", "cosine", ""),
        ("warmup_steps", 0.1, "a share of all steps"),
        ("weight_decay", weight_decay, ""),
        ("max_grad_norm", 1.0, ""),
        ("max_length", setup.seq_length, "as in pretraining; longer rows are cut, and counted"),
        ("bf16", True, ""),
        ("seed", 1, ""),
        ("logging_steps", 10, ""),
        ("save_strategy", "steps", ""),
        ("save_steps", 100, ""),
        ("save_total_limit", 1, ""),
    ]


def sft(plan: Plan) -> str:
    """The recipe of supervised fine-tuning."""
    setup, rate = plan.choice.sft, plan.choice.batch.learning_rate
    assert setup is not None
    rows: list[Row] = [
        ("num_train_epochs", 2, ""),
        *step_rows(setup, rate / 10 if setup.adapter == "none" else 2e-4, 0.01),
        ("packing", True, "several rows in one, each blind to the others"),
        ("assistant_only_loss", True, "learn the answers, not the questions"),
        ("eval_strategy", "steps", ""),
        ("eval_steps", 40, ""),
    ]
    return recipe(
        "The pretrained model learns to answer instructions about the addresses.",
        adapter_section(setup),
        rows_section(plan, "instructions made from the addresses; every answer is an address's own text"),
        section("training", rows),
        run_section(plan, "sft", ("from", plan.run("pretrain"), "")),
    )


def dpo(plan: Plan) -> str:
    """The recipe of preference optimisation."""
    setup, rate = plan.choice.dpo, plan.choice.batch.learning_rate
    assert setup is not None
    reference: list[Row] = [
        ("precompute_ref_log_probs", True, "the reference answers once, and is kept in no memory"),
        ("precompute_ref_batch_size", setup.micro_batch, ""),
    ]
    rows: list[Row] = [
        ("beta", 0.1, "how dearly the model pays for moving away from the start"),
        *(reference if setup.adapter == "none" else []),
        ("num_train_epochs", 2, ""),
        *step_rows(setup, rate / 100 if setup.adapter == "none" else 2e-5, 0.0),
        ("eval_strategy", Raw('"no"'), ""),
    ]
    return recipe(
        "The fine-tuned model learns to prefer an answer of the right century to one of another.",
        adapter_section(setup),
        rows_section(plan, "pairs made from the addresses: the right answer and one from another century"),
        section("training", rows),
        run_section(plan, "dpo", ("from", plan.run("sft"), "")),
    )


def evaluate(plan: Plan) -> str:
    """The recipe that measures what was trained."""
    candidates = {"base": "pretrain", "sft": "sft", "dpo": "dpo"} if has_tuning(plan) else {"base": "pretrain"}
    listed = "\n".join(f"    {name}: {plan.run(stage)}" for name, stage in candidates.items())
    length = plan.wish.seq_length
    return recipe(
        "Every model of this folder on the same held-out documents, questions and prompts.",
        f"model:\n  candidates:               # name: run folder, or any folder in the Hub's format\n{listed}",
        section(
            "data",
            [
                ("documents", plan.run("prepare_data"), ""),
                ("split", "test", "documents that no training stage has seen"),
                ("continuation_rows", 200, "questions made from them: which of four passages comes next?"),
            ],
        ),
        section(
            "perplexity",
            [
                ("seq_length", length, "tokens that the model sees at once, as in training"),
                ("stride", length // 2, "every token has at least so many before it, where there are so many"),
                ("batch_size", min(8, plan.choice.setup.micro_batch), ""),
                ("bf16", True, ""),
            ],
        ),
        section("generation", [("max_new_tokens", 64, ""), ("temperature", 0.7, ""), ("top_p", 0.95, "")]),
        run_section(plan, "evaluate"),
    )


def export(plan: Plan) -> str:
    """The recipe of the folder in the Hub's format."""
    last = "dpo" if has_tuning(plan) else "pretrain"
    about = f"A model of {plan.choice.architecture.total:,} parameters, trained from random weights."
    return recipe(
        "The last model as a folder in the Hub's format, with a model card, proved equal to its source.",
        section(
            "card",
            [
                ("title", Raw(quoted(plan.name)), ""),
                ("description", about, ""),
                ("evaluation", plan.run("evaluate"), "the numbers in the card"),
            ],
        ),
        run_section(plan, "export", ("from", plan.run(last), "")),
    )
