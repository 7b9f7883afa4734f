"""The train_tokenizer stage: a byte-level BPE tokenizer from the training documents of a corpus."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from ingot.data.sources import Corpus
from ingot.recipe import Recipe, Section
from ingot.runs import get_logger, open_run, progress
from ingot.tokenization.build import SMALLEST_VOCABULARY, PreTokenizerName, save_tokenizer, train_bpe
from ingot.tokenization.inspect import measure

logger = get_logger(__name__)


class TokenizerSection(Section):
    """The tokenizer to train."""

    vocab_size: int = Field(ge=SMALLEST_VOCABULARY, le=1 << 24, description="entries, special tokens included")
    pre_tokenizer: PreTokenizerName = Field("qwen2", description="how text is cut into words before merging")


class TokenizerRecipe(Recipe, stage="train_tokenizer"):
    """Trains a byte-level BPE tokenizer on the training documents of a corpus, not on those held out."""

    tokenizer: TokenizerSection
    data: Corpus

    def problems(self) -> Iterator[str]:
        yield from self.data.problems()

    def source_files(self) -> Iterator[Path]:
        yield from self.data.files()


def run(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Runs the stage; `run.dir` then loads with AutoTokenizer. Returns its size and how it packs the training text."""
    with open_run(recipe) as folder:
        if folder.complete:
            return folder.results
        from ingot.data.selection import select_documents

        work = folder.path / ".work"
        chosen = select_documents(recipe.data, work)
        texts = (document.text for document in progress(chosen.documents("train"), desc="train_tokenizer: reading"))
        settings = recipe.tokenizer
        tokenizer = train_bpe(texts, settings.vocab_size, settings.pre_tokenizer)
        save_tokenizer(tokenizer, folder.path, settings.pre_tokenizer)
        measured = measure(tokenizer, (document.text for document in chosen.documents("train")))
        logger.info(
            "train_tokenizer: %d entries, %.2f bytes per token", settings.vocab_size, measured["bytes_per_token"]
        )
        shutil.rmtree(work)
        return folder.finish({"vocab_size": tokenizer.get_vocab_size(), **measured})
