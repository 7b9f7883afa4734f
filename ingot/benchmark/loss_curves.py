"""Variants of one recipe on the same blocks in the same order, their losses held against each other.

Without --run: the stock Trainer with upstream's Qwen3, bf16, bf16 with two other seeds (other initial weights, other
blocks: what chance alone does), and fp8. The learning rate warms up over the first tenth of the steps.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any

from ingot.benchmark.curve_plots import plot_variants
from ingot.benchmark.training_runs import (
    Row,
    Run,
    Study,
    earlier_rows,
    new_results,
    open_study,
    study_parser,
    take_overrides,
    train_all,
)
from ingot.planning.arguments import count
from ingot.recipe import InputError
from ingot.runs import write_json

PROG = "ingot benchmark loss_curves"
STOCK = ("ingot.benchmark.stock_pretrain",)
OF_STOCK = "stock"  # runs whose name begins so are the stock Trainer's
LAST_STEPS = 100  # that the training loss at the end is the mean of
OF_CHANCE = "seed"  # runs whose name begins so differ from the reference in their seed alone


def loss_curves_command(argv: Sequence[str]) -> None:
    """`ingot benchmark loss_curves --config RECIPE --out FOLDER`: loss_curves.json, loss_curves.png and a table.

    Raises: InputError for words or recipes that are wrong.
    """
    words, rest = _parser().parse_known_args(list(argv))
    overrides = take_overrides(rest, PROG)
    earlier = earlier_rows(words)
    runs = _runs(words, [row["name"] for row in earlier])
    with open_study(words, overrides) as study:
        check_steps(study, runs)
        results = _measure(study, runs, earlier, words)
    print(json.dumps(results, indent=1) if words.json else table(results))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(PROG, __doc__, "loss_curves", steps=1000, evaluations=10)
    parser.add_argument(
        "--run", action="append", metavar="'NAME [--section.key=value ...]'",
        help=f"a run and what it changes, repeatable; a name that begins with `{OF_STOCK}` is "
        f"the stock Trainer's, one that begins with `{OF_CHANCE}` differs from the reference in training.seed alone",
    )  # fmt: skip
    parser.add_argument("--against", default="bf16", help="the reference among the runs; default %(default)s")
    parser.add_argument("--stock-micro-batch", type=count, default=8, help="it holds all logits; default %(default)s")
    return parser


def _runs(words: argparse.Namespace, earlier: Sequence[str]) -> list[Run]:
    """The runs that the words ask for, beside those of earlier studies.

    Raises: InputError for names that come twice, or a reference that is none of them.
    """
    seeds = (f"{OF_CHANCE}{n} --training.seed={n}" for n in (2, 3))
    texts = words.run or [OF_STOCK, "bf16", *seeds, "fp8 --run.fp8=true"]
    runs = [_run(text, words.stock_micro_batch) for text in texts]
    names = [*earlier, *(run.name for run in runs)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--run: there are two runs named '{name}'; give each a name of its own")
    if words.against not in names:
        raise InputError(f"--against: '{words.against}' is none of the runs: {', '.join(names)}")
    return runs


def _run(text: str, stock_micro_batch: int) -> Run:
    try:
        name, *keys = shlex.split(text) or [""]
    except ValueError as error:
        raise InputError(f"--run: '{text}': {error}") from error
    if not name or name.startswith("-"):
        raise InputError(f"--run: '{text}': write a name, then what the run changes: 'fp8 --run.fp8=true'")
    changed = take_overrides(keys, f"{PROG} --run")
    if not name.startswith(OF_STOCK):
        return Run(name, changed)
    small = tuple(f"--training.per_device_{what}_batch_size={stock_micro_batch}" for what in ("train", "eval"))
    return Run(name, (*small, *changed), program=STOCK)


def check_steps(study: Study, runs: Sequence[Run]) -> None:
    """Raises: InputError when the stock Trainer's micro-batch would make other steps than the recipe's."""
    for run in runs:
        if run.program == STOCK and study.recipe(run)["run"].get("global_batch_size") is None:
            raise InputError(
                "run.global_batch_size: missing; with it the stock Trainer's smaller micro-batch makes the same steps"
            )


def _measure(study: Study, runs: Sequence[Run], rows: list[Row], words: argparse.Namespace) -> dict[str, Any]:
    """Trains; the results are written anew after every run."""
    results = {**new_results(study, rows), "against": words.against}
    names = [*(row["name"] for row in rows), *(run.name for run in runs)]

    def keep(row: Row) -> None:
        rows.append(row)
        rows.sort(key=lambda row: names.index(row["name"]))
        results["summary"] = summary(rows, words.against)
        write_json(words.out / "loss_curves.json", results)

    train_all(study, runs, words.jobs, keep)
    plot_variants(rows, words.against, words.out / "loss_curves.png", window=max(1, len(rows[0]["train"]) // 20))
    return results


def summary(rows: Sequence[Row], against: str) -> dict[str, dict[str, Any]]:
    """By run: the last held-out loss, the mean training loss of the last steps, and both beside the reference's.

    `*_difference`: relative. `within_chance`: whether the held-out losses are as near as the furthest two of three or
    more runs that differ in their seed alone; two would be a single draw of chance, and it is left out.
    """
    ended = {row["name"]: _ends(row) for row in rows if "error" not in row and row["heldout"]}
    if against not in ended:
        return ended
    reference = ended[against]
    for one in ended.values():
        for key in ("heldout", "train"):
            one[f"{key}_difference"] = one[f"{key}_loss"] / reference[f"{key}_loss"] - 1
    alike = {name for name in ended if name == against or name.startswith(OF_CHANCE)}
    chance = [ended[name]["heldout_difference"] for name in alike]
    for name, one in ended.items():
        if len(chance) > 2 and name not in alike:
            one["within_chance"] = abs(one["heldout_difference"]) <= max(chance) - min(chance)
    return ended


def _ends(row: Row) -> dict[str, Any]:
    last = [loss for step, loss in row["train"] if step > row["steps"] - LAST_STEPS]
    return {"heldout_loss": row["heldout"][-1][1], "train_loss": sum(last) / len(last)}


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    beside, found = f"beside {results['against']}", results["summary"]
    last = min(LAST_STEPS, results["steps"])
    heads = ["run", "held-out loss", beside, f"training loss of the last {last} steps", beside]
    judged = any("within_chance" in one for one in found.values())
    heads += ["no further than seeds from each other"] if judged else []
    lines = [f"{results['device']}, torch {results['torch']}, {results['steps']} steps", ""]
    lines += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, one in found.items():
        cells = [name]
        for key in ("heldout", "train"):
            difference = one.get(f"{key}_difference")
            cells += [f"{one[f'{key}_loss']:.4f}", "" if difference is None else f"{difference:+.3%}"]
        cells += [{True: "yes", False: "no", None: ""}[one.get("within_chance")]] if judged else []
        lines.append(f"| {' | '.join(cells)} |")
    failed = [f"- {row['name']}: {row['error']}" for row in results["runs"] if "error" in row]
    return "\n".join([*lines, *(["", *failed] if failed else [])])
