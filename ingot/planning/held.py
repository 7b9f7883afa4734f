"""A run held against its plan: predicted and measured side by side."""

from collections.abc import Mapping
from typing import Any

from ingot.planning.show import amount, duration, percent, size


def _count(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.0f}"


def _loss(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


LABELS = {
    "parameters": "parameters",
    "peak_memory_bytes": "memory of a GPU",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
    "hours": "time",
    "loss": "held-out loss (nats per token)",
    "usd": "money (USD)",
}
SHOWN = {
    "parameters": _count,
    "peak_memory_bytes": size,
    "tokens_per_second": amount,
    "mfu": percent,
    "hours": duration,
    "loss": _loss,
    "usd": _count,
}


def hold(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Predicted and measured side by side; None where one of them is not known."""
    return {key: {"predicted": value, "measured": measured.get(key)} for key, value in predicted.items()}


def table(held: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as a table in Markdown, with units; what neither knows is left out."""
    rows = ["| | predicted | measured | measured / predicted |", "|---|---|---|---|"]
    for key, pair in held.items():
        one, other = pair["predicted"], pair["measured"]
        if one is None and other is None:
            continue
        ratio = f"{other / one:.2f}" if one and other is not None else ""
        rows.append(f"| {LABELS[key]} | {SHOWN[key](one)} | {SHOWN[key](other)} | {ratio} |")
    return "\n".join(rows)
