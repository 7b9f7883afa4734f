"""The prepare_data stage: documents are read, cleaned, split and tokenised into memory-mapped shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ingot.data.execution import DataRun
from ingot.data.run_folder import open_own, own_output
from ingot.data.sources import Corpus
from ingot.files import naming_full_disk
from ingot.hashing import hash_sources
from ingot.recipe import FilePath, InputError, Recipe, StageFolder, with_defaults
from ingot.runs import MANIFEST, RunFolder, get_logger, read_json, sha256_file, write_json, write_text

if TYPE_CHECKING:
    from ingot.data.writing import Tokens

logger = get_logger(__name__)

END_OF_DOCUMENT = "<|endoftext|>"
# keys of `data` on which it depends which documents are held out
CHOOSING = ("sources", "filters", "dedup", "minhash", "decontaminate", "split")


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
    run: DataRun

    def problems(self) -> Iterator[str]:
        yield from self.data.problems()
        yield from self.run.problems()
        yield from own_output(self.data, self.run.dir)

    def source_files(self) -> Iterator[Path]:
        yield from self.data.files()

    def source_stamps(self) -> dict[str, str]:
        return self.data.stamps()


def run(recipe: DataRecipe) -> dict[str, Any]:
    """Runs the stage. Returns the counts of documents, bytes and tokens per split and of what was dropped and why."""
    with naming_full_disk(recipe.run.dir), open_own(recipe) as folder:
        if folder.complete:
            return folder.results
        _warn_of_other_documents(recipe)
        summary, known = _write_tokens(recipe, folder)
        return _conclude(folder, summary, known)


def _conclude(folder: RunFolder, summary: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Writes data.json and the report; `known` are the hashes of the shards, which are not read again."""
    from ingot.data.summary import report, results_of

    write_json(folder.path / "data.json", summary)
    summary["seen_in_training"] = _overlaps(folder.path, summary)
    write_text(folder.path / "report.md", report(summary))
    return folder.finish(results_of(summary), known)


def _read_tokenizer(data: DataSection) -> "Tokens":
    """The tokenizer's file, the id of the token that ends a document, and the number of ids."""
    from tokenizers import Tokenizer

    from ingot.data.writing import Tokens

    path = data.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"data.tokenizer: {data.tokenizer} has no tokenizer.json; name one that has")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise InputError(f"data.tokenizer: {path} cannot be read: {error}; get it again, or name another") from None
    name = data.end_of_document or END_OF_DOCUMENT
    if data.end_of_document is None and tokenizer.token_to_id(name) is None:
        config = data.tokenizer / "tokenizer_config.json"
        name = (read_json(config) if config.is_file() else {}).get("eos_token") or name
        name = name["content"] if isinstance(name, dict) else name
    end_id = tokenizer.token_to_id(name)
    if end_id is None:
        raise InputError(f"data.end_of_document: the tokenizer in {data.tokenizer} has no {name}; name a token it has")
    return Tokens(path, sha256_file(path), max(tokenizer.get_vocab().values()) + 1, end_id)


def _warn_of_other_documents(recipe: DataRecipe) -> None:
    """Says so when the tokenizer was trained on documents that this recipe holds out."""
    split, manifest = recipe.data.split, recipe.data.tokenizer / MANIFEST
    given = any(source.split not in (None, "train") for source in recipe.data.sources)
    if not manifest.is_file() or not (split.validation or split.test or given):
        return
    trained_on = read_json(manifest)["recipe"].get("data", {})
    if trained_on is None:  # taken over from elsewhere
        return
    here = recipe.data.model_dump(mode="json")
    trained_on = with_defaults(DataSection, trained_on, here)
    changed = [key for key in CHOOSING if trained_on.get(key) != here[key]]
    if changed:
        keys = " and ".join(f"data.{key}" for key in changed)
        logger.warning("prepare_data: the tokenizer's recipe has other %s: it may have seen held-out documents", keys)


def _write_tokens(recipe: DataRecipe, folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads, decides and tokenises what is not there yet. Returns the description, and the hashes of the shards."""
    from ingot.data.selection import select_documents
    from ingot.data.summary import Sources, summarise
    from ingot.data.writing import write_shards

    tokens = _read_tokenizer(recipe.data)
    hashes = _content(recipe, folder.path)
    chosen = select_documents(recipe.data, folder.path, hashes, recipe.run)
    parts = write_shards(chosen, tokens, recipe.run)
    _refuse_changed(recipe, folder.path, hashes)
    return summarise(chosen, tokens, parts, Sources(chosen.tasks, hashes))


def _content(recipe: DataRecipe, folder: Path) -> dict[str, str]:
    """The sha256 of local sources, and what tells changes of others, by name."""
    return {**hash_sources(recipe.source_files(), folder, save=True), **recipe.source_stamps()}


def _refuse_changed(recipe: DataRecipe, folder: Path, before: dict[str, str]) -> None:
    """Raises: InputError when a source is not what it was when the stage began."""
    after = _content(recipe, folder)
    changed = next((name for name in before if after.get(name) != before[name]), None)
    if changed is not None:
        raise InputError(f"{changed}: changed while it was read; run the stage again")


def _overlaps(folder: Path, summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Per held-out split, how much of its documents training has seen: mean and largest share of their spans."""
    from ingot.data.overlap import seen_in_training

    shares = {s: seen_in_training(folder, s) for s, e in summary["splits"].items() if s != "train" and e["documents"]}
    return {s: {"mean": round(sum(v) / len(v), 4), "largest": round(max(v), 4)} for s, v in shares.items()}
