"""report.md and loss.png of sft and dpo: the numbers, the curve, and what the saved model answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ingot.loading import load_model, load_tokenizer
from ingot.plots import plot_loss
from ingot.runs import write_text
from ingot.training.callbacks import METRICS, read_metrics

MAX_NEW_TOKENS = 80


def write_sft_report(run_dir: Path, results: Mapping[str, Any], held_out: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report of a fine-tuning; `held_out` are rows whose first question the saved model answers."""
    plot_loss(read_metrics(run_dir / METRICS), run_dir / "loss.png", "Supervised fine-tuning")
    lines = [
        "# Supervised fine-tuning",
        f"Loss of the assistant's tokens on {results['validation_rows']} held-out conversations "
        f"({results['validation_tokens']:,} tokens), in nats per token: "
        f"**{results['loss_before']:.4f}** before, **{results['loss_after']:.4f}** after "
        f"{results['steps']:,} steps on {results['train_rows']:,} conversations.",
        "![loss](loss.png)",
        *_table(results),
        *_answers(run_dir, [row["messages"] for row in held_out]),
    ]
    write_text(run_dir / "report.md", "\n\n".join(lines) + "\n")


def write_dpo_report(run_dir: Path, results: Mapping[str, Any], held_out: Sequence[Mapping[str, Any]]) -> None:
    """Writes the report of a preference training; `held_out` are pairs whose prompt the saved model answers."""
    _plot_margins(read_metrics(run_dir / METRICS), run_dir / "loss.png")
    lines = [
        "# Direct preference optimisation",
        f"Reward margin on {results['validation_pairs']} held-out pairs: **{results['margin_before']:.4f}** before, "
        f"**{results['margin_after']:.4f}** after {results['steps']:,} steps on {results['train_pairs']:,} pairs. "
        f"The chosen answer is the more likely one (per token) in **{results['accuracy_before']:.0%}** of them before "
        f"and **{results['accuracy_after']:.0%}** after.",
        "![loss and margin](loss.png)",
        *_table(results),
        *_answers(run_dir, [[*row["prompt"], *row["chosen"]] for row in held_out]),
    ]
    write_text(run_dir / "report.md", "\n\n".join(lines) + "\n")


def _table(results: Mapping[str, Any]) -> list[str]:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in results.items()}
    rows = [f"| {key} | {value} |" for key, value in shown.items()]
    return ["\n".join(["| result | value |", "|---|---:|", *rows])]


def _answers(run_dir: Path, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
    """For each conversation the first question, the answer that the data gives, and the saved model's own."""
    model, tokenizer = load_model(run_dir, unfinished=True), load_tokenizer(run_dir, unfinished=True)
    parts = ["## Held-out questions, answered by the saved model (greedy)"]
    for messages in conversations:
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        question, wanted = messages[first - 1]["content"], messages[first]["content"]
        own = _answer(model, tokenizer, messages[:first])
        parts += [f"**{_one_line(question)}**", f"- data: {_one_line(wanted)}\n- model: {_one_line(own)}"]
    return parts


def _one_line(text: str) -> str:
    return " ".join(text.split())


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, prompt: list[dict[str, str]]) -> str:
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    room = min(MAX_NEW_TOKENS, model.config.get_text_config().max_position_embeddings - length)
    if room <= 0:
        return "(the question fills the model's context)"
    out = model.generate(**inputs, max_new_tokens=room, do_sample=False)
    return str(tokenizer.decode(out[0, length:], skip_special_tokens=True))


def _plot_margins(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The DPO loss and the reward margin over steps, in training and on the held-out pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), dpi=120, layout="constrained")
    panels = (("loss", "Loss"), ("rewards/margins", "Reward margin"))
    for axis, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, label, style in ((key, "training", "-"), (f"eval_{key}", "held out", "o-")):
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
                axis.legend()
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(path, format="png")
