"""The prepare_data stage: documents are read, filtered, split and tokenised into memory-mapped shards."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ingot.data.sources import Corpus
from ingot.recipe import FilePath, InputError, Recipe, StageFolder
from ingot.runs import MANIFEST, get_logger, open_run, read_json, sha256_file, write_json, write_text

logger = get_logger(__name__)

END_OF_DOCUMENT = "<|endoftext|>"


class DataSection(Corpus):
    """The corpus and the tokenizer that turns it into tokens."""

    tokenizer: Annotated[FilePath, StageFolder("train_tokenizer", hub=True)] = Field(
        description="folder of a tokenizer: of train_tokenizer, or any that holds a tokenizer.json"
    )
    end_of_document: str | None = Field(
        None, description="token that ends every document; unset: <|endoftext|> if there is one, else the eos token"
    )


class DataRecipe(Recipe, stage="prepare_data"):
    """Reads, filters, splits and tokenises a corpus into memory-mapped token shards."""

    data: DataSection

    def problems(self) -> Iterator[str]:
        yield from self.data.problems()

    def source_files(self) -> Iterator[Path]:
        yield from self.data.files()


def run(recipe: DataRecipe) -> dict[str, Any]:
    """Runs the stage. Returns the counts of documents, bytes and tokens per split and of what was dropped and why."""
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        end_id, vocab_size = _read_tokenizer(recipe.data)
        _warn_of_other_documents(recipe)
        work = folder.path / ".work"
        summary = _write_tokens(recipe, folder.path, work, end_id, vocab_size)
        write_json(folder.path / "data.json", summary)
        summary["seen_in_training"] = _overlaps(folder.path, summary)
        write_text(folder.path / "report.md", report(summary))
        shutil.rmtree(work)
        results = {k: v for k, v in summary.items() if k not in ("dtype", "splits", "end_of_document")}
        results["splits"] = {name: _without_shards(entry) for name, entry in summary["splits"].items()}
        return folder.finish(results)


def _read_tokenizer(data: DataSection) -> tuple[int, int]:
    """The id of the token that ends a document, and the number of ids."""
    from tokenizers import Tokenizer

    path = data.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"data.tokenizer: {data.tokenizer} has no tokenizer.json; name one that has")
    tokenizer = Tokenizer.from_file(str(path))
    name = data.end_of_document or END_OF_DOCUMENT
    if data.end_of_document is None and tokenizer.token_to_id(name) is None:
        config = data.tokenizer / "tokenizer_config.json"
        name = (read_json(config) if config.is_file() else {}).get("eos_token") or name
        name = name["content"] if isinstance(name, dict) else name
    end_id = tokenizer.token_to_id(name)
    if end_id is None:
        raise InputError(f"data.end_of_document: the tokenizer in {data.tokenizer} has no {name}; name a token it has")
    return end_id, max(tokenizer.get_vocab().values()) + 1


def _warn_of_other_documents(recipe: DataRecipe) -> None:
    """Says so when the tokenizer was trained on documents that this recipe holds out."""
    manifest = recipe.data.tokenizer / MANIFEST
    if not manifest.is_file():
        return
    trained_on = read_json(manifest)["recipe"].get("data", {})
    if trained_on is None:  # taken over from elsewhere
        return
    here = recipe.data.model_dump(mode="json")
    changed = [key for key in ("sources", "filters", "dedup", "split") if trained_on.get(key) != here[key]]
    if changed:
        keys = " and ".join(f"data.{key}" for key in changed)
        logger.warning("prepare_data: the tokenizer's recipe has other %s: it may have seen held-out documents", keys)


def _write_tokens(recipe: DataRecipe, folder: Path, work: Path, end_id: int, vocab_size: int) -> dict[str, Any]:
    """Runs both passes of the pipeline. Returns the description of what was written."""
    from ingot.data.pipeline import KeepChosen, ReadDocuments, WriteShards, run_steps
    from ingot.data.selection import select_documents
    from ingot.data.shards import TOKENS, token_dtype

    chosen = select_documents(recipe.data, work)
    tokens = folder / TOKENS
    tokens.mkdir(exist_ok=True)
    tokenizer_file = recipe.data.tokenizer / "tokenizer.json"
    writer = WriteShards(tokens, work, tokenizer_file, end_id, vocab_size)
    run_steps([ReadDocuments(chosen.units), KeepChosen(work), writer], chosen.num_tasks, work / "tokenising")
    splits = _collect(folder, work, chosen.num_tasks)
    return {
        "documents_read": chosen.num_read,
        "dropped": chosen.dropped,
        "splits": splits,
        "dtype": token_dtype(vocab_size).str,
        "vocab_size": vocab_size,
        "end_of_document": end_id,
        "tokenizer_sha256": sha256_file(tokenizer_file),
    }


def _collect(folder: Path, work: Path, num_tasks: int) -> dict[str, Any]:
    """Adds up the tasks' shards and joins their held-out texts."""
    from ingot.data.splits import SPLITS

    entries = [read_json(work / f"shards-{rank:05d}.json") for rank in range(num_tasks)]
    splits = {}
    for i, split in enumerate(SPLITS):
        shards = [entry[i] for entry in entries if entry[i]["documents"]]
        totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "bytes", "tokens")}
        splits[split] = {**totals, "shards": shards}
        if i:
            _join([work / f"{split}-{rank:05d}.jsonl" for rank in range(num_tasks)], folder / f"{split}.jsonl")
    return splits


def _join(parts: list[Path], path: Path) -> None:
    """One file from several, without holding them in memory."""
    with open(path, "wb") as whole:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole)


def _overlaps(folder: Path, summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Per held-out split, how much of its documents training has seen: mean and largest share of their spans."""
    from ingot.data.overlap import seen_in_training

    shares = {s: seen_in_training(folder, s) for s, e in summary["splits"].items() if s != "train" and e["documents"]}
    return {s: {"mean": round(sum(v) / len(v), 4), "largest": round(max(v), 4)} for s, v in shares.items()}


def _without_shards(entry: dict[str, Any]) -> dict[str, Any]:
    predicted = max(1, entry["tokens"] - entry["documents"])
    counts = {key: entry[key] for key in ("documents", "bytes", "tokens")}
    return {**counts, "bytes_per_token": round(entry["bytes"] / predicted, 4)}


def report(summary: dict[str, Any]) -> str:
    """The counts as a page of Markdown."""
    lines = ["# Data\n", "| split | documents | bytes | tokens | bytes per token |", "|---|---:|---:|---:|---:|"]
    for name, entry in summary["splits"].items():
        counts = _without_shards(entry)
        numbers = " | ".join(f"{counts[key]:,}" for key in ("documents", "bytes", "tokens"))
        lines.append(f"| {name} | {numbers} | {counts['bytes_per_token']:.3f} |")
    lines.append(f"\n{summary['documents_read']:,} documents were read. Dropped:\n")
    lines += [f"- {reason}: {count:,}" for reason, count in summary["dropped"].items()] or ["- none"]
    for split, seen in summary["seen_in_training"].items():
        lines.append(
            f"\nOf the {split} text, {seen['mean']:.2%} of the 16-token spans also occur in training documents "
            f"(at most {seen['largest']:.2%} of one document's)."
        )
    return "\n".join(lines) + "\n"
