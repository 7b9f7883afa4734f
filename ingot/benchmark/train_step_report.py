"""The table and the plot of `ingot benchmark train_step`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingot.planning.hardware import GPUS, gpu_of_device
from ingot.plots import BLUE, GREY, ORANGE

Row = dict[str, Any]
GB, GIB = 1e9, 2**30
RATE = "tokens_per_second_per_gpu"


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The fastest row of those that differ in their micro-batch alone; one that failed where all did."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["how"], []).append(row)
    return [max(group, key=lambda row: row.get(RATE, 0.0)) for group in groups.values()]


def table(results: Row) -> str:
    """The results in Markdown: the best micro-batch of every way, then what failed, and what the numbers mean."""
    rows = best_rows(results["rows"])
    lines = [
        title(results),
        "",
        "| case | micro-batch | tokens/s per GPU | MFU | stock's best x | ms/step | peak GB | GiB | warm-up s |",
        "|---|" + "---:|" * 8,
    ]
    lines += [_line(row, _baseline(row, rows)) for row in rows if RATE in row]
    lines += ["", *_failures(results["rows"]), *documents(rows), *twins(rows), *_notes(results)]
    return "\n".join(lines).rstrip()


def title(results: Row) -> str:
    """The machine in one line."""
    machine = results["machine"]
    versions = machine["versions"]
    parts = [f"torch {versions['torch']}", f"transformers {versions['transformers']}"]
    return f"{machine['device']}, {', '.join(parts)}, {results['seconds']:.0f} s"


def _line(row: Row, baseline: Row | None) -> str:
    share = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
    times = "" if baseline is None else f"{row[RATE] / baseline[RATE]:.2f}"
    peak = row["peak_bytes"]
    memory = ("n/a", "n/a") if peak is None else (f"{peak / GB:.1f}", f"{peak / GIB:.1f}")
    cells = [row["how"], row["micro_batch"], f"{row[RATE]:,.0f}", share, times, f"{1000 * row['step_seconds']:,.0f}"]
    return f"| {' | '.join(map(str, [*cells, *memory, format(row['warmup_seconds'], '.1f')]))} |"


def _baseline(row: Row, rows: Sequence[Row]) -> Row | None:
    """The fastest stock row of the same model, length and strategy."""
    same = ("recipe", "twin", "seq_length", "gradient_checkpointing", "strategy", "num_processes", "accumulation")
    stock = [r for r in rows if r["runner"] == "stock" and RATE in r and all(r[key] == row[key] for key in same)]
    return max(stock, key=lambda r: float(r[RATE]), default=None)


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if "error" in row:
            yield f"- {row['case']}: {row['error']}"
        elif "skipped" in row:
            yield f"- {row['case']}: not tried: {row['skipped']}"


def twins(rows: Sequence[Row]) -> Iterator[str]:
    """What share of its dense twin's MFU a mixture of experts keeps; both count the parameters that a token meets."""
    for row in rows:
        twin = None if row["twin"] else _other(row, rows, twin=True)
        if twin is not None:
            share = row[RATE] * row["flops_per_token"] / (twin[RATE] * twin["flops_per_token"])
            active = f"{row['active_parameters']:,} and {twin['active_parameters']:,} active parameters"
            yield f"\n{row['how']}: {share:.1%} of the MFU of its dense twin ({active})"


def documents(rows: Sequence[Row]) -> Iterator[str]:
    """What keeping documents apart costs."""
    for row in rows:
        whole = None if row["corpus"] == "unpacked" else _other(row, rows, corpus="unpacked")
        if whole is not None:
            yield f"\n{row['how']}: {row[RATE] / whole[RATE]:.1%} of the tokens/s without documents to keep apart"


def _other(row: Row, rows: Sequence[Row], **changed: Any) -> Row | None:
    """The measured row that differs from this one, itself measured, in these settings alone."""
    same = ["recipe", "runner", "corpus", "precision", "variant", "strategy", "num_processes", "seq_length", "twin"]
    same += ["accumulation"]
    wanted = {**{key: row[key] for key in same}, **changed}
    found = [r for r in rows if RATE in row and RATE in r and all(r[key] == wanted[key] for key in same)]
    return found[0] if found else None


def _notes(results: Row) -> Iterator[str]:
    """What the columns mean, and why there is no MFU where there is none."""
    measured = [row for row in results["rows"] if RATE in row]
    if measured:
        row, apart = measured[0], any(row["corpus"] != "unpacked" for row in measured)
        yield (
            f"\nMedian of {row['steps'] // row['logging_steps']} spans of {row['logging_steps']} steps after "
            f"{row['warmup_steps']} of warm-up; random tokens; float32 weights unless the recipe says otherwise; "
            "warm-up: what the first steps took longer. MFU: 6 (N - input embedding) + 12 L H S over the dense bf16 "
            "peak, for fp8 too"
            + ("; where documents are kept apart, too, though there less attention is done." if apart else ".")
        )
    device = results["machine"]["device"]
    if device != "CPU" and gpu_of_device(device) is None:
        yield f"\nNo MFU: {device} is none of the GPUs whose peak is known ({', '.join(GPUS)})."
    elif device == "CPU":
        yield "\nNo MFU and no memory: this is a CPU."


def plot(results: Row, path: Path) -> None:
    """Draws a bar of tokens a second and GPU for every way at its best micro-batch, with its MFU where known."""
    from matplotlib.figure import Figure

    rows = [row for row in best_rows(results["rows"]) if RATE in row][::-1]  # the first on top
    if not rows:
        return
    figure = Figure(figsize=(9.0, 1.2 + 0.42 * len(rows)), dpi=120, layout="constrained")
    axis = figure.subplots()
    colors = [GREY if row["runner"] == "stock" else ORANGE if row["precision"] == "fp8" else BLUE for row in rows]
    bars = axis.barh([f"{row['how']} ({row['micro_batch']})" for row in rows], [r[RATE] for r in rows], color=colors)
    labels = [f"{r[RATE]:,.0f}" + ("" if r["mfu"] is None else f"  MFU {r['mfu']:.1%}") for r in rows]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set(title=title(results), xlabel="tokens a second and GPU", xlim=(0, 1.3 * max(r[RATE] for r in rows)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)
    figure.savefig(path, format="png")
