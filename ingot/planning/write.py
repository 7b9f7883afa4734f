"""`ingot plan write`: a folder of recipes for a budget, which loads, fits the card and runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingot.planning import write_files, write_later
from ingot.planning.budget import budget_of
from ingot.planning.flops import training_flops_per_token
from ingot.planning.machine import Machine
from ingot.planning.scaling import find_law, token_limit
from ingot.planning.show import amount, duration, money, percent, size, table
from ingot.planning.write_choice import Choice, Wish, best_parameters, choose
from ingot.planning.write_files import Plan
from ingot.planning.write_source import BUILTIN_TOKENS, text_of, tokenizer_of
from ingot.recipe_yaml import InputError
from ingot.runs import write_text

SEVERAL_GPUS = ("ddp", "zero1", "zero3")  # tried in this order: each holds less on a GPU, and sends more between them
PASSES = 4  # over the same text count nearly as new text (Muennighoff et al. 2023, arXiv 2305.16264)


def write_recipes(words: Any, machine: Machine) -> tuple[dict[str, Any], str]:
    """Chooses a model for the budget and writes its recipes; returns what was chosen, as plain values and as a page.

    Raises: InputError for options that do not go together, a folder that is not empty, or when nothing fits.
    """
    name = _checked_name(words.name or words.out.resolve().name, words.out)
    if machine.memory is None:
        raise InputError("--memory-gb: missing; name a GPU of the table with --gpu, or give its memory")
    plan = make_plan(words, machine, name)
    words.out.mkdir(parents=True, exist_ok=True)
    for stage, text in recipes(plan):
        write_text(words.out / f"{stage}.yaml", text)
    found = describe(plan)
    return found, page(found)


def _checked_name(name: str, out: Path) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"--name: '{name}' cannot name run folders; use letters, digits, '_', '-' and '.'")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out: {out} is not empty; choose another folder, or move it away")
    return name


def make_plan(words: Any, machine: Machine, name: str) -> Plan:
    """Everything that will be written, decided.

    Raises: InputError as `write_recipes` does.
    """
    flops, law = budget_of(words, machine)["flops"], find_law(words.law)
    text = text_of(words.data, words.dataset_tokens)
    limit = token_limit(text.tokens, words.max_epochs) if text.tokens else None
    tokenizer = tokenizer_of(words, text, best_parameters(law, flops, limit))
    strategies = SEVERAL_GPUS if words.strategy is None and machine.num_gpus > 1 else (machine.strategy,)
    wish = Wish(flops, machine, strategies, law, tokenizer.rows, words.seq_length, limit)
    choice = choose(wish)
    return Plan(
        words.out, name, wish, choice, text, tokenizer, words.mfu, _hours(choice, wish, words.mfu), str(words.law)
    )


def _hours(choice: Choice, wish: Wish, mfu: float) -> float:
    """Wall hours of the run; fewer than the budget's where the text is the limit."""
    assert wish.machine.peak is not None
    rate = mfu * wish.machine.peak * wish.machine.num_gpus
    return choice.tokens * training_flops_per_token(choice.architecture, wish.seq_length) / rate / 3600


def recipes(plan: Plan) -> Iterator[tuple[str, str]]:
    """Stage and text of every file."""
    if plan.tokenizer.folder is None:
        yield "train_tokenizer", write_files.train_tokenizer(plan)
    yield "prepare_data", write_files.prepare_data(plan)
    yield "pretrain", write_files.pretrain(plan)
    if write_later.has_tuning(plan):
        yield "sft", write_later.sft(plan)
        yield "dpo", write_later.dpo(plan)
    yield "evaluate", write_later.evaluate(plan)
    yield "export", write_later.export(plan)


def describe(plan: Plan) -> dict[str, Any]:
    """What was chosen, as nested plain values."""
    choice, machine, setup = plan.choice, plan.wish.machine, plan.choice.setup
    price, gpu_hours = machine.usd_per_gpu_hour, plan.hours * machine.num_gpus
    return {
        "out": str(plan.out), "name": plan.name, "stages": [stage for stage, _ in recipes(plan)],
        "budget": {"flops": plan.wish.flops, "gpus": plan.gpus, "mfu": plan.mfu},
        "shape": {k: v for k, v in vars(choice.shape).items() if v},
        "vocab_size": plan.wish.vocab_size, "tied": plan.wish.tied,
        "parameters": {"total": choice.architecture.total, "active": choice.architecture.active},
        "tokens": choice.tokens, "tokens_per_parameter": choice.tokens / choice.architecture.active,
        "law": plan.law_name, "loss": plan.loss, "hours": plan.hours, "usd": price * gpu_hours if price else None,
        "training": {
            "max_steps": choice.batch.steps, "global_batch_size": choice.batch.blocks,
            "seq_length": plan.wish.seq_length, "micro_batch": setup.micro_batch, "strategy": setup.strategy,
            "num_gpus": setup.num_gpus, "optimizer": setup.optimizer,
            "gradient_checkpointing": setup.gradient_checkpointing,
            "learning_rate": choice.batch.learning_rate,
        },
        "memory": {"peak_bytes": choice.peak_bytes, "usable_bytes": machine.memory},
        "warnings": list(warnings(plan)),
    }  # fmt: skip


def warnings(plan: Plan) -> Iterator[str]:
    """What the user should know before starting."""
    text, tokens = plan.text, plan.choice.tokens
    known = BUILTIN_TOKENS if text.kind == "builtin" else text.tokens
    if known and tokens > PASSES * known:
        way = "give --data" if text.stand_in or text.kind == "builtin" else "give more text"
        yield f"reads about {amount(known)} tokens {tokens / known:,.0f} times; more than {PASSES} teach little: {way}"
    affordable = plan.wish.flops / training_flops_per_token(plan.choice.architecture, plan.wish.seq_length)
    if tokens < 0.9 * affordable:
        yield (
            f"the text is the limit: {amount(tokens)} tokens take {duration(plan.hours)}; more text, or a larger "
            "--max-epochs, would use the time that is left"
        )
    if plan.wish.law.extrapolates(plan.wish.flops) or plan.loss_is_off:
        yield f"{plan.law_name} was fitted to runs of quite another size: take its word with care"
    if plan.choice.setup.gradient_checkpointing:
        yield f"layers are computed twice to fit the memory: {percent(plan.mfu)} MFU may be too much to expect"
    if text.kind != "builtin":
        yield "sft and dpo are not written: they need rows of your own; see recipes/125m/sft.yaml and dpo.yaml"


def page(found: dict[str, Any]) -> str:
    """The same for people."""
    shape, training = found["shape"], found["training"]
    rows = [
        ("parameters", f"{found['parameters']['total']:,}"),
        ("layers x width", f"{shape['num_hidden_layers']} x {shape['hidden_size']}"),
        ("tokens", f"{amount(found['tokens'])}, {found['tokens_per_parameter']:.0f} a parameter"),
        ("steps", f"{training['max_steps']:,} of {training['global_batch_size'] * training['seq_length']:,} tokens"),
        ("micro-batch", f"{training['micro_batch']}, {training['strategy']}, {training['optimizer']}"),
        ("checkpointing", "yes" if training["gradient_checkpointing"] else "no"),
        ("memory", f"{size(found['memory']['peak_bytes'])} of {size(found['memory']['usable_bytes'])}"),
        ("time", f"{duration(found['hours'])} at {percent(found['budget']['mfu'])} MFU"),
        ("loss", "n/a" if found["loss"] is None else f"{found['loss']:.3f} by {found['law']}"),
        *([("money", money(found["usd"]))] if found["usd"] else []),
    ]
    notes = "".join(f"\nnote: {warning}" for warning in found["warnings"])
    written = f"{found['out']}: {', '.join(found['stages'])}"
    num_gpus = training["num_gpus"]
    launch = f" --launch accelerate_configs/{training['strategy']}.yaml --num_processes {num_gpus}"
    command = f"ingot run {found['out']}{launch if num_gpus > 1 else ''}"
    return f"{written}\n{table(rows)}{notes}\n\nrun it with: {command}"
