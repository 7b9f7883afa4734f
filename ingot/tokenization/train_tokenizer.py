"""The train_tokenizer stage: a tokenizer from the training documents of a corpus, or one taken over from elsewhere."""

import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ingot.data.run_folder import open_own, own_output
from ingot.data.sources import Corpus
from ingot.recipe import FilePath, InputError, Recipe, Section
from ingot.runs import get_logger, progress
from ingot.tokenization.build import (
    SMALLEST_VOCABULARY,
    TOKENIZER_FILES,
    PreTokenizerName,
    Roles,
    save_tokenizer,
    train_bpe,
    write_folder,
)
from ingot.tokenization.inspect import measure
from ingot.tokenization.sampling import Sample
from ingot.tokenization.unigram import SMALLEST_UNIGRAM, train_unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ingot.data.selection import Selection

logger = get_logger(__name__)

MEASURED_TEXTS = 500  # of the corpus, for the figures at the end
COMPARED_TEXTS = 500  # of the corpus, on which a tokenizer that is taken over must give the same ids
COMPARED_CHARACTERS = 1000  # of each; SentencePiece adds up in 32 bits, whose rounding shows in very long texts


class TokenizerSection(Section):
    """The tokenizer to train, or where to take one from."""

    vocab_size: int | None = Field(
        None, ge=SMALLEST_VOCABULARY, le=1 << 24, description="entries, special tokens included"
    )
    model: Literal["bpe", "unigram"] = Field(
        "bpe", description="byte-level BPE, or Unigram with bytes for rare characters as in SentencePiece"
    )
    pre_tokenizer: PreTokenizerName = Field("qwen2", description="how text is cut into words before merging")
    max_bytes: int | None = Field(
        None, gt=0, description="train on this much text, taken evenly from the whole corpus; unset: on all of it"
    )
    from_: FilePath | None = Field(
        None,
        alias="from",
        description="take over a tokenizer instead: folder that AutoTokenizer loads, or a SentencePiece .model file",
    )
    allow_lossy: bool = Field(False, description="with from: take it although some texts do not come back")

    def problems(self) -> Iterator[str]:
        """Keys that contradict each other."""
        if self.from_ is None:
            if self.vocab_size is None:
                yield "tokenizer.vocab_size: missing; give the number of entries, or a tokenizer to take with from"
            elif self.model == "unigram" and self.vocab_size < SMALLEST_UNIGRAM:
                yield f"tokenizer.vocab_size: unigram needs at least {SMALLEST_UNIGRAM} entries, not {self.vocab_size}"
            if self.allow_lossy:
                yield "tokenizer.allow_lossy: only with tokenizer.from; what is trained here loses nothing"
            return
        for key in ("vocab_size", "model", "pre_tokenizer", "max_bytes"):
            if getattr(self, key) != type(self).model_fields[key].default:  # a resolved recipe writes defaults out
                yield f"tokenizer.{key}: leave it out; it comes with the tokenizer in tokenizer.from"


class TokenizerRecipe(Recipe, stage="train_tokenizer"):
    """Trains a tokenizer on the training documents of a corpus, not on those held out; or takes one from elsewhere."""

    tokenizer: TokenizerSection
    data: Corpus | None = Field(None, description="the corpus; with tokenizer.from only to compare and measure on")

    def problems(self) -> Iterator[str]:
        yield from self.tokenizer.problems()
        if self.data is not None:
            yield from self.data.problems()
            yield from own_output(self.data, self.run.dir)
        elif self.tokenizer.from_ is None:
            yield "data: missing; name the corpus to train on"

    def source_stamps(self) -> dict[str, str]:
        return {} if self.data is None else self.data.stamps()

    def source_files(self) -> Iterator[Path]:
        if self.data is not None:
            yield from self.data.files()
        if (source := self.tokenizer.from_) is not None:
            yield from files_of(source)


def files_of(source: Path) -> Iterator[Path]:
    """The files that a tokenizer from elsewhere consists of.

    Raises: InputError when there are none.
    """
    found = [source] if source.is_file() else []
    if source.is_dir():
        found = sorted(f for f in source.iterdir() if f.is_file() and f.name.startswith(TOKENIZER_FILES))
    if not found:
        raise InputError(
            f"tokenizer.from: {source} is neither a folder with a tokenizer nor a SentencePiece .model file"
        )
    yield from found


def run(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Runs the stage; `run.dir` then loads with AutoTokenizer. Returns its size and how it packs the training text."""
    with open_own(recipe) as folder:
        if folder.complete:
            return folder.results
        work = folder.path / ".work"
        chosen = None
        if recipe.data is not None:
            from ingot.data.selection import select_documents

            chosen = select_documents(recipe.data, work)
        results = _train(recipe, folder.path, chosen) if chosen and not recipe.tokenizer.from_ else None
        results = results or _take_over(recipe, folder.path, chosen)
        shutil.rmtree(work, ignore_errors=True)
        return folder.finish(results)


def _train(recipe: TokenizerRecipe, folder: Path, chosen: "Selection") -> dict[str, Any]:
    settings = recipe.tokenizer
    assert settings.vocab_size is not None
    sample = Sample(lambda: (document.text for document in chosen.documents("train")), settings.max_bytes)
    if settings.model == "bpe":
        tokenizer = train_bpe(_shown(sample), settings.vocab_size, settings.pre_tokenizer)
        save_tokenizer(tokenizer, folder, settings.pre_tokenizer)
    else:
        tokenizer = train_unigram(lambda: _shown(sample), settings.vocab_size, settings.pre_tokenizer)
        write_folder(tokenizer, folder, Roles())
    measured = _measure(tokenizer, chosen)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        **measured,
        "corpus_bytes": sample.total_bytes,
        "trained_on_bytes": sample.used_bytes,
    }


def _shown(sample: Sample) -> Iterator[str]:
    """The pieces of the sample with progress, and a line when all is read: what follows takes no more text."""
    began = time.monotonic()
    yield from progress(sample.pieces(), desc="train_tokenizer: reading")
    logger.info(
        "train_tokenizer: read %.1f of %.1f MB in %.0f s; now choosing the entries",
        sample.used_bytes / 1e6, sample.total_bytes / 1e6, time.monotonic() - began,
    )  # fmt: skip


def _measure(tokenizer: "Tokenizer", chosen: "Selection") -> dict[str, float]:
    measured = measure(tokenizer, islice((d.text for d in chosen.documents("train")), MEASURED_TEXTS))
    logger.info(
        "train_tokenizer: %d entries, %.2f bytes per token", tokenizer.get_vocab_size(), measured["bytes_per_token"]
    )
    return measured


def _take_over(recipe: TokenizerRecipe, folder: Path, chosen: "Selection | None") -> dict[str, Any]:
    from tokenizers import Tokenizer

    from ingot.tokenization.importing import import_tokenizer
    from ingot.tokenization.sample_texts import all_samples

    source = recipe.tokenizer.from_
    assert source is not None
    texts: Iterable[str] = all_samples()
    if chosen is not None:
        documents = islice(chosen.documents("train"), COMPARED_TEXTS)
        texts = [document.text[:COMPARED_CHARACTERS] for document in documents]
    results = import_tokenizer(source, folder, texts, recipe.tokenizer.allow_lossy)
    logger.info("train_tokenizer: took %s; added: %s", source, ", ".join(results["added"]) or "nothing")
    for note in results["notes"]:
        logger.info("train_tokenizer: %s", note)
    return {**results, **measure(Tokenizer.from_file(str(folder / "tokenizer.json")), texts)}
