"""The model card: README.md with YAML metadata, written from the runs that made the model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.export.lineage import Run
from ingot.planning.held import table as plan_table
from ingot.recipe_yaml import dump_yaml
from ingot.runs import describe_file, write_text

CONFIG_ROWS = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key/value heads",
    "head_dim": "head width",
    "intermediate_size": "feed-forward size",
    "num_experts": "experts",
    "vocab_size": "vocabulary rows",
    "max_position_embeddings": "longest sequence in tokens",
    "tie_word_embeddings": "tied embeddings",
    "dtype": "dtype of the weights",
}
LIMITATIONS = (
    "The model continues text in the manner of its training data and knows nothing else. It states false things as "
    "readily as true ones, repeats the views and the prejudices of its sources, and has no safety training beyond "
    "what is listed above. Do not use it where an error does harm."
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that measured the exported model: its folder, its results, and the model's name in it."""

    folder: Path
    results: Mapping[str, Any]
    name: str | None  # None: it measured other models only


@dataclass(frozen=True)
class CardText:
    """What only the user can say."""

    title: str
    language: list[str] = field(default_factory=list)
    license: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Facts:
    """What the card is written from."""

    text: CardText
    folder: Path  # the exported folder
    num_parameters: int
    num_embedding: int  # of those, in the embeddings and the head
    runs: Sequence[Run]
    evaluated: Evaluated | None
    versions: Mapping[str, str]
    max_difference: float


def write_card(facts: Facts) -> None:
    """Writes README.md into the exported folder."""
    config = json.loads((facts.folder / "config.json").read_text(encoding="utf-8"))
    sections = [
        f"# {facts.text.title}",
        *_summary(facts, config),
        *_usage(facts, config),
        *_architecture(facts, config),
        *_runs(facts),
        *_evaluation(facts),
        f"## Limitations\n\n{LIMITATIONS}",
        *_files(facts),
    ]
    body = "\n\n".join(sections)
    write_text(facts.folder / "README.md", f"---\n{metadata(facts)}\n---\n\n{body}\n")


def metadata(facts: Facts) -> str:
    """The card's YAML block, with the evaluation's numbers where there are any."""
    from huggingface_hub import EvalResult, ModelCardData

    found = [
        EvalResult(
            task_type="text-generation", dataset_type=dataset.replace(" ", "-"), dataset_name=dataset,
            metric_type=metric, metric_name=metric.replace("_", " "), metric_value=round(value, 6),
        )
        for dataset, metric, value in _measured(facts.evaluated)
    ]  # fmt: skip
    data = ModelCardData(
        language=facts.text.language or None,
        license=facts.text.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["ingot", *dict.fromkeys(run.stage for run in facts.runs)],
        model_name=facts.text.title,
        eval_results=found or None,
    )
    return data.to_yaml()


def _measured(evaluated: Evaluated | None) -> Iterator[tuple[str, str, float]]:
    """Dataset, metric and value of every number about the exported model."""
    if evaluated is None or evaluated.name is None:
        return
    results = evaluated.results[evaluated.name]
    for metric in ("bits_per_byte", "perplexity", "accuracy"):
        yield "held-out documents", metric, results[metric]
    for task, numbers in results["tasks"].items():
        yield from (
            (task, metric, numbers[metric]) for metric in ("acc", "acc_norm", "exact_match") if metric in numbers
        )


def _summary(facts: Facts, config: Mapping[str, Any]) -> Iterator[str]:
    if facts.text.description:
        yield facts.text.description
    made = " -> ".join(run.stage for run in facts.runs)
    yield (
        f"A causal language model of {facts.num_parameters:,} parameters ({config['architectures'][0]}), "
        f"exported with Ingot {facts.versions.get('ingot', '')}".rstrip()
        + (f" after these stages: {made}." if made else ".")
    )


def _usage(facts: Facts, config: Mapping[str, Any]) -> Iterator[str]:
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    is_base = bool(facts.runs) and facts.runs[-1].stage == "pretrain"
    chat = (facts.folder / "chat_template.jinja").is_file() and not is_base
    ask = (
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        if chat
        else 'inputs = tokenizer("Hello", return_tensors="pt")\n'
    )
    yield (
        "## How to load\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # this folder, or its name on the Hub\n'
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})\n"
        f"model = AutoModelForCausalLM.from_pretrained(folder{trust})\n{ask}"
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))\n```"
    )
    if trust:
        yield (
            "The architecture is not part of transformers: its two Python files are in this folder, read them before "
            f"you trust them. They were tested with transformers {facts.versions.get('transformers', '5')}."
        )


def _architecture(facts: Facts, config: Mapping[str, Any]) -> Iterator[str]:
    rows: list[tuple[str, Any]] = [
        ("parameters", facts.num_parameters),
        ("parameters without embeddings and head", facts.num_parameters - facts.num_embedding),
    ]
    rows += [(label, config[key]) for key, label in CONFIG_ROWS.items() if config.get(key) is not None]
    yield "## Architecture\n\n" + _table(("", "value"), rows)


def _runs(facts: Facts) -> Iterator[str]:
    """Data and training: for every stage what it reported, how long it took and its whole recipe."""
    if facts.runs:
        yield "## Data and training"
    for run in facts.runs:
        results = dict(run.manifest["results"])
        held = results.pop("plan", None)
        rows = [("seconds", run.manifest["seconds"]), *flat_numbers(results)]
        plan = f"Plan and measurement:\n\n{plan_table(held)}\n\n" if held else ""
        recipe = dump_yaml(run.recipe).strip()
        yield (
            f"### {run.stage}\n\n{_table(('', 'value'), rows)}\n\n{plan}"
            f"<details><summary>recipe</summary>\n\n```yaml\n{recipe}\n```\n\n</details>"
        )


def _evaluation(facts: Facts) -> Iterator[str]:
    evaluated = facts.evaluated
    if evaluated is None:
        return
    yield "## Evaluation"
    if evaluated.name is None:
        yield "The evaluation below did not measure this model, only others of the same project."
    rows: list[tuple[Any, ...]] = []
    for name, results in evaluated.results.items():
        if isinstance(results, Mapping) and "bits_per_byte" in results:
            label = f"**{name}** (this model)" if name == evaluated.name else name
            rows.append((label, results["bits_per_byte"], results.get("perplexity"), _tasks_cell(results)))
    yield _table(("", "bits per byte", "perplexity", "tasks"), rows)
    yield (
        "Bits per byte, perplexity: whole held-out documents, every token once. xz and bz2 are what `xz -9` and "
        "`bzip2 -9` need for the same text. Tasks through lm-evaluation-harness, ± one standard error."
    )


def _tasks_cell(results: Mapping[str, Any]) -> str:
    cells = [
        f"{task} {metric} {numbers[metric]:.3f} ± {numbers[f'{metric}_stderr']:.3f}"
        + (f" (chance {numbers['chance']:.3f})" if "chance" in numbers and metric.startswith("acc") else "")
        for task, numbers in results.get("tasks", {}).items()
        for metric in numbers
        if f"{metric}_stderr" in numbers
    ]
    return "; ".join(cells)


def _files(facts: Facts) -> Iterator[str]:
    """What the folder holds and what it was made with."""
    files = sorted(p for p in facts.folder.rglob("*") if p.is_file() and p.name != "README.md")
    rows = [(p.relative_to(facts.folder), (d := describe_file(p))["bytes"], f"`{d['sha256']}`") for p in files]
    yield "## Files and versions\n\n" + _table(("file", "bytes", "sha256"), rows)
    yield _table(("", "version"), list(facts.versions.items()))
    yield (
        "Loaded in a clean process, the folder gave the logits of the model that it was made from "
        f"(largest difference in float32: {facts.max_difference}) and the same greedy text."
    )


def flat_numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and words of nested results as (dotted key, value); lists are left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [list(header), ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
