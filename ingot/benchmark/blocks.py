"""How fast the training dataset gives blocks: one at a time, in batches through a DataLoader, in several processes."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, SequentialSampler

from ingot.data.assembly import Blocks, collate
from ingot.data.best_fit import BestFitBlocks
from ingot.data.curriculum import CurriculumBlocks, LengthSchedule
from ingot.data.mixture import MixtureBlocks
from ingot.data.packing import TokenBlocks
from ingot.data.shards import DESCRIPTION, TOKENS, token_dtype
from ingot.planning.arguments import Parser, count
from ingot.runs import write_json

NUM_SHARDS = 4
BATCH = 8  # blocks


def measure_blocks(
    num_tokens: int = 30_000_000,
    seq_length: int = 2048,
    mean_lengths: Sequence[int] = (500, 2000),
    vocab_sizes: Sequence[int] = (50_000, 150_000),
    processes: Sequence[int] = (),
    repeats: int = 5,
    num_blocks: int = 2000,
) -> dict[str, Any]:
    """Blocks per second of every kind of training dataset, on shards with documents of log-normal lengths.

    `rates`: rows {dtype, mean_length, what, blocks_per_second}: per second of CPU time of one process, the best of
    `repeats` rounds in turn. `item_*` is `dataset[i]`, `loader_*` a DataLoader in this process with the real collator,
    `copy` a plain copy of as many consecutive tokens. `scaling`: rows {processes, blocks_per_second} of wall time, all
    of them together, for every number in `processes`. `packing`: rows {packing, mean_length, padding, cut_documents}.
    """
    found: dict[str, Any] = {"seq_length": seq_length, "num_tokens": num_tokens, "rates": [], "packing": []}
    with tempfile.TemporaryDirectory() as root:
        for mean, size in product(mean_lengths, vocab_sizes):
            folder = _write(Path(root) / f"{mean}-{size}", num_tokens, mean, size)
            cases, packing = _cases(folder, seq_length, num_blocks)
            for what, rate in _rates(cases, num_blocks, repeats).items():
                entry = {"dtype": token_dtype(size).name, "mean_length": mean, "what": what}
                found["rates"].append({**entry, "blocks_per_second": round(rate)})
            if size == vocab_sizes[0]:
                found["packing"] += [{"mean_length": mean, **shares} for shares in packing]
        found["scaling"] = [
            {"processes": number, "blocks_per_second": round(_together(folder, seq_length, num_blocks, number))}
            for number in processes
        ]
    return found


def blocks_table(measured: dict[str, Any]) -> str:
    """The measurements as tables of Markdown."""
    columns = list(dict.fromkeys((r["dtype"], r["mean_length"]) for r in measured["rates"]))
    cells = {(r["what"], r["dtype"], r["mean_length"]): r["blocks_per_second"] for r in measured["rates"]}
    heads = [f"{dtype}, documents of {mean}" for dtype, mean in columns]
    lines = [f"| blocks of {measured['seq_length']} tokens/s | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for what in dict.fromkeys(r["what"] for r in measured["rates"]):
        lines.append(f"| {what} | {' | '.join(f'{cells[what, *column]:,}' for column in columns)} |")
    lines += ["", "| packing | documents of | padding | cut documents |", "|---|---:|---:|---:|"]
    for r in measured["packing"]:
        lines.append(f"| {r['packing']} | {r['mean_length']} | {r['padding']:.3%} | {r['cut_documents']:.1%} |")
    if measured["scaling"]:
        lines += ["", "| processes | blocks/s together |", "|---:|---:|"]
        lines += [f"| {r['processes']} | {r['blocks_per_second']:,} |" for r in measured["scaling"]]
    return "\n".join(lines)


def _write(folder: Path, num_tokens: int, mean: int, vocab_size: int) -> Path:
    """Shards of random tokens in documents of log-normal lengths (a standard deviation of 1.3 times their mean)."""
    (folder / TOKENS).mkdir(parents=True)
    generator, dtype = np.random.default_rng(0), token_dtype(vocab_size)
    entries: list[dict[str, Any]] = []
    for number in range(NUM_SHARDS):
        drawn = generator.lognormal(np.log(mean) - 0.5, 1.0, 4 * num_tokens // mean // NUM_SHARDS + 8).astype(np.int64)
        ends = np.cumsum(np.maximum(drawn, 2))
        ends = ends[: int(ends.searchsorted(num_tokens // NUM_SHARDS)) + 1]
        tokens = generator.integers(1, vocab_size, ends[-1], dtype).astype(dtype)
        tokens[ends - 1] = 0
        tokens.tofile(folder / TOKENS / f"train-{number:05d}.bin")
        ends.astype("<u8").tofile(folder / TOKENS / f"train-{number:05d}.ends")
        count, size = len(ends), int(ends[-1])
        entries.append({"name": f"train-{number:05d}", "documents": count, "tokens": size, "bytes": 4 * size})
    totals = {key: sum(entry[key] for entry in entries) for key in ("documents", "tokens", "bytes")}
    description = {"splits": {"train": {**totals, "shards": entries}}, "dtype": dtype.str, "vocab_size": vocab_size}
    write_json(folder / DESCRIPTION, {**description, "end_of_document": 0, "tokenizer_sha256": ""})
    return folder


Case = Callable[[int], None]  # reads so many blocks


def _cases(folder: Path, seq_length: int, num_blocks: int) -> tuple[dict[str, Case], list[dict[str, Any]]]:
    """What is measured, by name; and the shares of padding and of cut documents by packing."""
    joined = TokenBlocks(folder, "train", seq_length, 0, num_blocks)
    packed = BestFitBlocks(folder, "train", seq_length, 0, num_blocks)
    mixture = MixtureBlocks([joined, packed], [0.7, 0.3], 0, num_blocks)
    short = CurriculumBlocks(joined, LengthSchedule([(seq_length // 4, 0.9)], seq_length, 10), num_blocks)
    datasets: dict[str, Blocks | CurriculumBlocks]
    datasets = {"concatenate": joined, "best_fit": packed, "mixture": mixture, "curriculum": short}
    cases: dict[str, Case] = {"copy": lambda size: _copy(joined, size)}
    cases |= {f"item_{name}": _items(blocks) for name, blocks in datasets.items()}
    cases |= {f"loader_{name}": _batches(blocks) for name, blocks in datasets.items()}
    kinds: dict[str, TokenBlocks | BestFitBlocks] = {"concatenate": joined, "best_fit": packed}
    return cases, [{"packing": name, **blocks.packing_shares()} for name, blocks in kinds.items()]


def _copy(blocks: TokenBlocks, size: int) -> None:
    file, length = blocks.shards.files[0], blocks.seq_length
    for begin in np.random.default_rng(0).integers(0, len(file) - length, size).tolist():
        file[begin : begin + length].astype(np.int64)


def _items(blocks: Blocks | CurriculumBlocks) -> Case:
    def read(size: int) -> None:
        for index in range(size):
            blocks[index]

    return read


def _batches(blocks: Blocks | CurriculumBlocks) -> Case:
    def read(size: int) -> None:
        dataset: Any = blocks
        loader = iter(DataLoader(dataset, BATCH, sampler=SequentialSampler(dataset), collate_fn=collate))
        for _ in range(size // BATCH):
            next(loader)

    return read


def _rates(cases: dict[str, Case], num_blocks: int, repeats: int) -> dict[str, float]:
    """The best rate of every case in blocks per second of CPU time."""
    best = dict.fromkeys(cases, 0.0)
    for read in cases.values():
        read(BATCH)  # tables of the first window
    for _ in range(repeats):
        for what, read in cases.items():
            began = time.process_time()
            read(num_blocks)
            best[what] = max(best[what], num_blocks / (time.process_time() - began))
    return best


def _together(folder: Path, seq_length: int, num_blocks: int, number: int) -> float:
    """Blocks per second of `number` processes that read different blocks at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(number + 1), context.Queue()
    arguments = [(folder, seq_length, num_blocks, rank, number, barrier, times) for rank in range(number)]
    workers = [context.Process(target=_worker, args=a, daemon=True) for a in arguments]
    for worker in workers:
        worker.start()
    barrier.wait()
    seconds = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return number * num_blocks / max(seconds)


def _worker(folder: Path, seq_length: int, num_blocks: int, rank: int, number: int, barrier: Any, times: Any) -> None:
    blocks = TokenBlocks(folder, "train", seq_length, 0, number * num_blocks)
    blocks[0]
    barrier.wait()
    began = time.perf_counter()
    for index in range(rank, number * num_blocks, number):  # as the sampler shares them out
        blocks[index]
    times.put(time.perf_counter() - began)


def blocks_command(arguments: Sequence[str]) -> None:
    """`ingot benchmark blocks [--processes 1 2 ...] [--json]`: the tables, or JSON and nothing else."""
    parser = Parser(prog="ingot benchmark blocks", description="Training blocks of 2,048 tokens per second.")
    parser.add_argument("--processes", type=count, nargs="*", default=[], help="measure so many at the same time, too")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    words = parser.parse_args(arguments)
    measured = measure_blocks(processes=words.processes)
    print(json.dumps(measured, indent=2) if words.json else blocks_table(measured))
