"""Where the text of a written recipe comes from: files, a dataset of the Hub, or the corpus that comes with Ingot."""

import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ingot.recipe_yaml import InputError

BUILTIN_TOKENS = 2_500_000  # of the State of the Union addresses with a vocabulary of about 10,000
BUILTIN_ENTRIES = 49_000  # there are no more words in them to make entries of
SMALLEST_VOCABULARY = 260  # every byte and the special tokens
# below so many parameters, so many entries: the table should not outweigh the layers
VOCABULARIES = ((10e6, 4096), (60e6, 10_240), (250e6, 32_768), (math.inf, 49_152))
FILES = (".txt", ".md", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")


@dataclass(frozen=True)
class Text:
    """The text to train on; tokens: how many there are, None when nobody said.

    stand_in: nothing was asked for, so that the corpus is there only to make the recipes run.
    """

    kind: Literal["builtin", "path", "hub"]
    place: str
    subset: str | None = None
    tokens: float | None = None
    stand_in: bool = False


def text_of(data: str | None, dataset_tokens: float | None) -> Text:
    """What `--data` names: `sotu`, files or a glob, or `owner/name` (`owner/name:subset`) on the Hub.

    Raises: InputError when it is none of them.
    """
    if data is None:
        return Text("builtin", "sotu", tokens=dataset_tokens, stand_in=True)
    if data == "sotu":
        return Text("builtin", "sotu", tokens=dataset_tokens or BUILTIN_TOKENS)
    if Path(data).exists() or glob.glob(data, recursive=True):
        if Path(data).is_dir() and not (Path(data) / "state.json").is_file():
            raise InputError(f"--data: {data} is a folder; name its files, such as {data}/*.jsonl")
        return Text("path", data, tokens=dataset_tokens)
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", data)
    if named is None or data.endswith(FILES) or data.startswith((".", "/", "~")):
        raise InputError(f"--data: no file matches {data}; name files, owner/name of a dataset of the Hub, or sotu")
    return Text("hub", named[1], named[2], dataset_tokens)


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer: a folder that there is, or the entries of one to train; and the rows that it needs."""

    folder: Path | None
    entries: int

    @property
    def rows(self) -> int:
        """Rows of the token table: a multiple of 128, as fast kernels like it."""
        return math.ceil(self.entries / 128) * 128


def tokenizer_of(words: Any, text: Text, best_parameters: float) -> Tokenizer:
    """The tokenizer that the options ask for, or one that suits a model of that size.

    Raises: InputError for options that do not go together, a folder that holds none, or a size that cannot be.
    """
    if words.tokenizer is not None:
        if words.vocab_size is not None:
            raise InputError("--vocab-size: also --tokenizer is given; keep one of them")
        return Tokenizer(words.tokenizer, _entries(words.tokenizer))
    usual = next(entries for most, entries in VOCABULARIES if best_parameters < most)
    entries = words.vocab_size or (min(usual, 16_384) if text.kind == "builtin" else usual)
    if entries < SMALLEST_VOCABULARY:
        raise InputError(f"--vocab-size: {entries} is too small; every byte and the special tokens take 260")
    if text.kind == "builtin" and entries > BUILTIN_ENTRIES:
        raise InputError(f"--vocab-size: the built-in corpus is enough for {BUILTIN_ENTRIES:,} entries; give --data")
    return Tokenizer(None, entries)


def _entries(folder: Path) -> int:
    """Ids of a tokenizer that there is."""
    from tokenizers import Tokenizer as Loaded

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer: {folder} has no tokenizer.json; name the folder of a tokenizer")
    try:
        return max(Loaded.from_file(str(path)).get_vocab().values()) + 1
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"--tokenizer: {path}: not a tokenizer: {error}") from None
