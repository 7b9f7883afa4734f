"""Plans as text for people: tables, units, a bar of memory, a curve of loss."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BAR = 60  # characters
LETTERS = "█▓▒░▚▞▤▥▦▧▨▩"


def amount(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number in the thousands that fit it: 1.83B, 40.4 GFLOP; n/a when it is not known."""
    if value is None:
        return "n/a"
    scales = ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")) if value < 1e15 else ()
    for scale, letter in scales:
        if abs(value) >= scale:
            return f"{value / scale:.{digits}g}{f' {letter}{unit}' if unit else letter}"
    number = f"{value:.{digits}g}" if value < 1e15 else f"{value:.4e}"
    return f"{number} {unit}".rstrip()


def size(num_bytes: float | None) -> str:
    """Bytes in units of 2^30, 2^20 or 2^10."""
    if num_bytes is None:
        return "n/a"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes:.0f} bytes"


def duration(hours: float | None) -> str:
    """Hours, with days or minutes where these are easier to read."""
    if hours is None:
        return "n/a"
    if hours >= 48:
        return f"{hours:,.0f} h ({hours / 24:,.1f} days)"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def money(usd: float | None) -> str:
    """US dollars."""
    return "n/a" if usd is None else f"${usd:,.2f}" if usd < 100 else f"${usd:,.0f}"


def percent(share: float | None) -> str:
    """A share in per cent."""
    return "n/a" if share is None else f"{share:.1%}"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Rows in columns: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def model_page(plan: Mapping[str, Any]) -> str:
    """The forward plan."""
    blocks = [_heading(plan["model"]), _parameters(plan), _flops(plan["flops_per_token"]), _memory(plan["memory"])]
    blocks += [_run(plan["run"]), *_losses(plan)]
    return "\n\n".join(blocks)


def _heading(model: Mapping[str, Any]) -> str:
    experts = f", {model['experts']} experts" if model["experts"] else ""
    return (
        f"{model['name']}: {model['type']}, {model['layers']} layers of {model['hidden_size']}, "
        f"{model['heads']} heads ({model['kv_heads']} for keys and values) of {model['head_dim']}{experts}, "
        f"{model['vocab_size']:,} tokens{', tied' if model['tied'] else ''}"
    )


def _parameters(plan: Mapping[str, Any]) -> str:
    found = plan["parameters"]
    rows = [
        (name.replace("_", " "), f"{n:,}", percent(n / found["total"])) for name, n in found["by_component"].items()
    ]
    rows.append(("total", f"{found['total']:,}", ""))
    if found["active"] != found["total"]:
        rows.append(("met by a token", f"{found['active']:,}", percent(found["active"] / found["total"])))
    if found["buffers"]:
        rows.append(("and buffers", f"{found['buffers']:,}", ""))
    notes = "".join(f"\n  note: {note}" for note in plan["model"]["notes"])
    return "Parameters\n" + table(rows) + notes


def _flops(found: Mapping[str, Any]) -> str:
    full, half = found["forward_by_part_non_causal"], found["forward_by_part_causal"]
    whole = sum(half.values())
    rows = [("forward, by part", "causal", "share", "non-causal")]
    rows += [
        (n.replace("_", " "), amount(half[n], "FLOP"), percent(half[n] / whole), amount(full[n], "FLOP")) for n in half
    ]
    rows.append(("total", amount(whole, "FLOP", 4), "", amount(sum(full.values()), "FLOP", 4)))
    by_convention = "  ".join(f"{n} {amount(v, 'FLOP', 4)}" for n, v in found["training_by_convention"].items())
    return (
        f"Arithmetic of one token in a sequence of {found['seq_length']:,}\n{table(rows)}\n"
        f"  training ({found['convention']}): {amount(found['training'], 'FLOP', 4)}, "
        f"forward {amount(found['forward'], 'FLOP', 4)}\n  training, by convention: {by_convention}"
    )


def _memory(memory: Mapping[str, Any]) -> str:
    parts = {name: n for name, n in memory["by_part"].items() if n}
    limit = memory["usable_bytes"]
    rows = [(f"{_letter(i)} {name.replace('_', ' ')}", size(n)) for i, (name, n) in enumerate(parts.items())]
    rows.append(("= peak", size(memory["peak_bytes"])))
    title = (
        f"Memory of a GPU ({memory['strategy']} on {memory['num_gpus']}, {memory['precision']}, "
        f"{memory['optimizer']}, micro-batch {memory['micro_batch']}, "
        f"checkpointing {'on' if memory['gradient_checkpointing'] else 'off'})"
    )
    lines = [title, table(rows), "  " + memory_bar(list(parts.values()), limit)]
    if "fits" in memory:
        lines.append(f"  {'fits' if memory['fits'] else 'DOES NOT FIT'}: {size(limit)} of the GPU are usable")
        lines += [f"    fits with {s['change']}: {size(s['peak_bytes'])}" for s in memory["settings_that_fit"]]
        if not memory["fits"] and not memory["settings_that_fit"]:
            lines.append("    nothing that keeps the model fits; take a smaller model or more or larger GPUs")
    lines.append(f"  generating: {size(memory['kv_cache_bytes_per_token'])} of keys and values a token (bf16)")
    return "\n".join(lines)


def memory_bar(parts: Sequence[int], limit: int | None) -> str:
    """A bar with a run of signs for each part, as long as its share of the limit (or of the sum)."""
    whole = max(sum(parts), limit or 0)
    ends = [round(BAR * sum(parts[: i + 1]) / whole) for i in range(len(parts))]
    drawn = "".join(_letter(i) * (end - start) for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)))
    if limit is None or sum(parts) <= limit:
        return f"[{drawn.ljust(BAR, ' ')}]"
    mark = round(BAR * limit / whole)
    return f"[{drawn[:mark]}|{drawn[mark:]}]  | = the GPU's memory"


def _letter(index: int) -> str:
    return LETTERS[index % len(LETTERS)]


def _run(run: Mapping[str, Any]) -> str:
    rows = [
        ("tokens", amount(run["tokens"])),
        ("tokens per parameter", amount(run["tokens_per_parameter"])),
        ("compute", amount(run["flops"], "FLOP", 4)),
        ("GPUs", f"{run['num_gpus']} x {run['gpu'] or 'unknown'}"),
        (f"MFU ({run['mfu_source']})", percent(run["mfu"])),
        ("tokens/s a GPU", amount(run["tokens_per_second_per_gpu"])),
        ("tokens/s", amount(run["tokens_per_second"])),
        ("time", duration(run["hours"])),
        ("GPU hours", "n/a" if run["gpu_hours"] is None else f"{run['gpu_hours']:,.1f}"),
        ("money", money(run["usd"])),
    ]
    return "Run\n" + table(rows)


def _losses(plan: Mapping[str, Any]) -> Iterator[str]:
    rows = [(name, "n/a" if loss is None else f"{loss:.4f}") for name, loss in plan["loss"].items()]
    doubts = "".join(f"\n  {name}: {reason}" for name, reason in plan["doubts"].items())
    if rows:
        yield (
            "Expected loss, nats per token of the law's own tokenizer and text (compare within one law only)\n"
            + table(rows)
            + doubts
        )


def budget_page(plan: Mapping[str, Any]) -> str:
    """The backward plan."""
    blocks = [_budget_line(plan)]
    rows = [("law", "parameters", "tokens", "tokens/parameter", "loss", "")]
    for name, found in plan["optimal"].items():
        notes = [
            text
            for key, text in (("limited_by_text", "limited by the text"), ("extrapolates", "extrapolated"))
            if found[key]
        ]
        loss = "n/a" if found["loss"] is None else f"{found['loss']:.4f}"
        numbers = amount(found["parameters"]), amount(found["tokens"]), f"{found['tokens_per_parameter']:.1f}"
        rows.append((name, *numbers, loss, ", ".join(notes)))
    blocks.append("Best size and tokens\n" + table(rows))
    blocks += _disagreement(plan)
    if "fixed_model" in plan:
        blocks.append(_fixed(plan["fixed_model"]))
    return "\n\n".join(blocks)


def _disagreement(plan: Mapping[str, Any]) -> Iterator[str]:
    spread = plan["spread"]
    if (plan["passes"] or 0) > 4:
        yield (
            f"  the text would be read {plan['passes']:.0f} times; beyond about 4 a token read again teaches "
            "less than a new one\n  (arXiv 2305.16264), so these losses are too good"
        )
    if len(plan["optimal"]) > 1:
        yield (
            f"  the laws differ {spread['parameters']:.1f}-fold in parameters and "
            f"{spread['tokens_per_parameter']:.1f}-fold in tokens per parameter; besiroglu is the default, kaplan "
            "(which leaves\n  embeddings out) is history. Losses are nats per token of the law's own text: compare "
            "within one law only"
        )


def _budget_line(plan: Mapping[str, Any]) -> str:
    budget = plan["budget"]
    parts = [f"Budget: {budget['flops']:.4e} FLOP"]
    if budget["hours"] is not None:
        parts.append(
            f"{budget['num_gpus']} x {budget['gpu']} for {duration(budget['hours'])} at {percent(budget['mfu'])} MFU"
        )
    if budget["usd"] is not None:
        parts.append(money(budget["usd"]))
    if plan["max_tokens"] is not None:
        parts.append(f"at most {amount(plan['max_tokens'])} tokens ({plan['max_epochs']:g} epochs)")
    return "; ".join(parts)


def _fixed(fixed: Mapping[str, Any]) -> str:
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in fixed["loss"].items() if loss is not None)
    return (
        f"A model of {amount(fixed['parameters'])} parameters: {amount(fixed['tokens'])} tokens "
        f"({fixed['tokens_per_parameter']:.1f} a parameter), expected loss {losses}"
    )


def loss_curve(
    points: Sequence[tuple[float, float]], title: str, best: float, height: int = 9, width: int = 60
) -> str:
    """A curve of loss (y) against parameters (x, evenly spaced in the logarithm), the best marked with an o."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    grid = [[" "] * width for _ in range(height)]
    nearest = min(range(len(points)), key=lambda i: abs(points[i][0] - best))
    for i, (_, loss) in enumerate(points):
        row = round((high - loss) / (high - low or 1.0) * (height - 1))
        grid[row][round(i * (width - 1) / (len(points) - 1))] = "o" if i == nearest else "·"
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    lines = [f"  {labels.get(i, ''):>6} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    first, last = amount(points[0][0]), amount(points[-1][0])
    axis = f"  {'':>6} +{'-' * width}\n  {'':>6}  {first}{f'parameters -> {last}'.rjust(width - len(first))}"
    return "\n".join([title, *lines, axis])


def grid_page(plan: Mapping[str, Any]) -> str:
    """The ranked architectures."""
    head = (
        "width x depth",
        "heads/kv",
        "FFN",
        "experts",
        "parameters",
        "active",
        "tokens",
        "loss",
        "time",
        "memory",
        "fits",
    )
    rows: list[tuple[str, ...]] = [head]
    for found in plan["candidates"]:
        shape = found["shape"]
        experts = f"{shape['num_experts']} top {shape['num_experts_per_tok']}" if shape["num_experts"] else "-"
        rows.append((
            f"{shape['hidden_size']} x {shape['num_hidden_layers']}",
            f"{shape['num_attention_heads']}/{shape['num_key_value_heads']}",
            str(shape["moe_intermediate_size"] or shape["intermediate_size"]), experts,
            amount(found["parameters"]), amount(found["active"]), amount(found["tokens"]), f"{found['loss']:.4f}",
            duration(found["hours"]), size(found["memory_bytes"]),
            {None: "n/a", True: "yes", False: "no"}[found["fits"]],
        ))  # fmt: skip
    return "\n\n".join([
        _budget_line({**plan, "max_tokens": None}),
        f"Best of each width and depth by {plan['law']}, of {plan['num_candidates']} near the optimum "
        f"({amount(plan['optimum']['parameters'])} parameters, "
        f"{amount(plan['optimum']['tokens'])} tokens)\n{table(rows)}",
        "  a law knows size, not shape: where losses are this close, choose by memory, speed and taste"
        + "\n  extrapolated: the law was fitted to budgets far from this one" * plan["extrapolates"],
    ])  # fmt: skip
