"""Training a BPE vocabulary: the train_tokenizer stage beside SentencePiece and beside a trainer in plain Python.

    python -m ingot.benchmark.tokenizer_training --text 'corpus/*.parquet' --vocab-size 32768 [--json]

Each case runs in a process of its own, one after another, on the same text. The plain trainer is run on small shares
of the text only; its figure for the whole is extrapolated and says so.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ingot.data.documents import read_documents
from ingot.data.sources import Source, list_units
from ingot.planning.arguments import Parser, count
from ingot.recipe import InputError, build_recipe

CASES = ("ingot", "sentencepiece", "plain_python")
SHARES = (1_000_000, 4_000_000, 16_000_000)  # bytes that the plain trainer reads
PLAIN_MERGES = 1000  # that it makes of each
Pair = tuple[str, str]


def texts_of(pattern: str) -> Iterator[str]:
    """The texts of files, read as the stages read them."""
    for unit in list_units([Source.model_validate({"path": pattern})]):
        yield from (document.text for document in read_documents(unit))


def run_ingot(pattern: str, vocab_size: int) -> dict[str, Any]:
    """The stage as a user runs it: reading, filtering nothing, training, saving, measuring."""
    from ingot.tokenization.train_tokenizer import TokenizerRecipe, run

    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "tokenizer": {"vocab_size": vocab_size, "pre_tokenizer": "gpt4"},
            "data": {"sources": [{"path": pattern}], "dedup": "off"},
            "run": {"dir": str(Path(folder) / "run")},
        }
        results = run(build_recipe(TokenizerRecipe, tree))
    return {"entries": results["vocab_size"], "bytes": results["trained_on_bytes"]}


def run_sentencepiece(pattern: str, vocab_size: int) -> dict[str, Any]:
    """SentencePiece's BPE with bytes for rare characters, a line a sentence, on all cores."""
    import sentencepiece

    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for text in texts_of(pattern):
            size += len(text.encode())
            yield from (line for line in text.split("\n") if line)

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(), model_prefix=f"{folder}/m", model_type="bpe", vocab_size=vocab_size,
            byte_fallback=True, normalization_rule_name="identity", max_sentence_length=1 << 24,
            num_threads=os.cpu_count(), minloglevel=2,
        )  # fmt: skip
        entries = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model").vocab_size()
    return {"entries": entries, "bytes": size}


def run_plain(pattern: str, vocab_size: int) -> dict[str, Any]:
    """The plain trainer on each of SHARES with PLAIN_MERGES merges: core-seconds to count words and to merge."""
    measured = []
    for share in SHARES:
        began = time.process_time()
        words, size = count_words(texts_of(pattern), share)
        counted = time.process_time()
        merges = merge(words, PLAIN_MERGES)
        measured.append(
            {
                "bytes": size,
                "words": len(words),
                "merges": len(merges),
                "count_seconds": counted - began,
                "merge_seconds": time.process_time() - counted,
                "peak_memory_bytes": peak_memory(),
            }
        )
    return {"entries": PLAIN_MERGES + 256, "bytes": measured[-1]["bytes"], "shares": measured}


def count_words(texts: Iterable[str], max_bytes: int) -> tuple[Counter[str], int]:
    """How often each word comes in the first `max_bytes` bytes, cut by GPT-4's expression."""
    import regex

    from ingot.tokenization.build import PATTERNS

    words: Counter[str] = Counter()
    cut, size = regex.compile(PATTERNS["gpt4"]), 0
    for text in texts:
        words.update(cut.findall(text))
        size += len(text.encode())
        if size >= max_bytes:
            break
    return words, size


def merge(words: Counter[str], num_merges: int) -> list[Pair]:
    """Textbook BPE over characters: the most frequent pair is merged in the words that hold it, again and again.

    Source: Sennrich et al. 2016, with counts kept up to date as in every trainer that is not a demonstration.
    """
    spelt = [(list(word), n) for word, n in words.items()]
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, (symbols, n) in enumerate(spelt):
        for pair in zip(symbols, symbols[1:], strict=False):
            counts[pair] += n
            places[pair].add(i)
    merges: list[Pair] = []
    while counts and len(merges) < num_merges:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for i in places.pop(best):
            _merge_word(spelt[i][0], spelt[i][1], best, i, counts, places)
        counts.pop(best, None)
    return merges


def _merge_word(
    symbols: list[str], n: int, best: Pair, i: int, counts: Counter[Pair], places: defaultdict[Pair, set[int]]
) -> None:
    """Merges a pair in one word and corrects the counts of its pairs."""
    for pair in zip(symbols, symbols[1:], strict=False):
        counts[pair] -= n
        if counts[pair] <= 0:
            del counts[pair]
    k = 0
    while k < len(symbols) - 1:
        if (symbols[k], symbols[k + 1]) == best:
            symbols[k : k + 2] = [best[0] + best[1]]
        k += 1
    for pair in zip(symbols, symbols[1:], strict=False):
        counts[pair] += n
        places[pair].add(i)


def extrapolate(shares: Sequence[dict[str, Any]], num_bytes: int, num_merges: int) -> dict[str, Any]:
    """Seconds of a free core and bytes of memory that the plain trainer would take for the whole.

    Counting grows with the text. Merging grows with a power of the text, read off the smallest and the largest share,
    and with the number of merges; later merges search more pairs, so that the true time is rather longer.
    """
    small, large = shares[0], shares[-1]
    factor = num_bytes / large["bytes"]

    def power(key: str) -> float:
        if large["bytes"] == small["bytes"]:
            return 1.0
        return math.log(large[key] / small[key]) / math.log(large["bytes"] / small["bytes"])

    merging = large["merge_seconds"] * factor ** power("merge_seconds") * num_merges / large["merges"]
    return {
        "seconds": round(large["count_seconds"] * factor + merging, 1),
        "cpu_seconds": round(large["count_seconds"] * factor + merging, 1),
        "peak_memory_bytes": round(large["peak_memory_bytes"] * factor ** power("peak_memory_bytes")),
        "merge_time_grows_with_bytes_to_the": round(power("merge_seconds"), 2),
    }


def peak_memory() -> int:
    """Bytes that this process, and the largest of its children, had at most."""
    units = 1 if platform.system() == "Darwin" else 1024
    return units * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def cpu_seconds() -> float:
    """Seconds that this process and its children kept a core busy; on a shared machine they say more than time."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(usage.ru_utime + usage.ru_stime for usage in used), 1)


def run_case(case: str, pattern: str, vocab_size: int) -> dict[str, Any]:
    """One case in this process."""
    load, began = os.getloadavg()[0], time.perf_counter()
    run = {"ingot": run_ingot, "sentencepiece": run_sentencepiece, "plain_python": run_plain}[case]
    found = run(pattern, vocab_size)
    seconds = round(time.perf_counter() - began, 1)
    measured = {"seconds": seconds, "cpu_seconds": cpu_seconds(), "peak_memory_bytes": peak_memory()}
    return {"case": case, **measured, "load_before": round(load, 1), **found}


def start_case(case: str, words: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own.

    Raises: InputError with the end of what the process said.
    """
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--text", words.text, "--case", case]
    done = subprocess.run(
        [*command, "--vocab-size", str(words.vocab_size), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"{case}: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(found: dict[str, Any]) -> str:
    """The cases as Markdown."""
    lines = [
        "| trainer | MB | entries | seconds | core-seconds | peak memory | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for case in found["cases"]:
        memory = f"{case['peak_memory_bytes'] / 1e6:,.0f} MB"
        remark = case.get("remark", "measured")
        size = f"{case['bytes'] / 1e6:.1f}"
        times = f"{case['seconds']:,.0f} | {case['cpu_seconds']:,.0f}"
        lines.append(f"| {case['case']} | {size} | {case['entries']:,} | {times} | {memory} | {remark} |")
    return "\n".join([*lines, "", f"{found['cores']} cores; load before each: {found['loads']}"])


def tokenizer_training_command(arguments: Sequence[str]) -> None:
    """Does what the words of the command line say.

    Raises: InputError for a word or a file that is wrong.
    """
    parser = Parser(prog="ingot benchmark tokenizer_training", description=__doc__, allow_abbrev=False)
    parser.add_argument("--text", required=True, help="files of the corpus; a glob in quotes")
    parser.add_argument("--vocab-size", type=count, default=32_768, help="entries; default %(default)s")
    parser.add_argument("--case", choices=CASES, help="only this one, in this process")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    words = parser.parse_args(list(arguments))
    if words.case is not None:
        print(json.dumps(run_case(words.case, words.text, words.vocab_size)))
        return
    found = compare(words)
    print(json.dumps(found, indent=2) if words.json else table(found))


def compare(words: argparse.Namespace) -> dict[str, Any]:
    """All cases, and what the plain trainer would take for the whole."""
    cases = [start_case(case, words) for case in CASES]
    whole, plain = cases[0], cases[-1]
    plain["remark"] = f"measured: {', '.join(f'{s / 1e6:.0f}' for s in SHARES)} MB in turn, {PLAIN_MERGES} merges each"
    guess = extrapolate(plain["shares"], whole["bytes"], words.vocab_size - 256)
    grows = guess["merge_time_grows_with_bytes_to_the"]
    remark = f"EXTRAPOLATED, not run: counting linear, merging bytes^{grows} x merges"
    cases.append(
        {**guess, "case": "plain_python", "bytes": whole["bytes"], "entries": words.vocab_size, "remark": remark}
    )
    loads = ", ".join(f"{case['load_before']:.1f}" for case in cases if "load_before" in case)
    return {"cases": cases, "cores": os.cpu_count(), "loads": loads}


if __name__ == "__main__":
    from ingot.runs import exit_code_of

    sys.exit(exit_code_of(lambda: tokenizer_training_command(sys.argv[1:])))
