"""Pretraining speed on this machine, Ingot beside the stock Trainer: tokens/s, MFU, step time, memory, warm-up.

Every row is the real stage on random tokens in a process of its own; what does not run is a row with the reason.
Without arguments: the flagship where a GPU holds it, else the largest recipe that fits; on a CPU the quick start's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ingot.benchmark.train_step_cases import (
    CORPORA,
    PRECISIONS,
    ROOT,
    VARIANTS,
    Case,
    Ladder,
    base_tree,
    check_overrides,
    has_experts,
    ladders,
    own_micro_batch,
)
from ingot.benchmark.train_step_defaults import fitting_micro_batches, standard_recipe
from ingot.benchmark.train_step_processes import Workshop, ask_machine
from ingot.benchmark.train_step_report import GB, RATE, Row, best_rows, plot, table
from ingot.failures import interruptible
from ingot.planning.arguments import Parser, count, number, output_file, positive
from ingot.recipe import InputError, build_recipe
from ingot.runs import get_logger, write_json
from ingot.training.pretrain import PretrainRecipe

logger = get_logger(__name__)

SLOWER = 0.99  # of the best rate: below it a larger micro-batch is taken to be past the best


def train_step_command(arguments: Sequence[str]) -> None:
    """Measures and prints a table, or JSON.

    Raises: InputError for a wrong word, recipe or strategy.
    """
    asked = _parser().parse_all(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ingot-train-step-") as folder:
        machine = ask_machine(Path(folder))
        wanted = list(planned(asked, machine))
        results: Row = {"machine": machine, "command": ["ingot", "benchmark", "train_step", *arguments]}
        results |= {"seconds": 0.0, "rows": []}

        def keep(row: Row) -> None:
            results["rows"].append(row)
            results["seconds"] = round(time.monotonic() - began, 1)
            if asked.out is not None:
                write_json(asked.out, results)
            logger.info("%s", said(row))

        with interruptible(), Workshop(Path(folder), ahead=machine["device"] != "CPU") as workshop:
            deadline = None if asked.time_limit is None else began + asked.time_limit
            run_all(wanted, lambda case: workshop.run(case, asked.timeout), keep, deadline)
    if asked.plot is not None:
        plot(results, asked.plot)
    print(json.dumps(results, indent=1) if asked.json else table(results))


def _parser() -> Parser:
    parser = Parser(
        prog="ingot benchmark train_step", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_argument_group("what is measured")
    what.add_argument("--recipe", action="append", help="recipe of pretrain, repeatable")
    what.add_argument("--micro-batches", type=counts, help="sequences on a GPU, such as 8,16,24; default: what fits")
    what.add_argument("--accumulation", type=accumulation, default=1, help="micro-batches of a step, or: recipe")
    what.add_argument("--corpus", type=some_of(CORPORA), default=CORPORA, help="unpacked, documents or both (default)")
    what.add_argument("--precision", type=some_of(PRECISIONS), help="bf16,fp8,fp32; default: bf16, on a GPU fp8 too")
    what.add_argument("--strategy", type=words, help="files of accelerate_configs/, such as ddp,zero1,fsdp2")
    what.add_argument("--num-processes", type=count, help="GPUs to use; default: all")
    what.add_argument("--seq-length", type=lengths, default=(None,), help="tokens in a sequence, such as 8192,32768")
    what.add_argument("--gradient-checkpointing", action="store_true", help="keep only each layer's input")
    what.add_argument("--memory-limit-gb", type=positive, help="cap torch's allocator, in units of 10^9 bytes")
    what.add_argument("--set", action="append", default=[], help="a key of the recipe, section.key=value, repeatable")
    what.add_argument(
        "--dense-twin", action=argparse.BooleanOptionalAction, default=True,
        help="beside a mixture of experts its dense model of as many active parameters",
    )  # fmt: skip
    what.add_argument("--ingot", action=argparse.BooleanOptionalAction, default=True, help="measure Ingot")
    stock = parser.add_argument_group("the stock Trainer")
    stock.add_argument("--stock", action=argparse.BooleanOptionalAction, default=True, help="measure it, too")
    stock.add_argument("--stock-variants", type=some_of(VARIANTS), default=VARIANTS, help="plain,compile,liger")
    stock.add_argument(
        "--stock-micro-batches", type=counts, help="default: half the recipe's, the recipe's, and twice that"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=count, help="measured steps; default 15, on a CPU 4")
    how.add_argument("--warmup-steps", type=count, help="steps before them; default 5, on a CPU 2")
    how.add_argument("--timeout", type=positive, default=300.0, help="seconds for a case; default %(default).0f")
    how.add_argument("--time-limit", type=number(least=0), help="seconds after which no further case is started")
    how.add_argument("--out", type=output_file, help="JSON file, written anew after every case")
    how.add_argument("--plot", type=output_file, help="picture of the table")
    how.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def words(text: str) -> tuple[str, ...]:
    """`a,b` as its parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def counts(text: str) -> tuple[int, ...]:
    """`8,16` as numbers, of which there is at least one."""
    if not (found := tuple(count(part) for part in words(text))):
        raise argparse.ArgumentTypeError("names no number")
    return found


def lengths(text: str) -> tuple[int, ...]:
    """`8192,32768` as numbers; a sequence of one token has nothing to predict."""
    if min(found := counts(text)) < 2:
        raise argparse.ArgumentTypeError("a sequence has at least 2 tokens")
    return found


def accumulation(text: str) -> int | str:
    """A number of micro-batches, or `recipe`: as many as its batch takes."""
    return text if text == "recipe" else count(text)


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: some of these words, with commas."""

    def parse(text: str) -> tuple[str, ...]:
        found = words(text)
        if not found or set(found) - set(known):
            raise argparse.ArgumentTypeError(f"'{text}': there are {', '.join(known)}")
        return found

    return parse


def planned(asked: argparse.Namespace, machine: Row) -> Iterator[Ladder]:
    """The ladders that the command line asks for on this machine.

    Raises: InputError for a recipe or strategy that there is not.
    """
    if not (asked.ingot or asked.stock) or asked.strategy == ():
        raise InputError("nothing to measure: leave out --no-ingot or --no-stock, and give --strategy a name")
    processes = asked.num_processes or max(1, machine["num_gpus"])
    if 0 < machine["num_gpus"] < processes:
        raise InputError(f"--num-processes: {processes}, and this machine has {machine['num_gpus']} GPUs")
    room = machine["memory_bytes"]
    if asked.memory_limit_gb is not None and room is None:
        raise InputError("--memory-limit-gb: there is no GPU whose memory could be limited; leave it out")
    if asked.memory_limit_gb is not None and room is not None:
        room = min(room, int(asked.memory_limit_gb * GB))
    for recipe in asked.recipe or [standard_recipe(room)]:
        for strategy in _strategies(asked.strategy, processes, machine["num_gpus"] > 0):
            for seq_length in asked.seq_length:
                base = _base(asked, room is not None)
                named = replace(base, recipe=str(Path(recipe).resolve()), strategy=strategy, seq_length=seq_length)
                yield from _of(replace(named, num_processes=processes), asked, room)


def _base(asked: argparse.Namespace, on_gpu: bool) -> Case:
    """What all cases have in common."""
    # a tiny step on a CPU is to be tried by anybody: AdamW on both sides, as the stock Trainer has no Muon
    quick = [] if on_gpu or asked.recipe else ["run.optimizer=null"]
    return Case(
        recipe="",
        runner="ingot",
        micro_batch=1,
        accumulation=asked.accumulation,
        gradient_checkpointing=asked.gradient_checkpointing,
        steps=asked.steps or (15 if on_gpu else 4),
        warmup_steps=asked.warmup_steps or (5 if on_gpu else 2),
        memory_limit=None if asked.memory_limit_gb is None else int(asked.memory_limit_gb * GB),
        overrides=check_overrides([*quick, *asked.set]),
    )


def _of(base: Case, asked: argparse.Namespace, room: int | None) -> Iterator[Ladder]:
    """The ladders of one recipe, strategy and length.

    Raises: InputError for a recipe, or a key of `--set`, that pretrain would refuse.
    """
    build_recipe(PretrainRecipe, base_tree(base), base.recipe)
    own = own_micro_batch(base)
    return ladders(
        replace(base, twin=asked.dense_twin and has_experts(base)),
        asked.micro_batches or fitting_micro_batches(base, own, room),
        asked.stock_micro_batches or ((own,) if room is None else (max(1, own // 2), own, 2 * own)),
        asked.corpus,
        (asked.precision or (("bf16",) if room is None else ("bf16", "fp8"))) if asked.ingot else (),
        asked.stock_variants if asked.stock else (),
    )


def _strategies(given: tuple[str, ...] | None, processes: int, on_gpu: bool) -> tuple[str, ...]:
    """Raises: InputError for a name that is no file, or does not go with the number of processes.

    A strategy for several GPUs can be tried on one.
    """
    known = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
    alone = ("single", "single_gpu", "cpu")
    for name in given or ():
        if name not in known and name != "single":
            raise InputError(f"--strategy: '{name}' is not known; there are single, {', '.join(known)}")
        if name in alone and processes > 1:
            raise InputError(f"--strategy: {name} with {processes} processes; give --num-processes 1")
        if name not in alone and processes == 1 and not on_gpu:
            raise InputError(f"--strategy: {name} with one process on a CPU; give it more with --num-processes")
    if given is None:
        return ("single",) if processes == 1 else ("zero1", "fsdp2")
    return tuple("single" if name in alone else name for name in given)


def run_all(
    wanted: Sequence[Ladder],
    run: Callable[[Case], Row],
    keep: Callable[[Row], None],
    deadline: float | None,
) -> None:
    """Climbs every ladder; `keep` takes each row as it comes. After the deadline nothing more is started."""
    best: dict[Ladder, Row] = {}
    for ladder in wanted:
        first = best.get(ladder.start_at) if ladder.start_at else None
        rows: list[Row] = []
        for case in order(ladder, first):
            if first is not None and rows and RATE in rows[-1]:
                break  # the largest that fits
            late = deadline is not None and time.monotonic() > deadline
            reason = "the time limit was reached" if late else passed(rows, downwards=first is not None)
            row = {**case.settings(), "logging_steps": case.logging_steps}
            row |= {"skipped": reason} if reason else run(case)
            rows.append(row)
            keep(row)
        found = best_rows(rows)[0]
        if RATE in found:
            best[ladder] = found


def order(ladder: Ladder, first: Row | None) -> list[Case]:
    """The rungs upwards, or from the best micro-batch of another ladder downwards."""
    if first is None:
        return ladder.rungs()
    return [case for case in reversed(ladder.rungs()) if case.micro_batch <= first["micro_batch"]]


def passed(rows: Sequence[Row], downwards: bool) -> str | None:
    """Why the next rung need not be tried after these rows; None where it has to be."""
    if not rows:
        return None
    last, rates = rows[-1], [row[RATE] for row in rows if RATE in row]
    if "skipped" in last:
        return str(last["skipped"])
    if downwards:
        return None
    if "error" in last:
        return f"{last['micro_batch']} failed"
    return f"{last['micro_batch']} was slower" if last[RATE] < SLOWER * max(rates) else None


def said(row: Row) -> str:
    """A row as a line of progress."""
    if "skipped" in row:
        return f"{row['case']}: not tried: {row['skipped']}"
    if "error" in row:
        return f"{row['case']}: {row['error']}"
    share = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
    return f"{row['case']}: {row[RATE]:,.0f} tokens/s per GPU{share} ({row['wall_seconds']:.0f} s)"


if __name__ == "__main__":
    from ingot.runs import exit_code_of

    sys.exit(exit_code_of(lambda: train_step_command(sys.argv[1:])))
