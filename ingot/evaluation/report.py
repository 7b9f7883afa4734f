"""report.md: every number of an evaluation in tables, with plots beside them."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.plots import plot_bars, plot_loss
from ingot.recipe import InputError
from ingot.runs import MANIFEST, read_json, write_text


@dataclass(frozen=True)
class Scores:
    """What was measured of one model."""

    results: dict[str, Any]  # the numbers of the manifest
    answers: list[dict[str, Any]]
    about: dict[str, Any]  # how it was measured


@dataclass(frozen=True)
class Evaluation:
    """What a report is written from; `folders` are the models' run folders or Hub folders."""

    scores: Mapping[str, Scores]
    folders: Mapping[str, Path]
    compressed: Mapping[str, Mapping[str, float]]
    conditions: Mapping[str, Any]


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Writes report.md and its plots into a folder."""
    sections = [
        "# Evaluation",
        *_held_out(evaluation, folder),
        *_tasks(evaluation, folder),
        *_training(evaluation, folder),
        *_answers(evaluation),
        *_conditions(evaluation),
    ]
    write_text(folder / "report.md", "\n\n".join(sections) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three decimals, counts with thousands separators."""
    lines = [[*map(str, header)], ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _escape(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("\n", "<br>")


def _held_out(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    yield "## Held-out text"
    keys = ("bits_per_byte", "nats_per_token", "perplexity", "accuracy")
    rows = [[name, *(scores.results[key] for key in keys)] for name, scores in evaluation.scores.items()]
    rows += [[f"{name} -9", size["bits_per_byte"], None, None, None] for name, size in evaluation.compressed.items()]
    yield table(["", "bits per byte", "nats per token", "perplexity", "next-token accuracy"], rows)
    first = next(iter(evaluation.scores.values())).results
    apart = ", ".join(f"{k} {v['bits_per_byte_separately']:.3f}" for k, v in evaluation.compressed.items())
    yield (
        f"{first['documents']:,} whole documents, {first['bytes']:,} bytes of UTF-8. "
        "Every token of a document counts once, with the text before it as far as the window reaches; the first costs "
        "log2(vocabulary size) bits; beginning-of-text and end-of-text tokens do not count. "
        f"The compressors get all documents in one file; one file for each document needs more: {apart}."
    )
    plot_bars(
        {name: scores.results["bits_per_byte"] for name, scores in evaluation.scores.items()},
        folder / "bits_per_byte.png",
        title=f"Held-out text, {first['documents']} documents",
        unit="bits per byte (lower is better)",
        lines={f"{name} -9": numbers["bits_per_byte"] for name, numbers in evaluation.compressed.items()},
    )
    yield "![bits per byte](bits_per_byte.png)"


def _tasks(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    tasks = list(next(iter(evaluation.scores.values())).results["tasks"])
    if tasks:
        yield "## Tasks"
    for task in tasks:
        results = {name: scores.results["tasks"][task] for name, scores in evaluation.scores.items()}
        first = next(iter(results.values()))
        metrics = [key for key in first if f"{key}_stderr" in first]
        rows: list[list[Any]] = [
            [name, *(_with_error(result, metric) for metric in metrics)] for name, result in results.items()
        ]
        if "chance" in first:
            rows.append(["chance", *(first["chance"] if m.startswith("acc") else None for m in metrics)])
        yield f"### {task}\n\n" + table(["", *metrics], rows)
        yield f"{first['rows']:,} rows, {first['num_fewshot']} examples in the prompt, version {first['version']}."
        if metrics:
            yield _task_plot(task, metrics[0], results, folder)


def _with_error(result: Mapping[str, Any], metric: str) -> str:
    return f"{result[metric]:.3f} ± {result[f'{metric}_stderr']:.3f}"


def _task_plot(task: str, metric: str, results: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    first = next(iter(results.values()))
    plot_bars(
        {name: result[metric] for name, result in results.items()},
        folder / f"{task}.png",
        title=f"{task}, {first['rows']} rows",
        unit=metric,
        errors={name: result[f"{metric}_stderr"] for name, result in results.items()},
        lines={"chance": first["chance"]} if "chance" in first else None,
    )
    return f"![{task}]({task}.png)"


def _training(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    """What the training runs measured: numbers before and after, and loss curves."""
    changes = [row for name, path in evaluation.folders.items() for row in before_and_after(name, path)]
    plots = [(n, m) for n, p in evaluation.folders.items() if (m := read_metrics(p / "metrics.jsonl"))]
    if changes or plots:
        yield "## Training"
    if changes:
        yield table(["", "measured", "before", "after"], changes)
    for name, metrics in plots:
        plot_loss(metrics, folder / f"loss_{name}.png", title=f"Loss of {name}")
        yield f"![loss of {name}](loss_{name}.png)"


def before_and_after(name: str, folder: Path) -> Iterator[list[Any]]:
    """Rows of name, quantity, before and after, from a run's manifest, for every `x_before` that has an `x_after`."""
    if not (folder / MANIFEST).is_file():
        return
    results = read_json(folder / MANIFEST)["results"]
    for key, value in results.items():
        quantity = key.removesuffix("_before")
        if key != quantity and f"{quantity}_after" in results:
            yield [name, quantity.replace("_", " "), value, results[f"{quantity}_after"]]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that hold a loss; none when there is no such file.

    Raises: InputError that names the line when it is not JSON.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise InputError(f"{path}, line {number}: not JSON") from None
    return [line for line in found if "step" in line and ("loss" in line or "eval_loss" in line)]


def _answers(evaluation: Evaluation) -> Iterator[str]:
    asked = [answer["prompt"] for answer in next(iter(evaluation.scores.values())).answers]
    if asked:
        yield "## Prompts"
        yield (
            "A model marked 'chat' answers through its chat template; the others continue the prompt as plain text. "
            f"Temperature {evaluation.conditions['temperature']}, seed {evaluation.conditions['seed']}. "
            "An ellipsis means that the model did not stop by itself."
        )
    for number, prompt in enumerate(asked):
        rows = []
        for name, scores in evaluation.scores.items():
            answer = scores.answers[number]
            label = f"{name} (chat)" if scores.about["chat"] else name
            rows.append([label, _escape(answer["text"]) + ("" if answer["stopped"] else " …")])
        yield f"### {number + 1}. {_escape(prompt)}\n\n" + table(["model", "text"], rows)


def _conditions(evaluation: Evaluation) -> Iterator[str]:
    """How it was measured, so that the numbers can be compared with others."""
    yield "## How it was measured"
    abouts = [scores.about for scores in evaluation.scores.values()]
    rows = [[key.replace("_", " "), *(about[key] for about in abouts)] for key in abouts[0]]
    yield table(["", *evaluation.scores], rows)
    yield table(["", "value"], [[key.replace("_", " "), value] for key, value in evaluation.conditions.items()])
