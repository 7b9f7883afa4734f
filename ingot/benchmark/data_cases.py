"""The ways to tokenise that `ingot benchmark data` compares, each on the same files in processes of its own.

Every process starts, imports, loads its tokenizer (and its texts, where they are to be in memory), tokenises a little
and waits for the others; only then does the clock start.
"""

import io
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES = ("encode_batch", "encode_batch_fast", "our_step", "end_to_end", "datatrove")
ALONE = "encode_alone"  # encode_batch of one thread in each process: what the machine gives to so many processes
WARM_UP = 200_000  # characters
Work = Callable[[], tuple[int, int]]  # does it; returns bytes of text, and tokens where they are counted
BATCHES = (1 << 20, 1 << 22)  # characters for each thread that encode_batch gets at once


@dataclass
class Measured:
    """One case on some files: wall seconds from the common start to the last end, CPU seconds of all processes."""

    num_bytes: int
    seconds: float
    cpu_seconds: float
    peak_memory: int  # bytes, of the largest process
    num_tokens: int = 0  # where the case writes shards, which count them

    @property
    def rate(self) -> float:
        """Bytes of text a second."""
        return self.num_bytes / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Bytes of text in a CPU second."""
        return self.num_bytes / self.cpu_seconds


@dataclass
class Share:
    """What one process of a case works on."""

    case: str
    files: list[Path]
    tokenizer: Path  # tokenizer.json
    folder: Path  # to write to
    rank: int
    threads: int
    batch: int = BATCHES[0]


def measure(
    case: str, files: Sequence[Path], tokenizer: Path, folder: Path, workers: int, batch: int = BATCHES[0]
) -> Measured:
    """Runs a case with so many workers: threads of one process where the library has the threads, else processes."""
    if case == ALONE:  # every process the same texts, so that none has more to do
        return _together([Share("encode_batch", list(files[:1]), tokenizer, folder, i, 1) for i in range(workers)])
    if case.startswith("encode_batch"):
        return _together([Share(case, list(files), tokenizer, folder, 0, workers, batch)])
    return _together([Share(case, list(files[i::workers]), tokenizer, folder, i, 1) for i in range(workers)])


def _together(shares: list[Share]) -> Measured:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(len(shares)), context.SimpleQueue()
    processes = [context.Process(target=_process, args=(share, barrier, queue)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes), "a process of the benchmark failed"
    found = [queue.get() for _ in shares]
    return Measured(
        sum(f["bytes"] for f in found),
        max(f["end"] for f in found) - min(f["begin"] for f in found),
        sum(f["cpu"] for f in found),
        max(f["memory"] for f in found),
        sum(f["tokens"] for f in found),
    )


def _process(share: Share, barrier: Any, queue: Any) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(share.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if share.threads > 1 else "false"
    share.folder.mkdir(parents=True, exist_ok=True)
    work = PREPARE[share.case](share)
    barrier.wait(timeout=600)  # ends this process when another one never came
    begin, cpu = time.monotonic(), time.process_time()
    num_bytes, num_tokens = work()
    end, cpu = time.monotonic(), time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put({"bytes": num_bytes, "tokens": num_tokens, "begin": begin, "end": end, "cpu": cpu, "memory": memory})


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The texts of .jsonl.zst files."""
    import zstandard

    for path in files:
        with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as packed:
            for line in io.TextIOWrapper(packed, encoding="utf-8", newline="\n"):
                yield json.loads(line)["text"]


def _tokenizer(share: Share) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(share.tokenizer))
    tokenizer.encode_batch([text[:1000] for text in _first(share)])
    return tokenizer


def _first(share: Share) -> Iterator[str]:
    size = 0
    for text in read_texts(share.files):
        yield text
        size += len(text)
        if size > WARM_UP:
            return


def _batches(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _raw(share: Share) -> Work:
    """The library alone, on texts in memory; nothing is done with the ids."""
    tokenizer, texts = _tokenizer(share), list(read_texts(share.files))
    encode = getattr(tokenizer, share.case)
    num_bytes = sum(len(text.encode()) for text in texts)

    def work() -> tuple[int, int]:
        for batch in _batches(texts, share.batch * share.threads):
            encode(batch, add_special_tokens=False)
        return num_bytes, 0

    return work


def _our_step(share: Share) -> Work:
    """Our tokenising step from texts in memory to files."""
    from ingot.data.encode import Encoder
    from ingot.data.shard_writer import ShardWriter
    from ingot.data.shards import token_dtype

    tokenizer, texts = _tokenizer(share), list(read_texts(share.files))
    dtype = token_dtype(tokenizer.get_vocab_size())
    encoder = Encoder(share.tokenizer, 0, dtype, share.threads)
    list(encoder.encode((0, text) for text in _first(share)))

    def work() -> tuple[int, int]:
        shard = ShardWriter(share.folder, f"train-{share.rank:05d}", dtype)
        for _, ids, ends, num_bytes in encoder.encode((0, text) for text in texts):
            shard.write(ids, ends, num_bytes)
        found = shard.close()
        return found["bytes"], found["tokens"]

    return work


def _end_to_end(share: Share) -> Work:
    """The steps of prepare_data from compressed files to shards, records included."""
    from ingot.data.parts import Parts
    from ingot.data.selection import select_documents
    from ingot.data.sources import Corpus, Source
    from ingot.data.writing import SHARDS, Tokens, WriteShards
    from ingot.runs import sha256_file

    tokenizer = _tokenizer(share)
    corpus = Corpus.model_validate({"sources": [{"path": str(path)} for path in share.files], "dedup": "off"})
    assert all(isinstance(source, Source) for source in corpus.sources)
    root = share.folder / f"run-{share.rank}"
    chosen = select_documents(corpus, root)
    parts = Parts(root, "shards", SHARDS)
    tokens = Tokens(share.tokenizer, sha256_file(share.tokenizer), tokenizer.get_vocab_size(), 0)
    writer = WriteShards(parts, ["key"] * len(chosen.tasks), chosen.tasks, corpus, tokens, share.threads)
    steps = [*chosen.steps(), writer]

    def work() -> tuple[int, int]:
        for rank in range(len(chosen.tasks)):
            _run_steps(steps, rank, len(chosen.tasks))
        found = [parts.read(rank)["shards"][0] for rank in range(len(chosen.tasks))]
        return sum(shard["bytes"] for shard in found), sum(shard["tokens"] for shard in found)

    return work


def _run_steps(steps: Sequence[Any], rank: int, world_size: int) -> None:
    data: Any = None
    for step in steps:
        data = step(data, rank, world_size)
    for _ in data or ():  # datatrove's last step returns nothing
        pass


def _datatrove(share: Share) -> Work:
    """datatrove's own reader and tokenising step on the same files."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.disable("datatrove")
    _tokenizer(share)
    num_bytes = sum(len(text.encode()) for text in read_texts(share.files))
    names = share.folder / f"files-{share.rank}.txt"
    names.write_text("".join(f"{path.name}\n" for path in share.files))
    steps = [
        JsonlReader(str(share.files[0].parent), compression="zstd", paths_file=str(names)),
        DocumentTokenizer(
            str(share.folder / f"datatrove-{share.rank}"), tokenizer_name_or_path=str(share.tokenizer),
            eos_token=None, shuffle_documents=False,
        ),
    ]  # fmt: skip

    def work() -> tuple[int, int]:
        _run_steps(steps, 0, 1)
        return num_bytes, 0

    return work


PREPARE: dict[str, Callable[[Share], Work]] = {
    "encode_batch": _raw, "encode_batch_fast": _raw, "our_step": _our_step, "end_to_end": _end_to_end,
    "datatrove": _datatrove,
}  # fmt: skip
