"""Texts to token ids as fast as the tokenizer goes: whole batches at a time, next to reading and writing.

A tokenizer cuts text into words by a regular expression before it looks anything up, so a long document may be cut
where such a word must end. The ids are the same, and memory does not grow with the document.
"""

import json
import os
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.recipe import InputError

BATCH_BYTES = 1 << 20  # text handed to the tokenizer at once, for each of its threads
PIECE = 1 << 18  # characters; longer documents are cut
LONGEST = 1 << 26  # characters; a document that cannot be cut may have so many
IN_FLIGHT = 2  # batches that are being tokenised or wait to be written
# A word of the regexes below ends between these, whatever follows: none of them lets a word that ends in one of the
# letters take in a blank, a line end or this punctuation.
SAFE = re.compile(r"[A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff](?=[ \n\u3002\uff0c\u3001])")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SAFE_REGEXES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    f"{_CONTRACTIONS}|{_WORDS % ''}",  # Qwen2 and Qwen3
    f"{_CONTRACTIONS}|{_WORDS % '{1,3}'}",  # Llama-3 and GPT-4
    f"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|{_WORDS % ''}",  # Qwen2, as newer files write it
}
UNSAFE_IN_TOKEN = re.compile(r"[\s\u3002\uff0c\u3001]")
SAFE_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD"}  # a letter before a blank is the same under all of them


class TooLongToTokenise(InputError):
    """A document that cannot be cut and is too long to tokenise at once."""


def can_be_cut(tokenizer_json: dict[str, Any]) -> bool:
    """Whether texts may be cut at SAFE without changing a token: for pre-tokenizers that are known, not for others."""
    words_with_blanks = any(
        token["lstrip"] or token["rstrip"] or UNSAFE_IN_TOKEN.search(token["content"])
        for token in tokenizer_json["added_tokens"]
        if not token["special"]
    )
    return (
        not words_with_blanks
        and _safe_normalizer(tokenizer_json.get("normalizer"))
        and _safe_words(tokenizer_json.get("pre_tokenizer"))
    )


def _safe_normalizer(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(_safe_normalizer(step) for step in normalizer["normalizers"])
    return normalizer["type"] in SAFE_NORMALIZERS


def _safe_words(words: dict[str, Any] | None) -> bool:
    """ByteLevel with its own regex, which is GPT-2's, or a Split by a known regex before it; Digits may be there."""
    steps = [] if words is None else words["pretokenizers"] if words["type"] == "Sequence" else [words]
    found = False
    for step in steps:
        if step["type"] == "Split":
            pattern = step["pattern"].get("Regex")
            if step["behavior"] != "Isolated" or step["invert"] or pattern not in SAFE_REGEXES:
                return False
            found = True
        elif step["type"] == "ByteLevel":
            if step["add_prefix_space"]:
                return False
            found = found or step["use_regex"]
        elif step["type"] != "Digits":
            return False
    return found


def cut(text: str, size: int = PIECE) -> Iterator[str]:
    """The text in pieces of about `size` characters, cut where a word must end; longer where there is no place."""
    begin = 0
    while len(text) - begin > size:
        place = SAFE.search(text, begin + size - 1)
        if place is None:
            break
        yield text[begin : place.end()]
        begin = place.end()
    yield text[begin:] if begin else text


@dataclass
class Batch:
    """Texts that are tokenised together; `last` says whether a piece ends its document."""

    pieces: list[str] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)
    size: int = 0
    num_bytes: int = 0


class Encoder:
    """Turns documents into token ids with the end token, in batches, with `threads` threads of the tokenizer."""

    def __init__(self, tokenizer_file: Path, end_of_document: int, dtype: np.dtype[Any], threads: int) -> None:
        from tokenizers import Tokenizer

        use_threads(threads)
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a document that spells a special token does not become one
        self.cuttable = can_be_cut(json.loads(tokenizer_file.read_text(encoding="utf-8")))
        self.end, self.dtype = end_of_document, dtype
        self.batch_bytes = BATCH_BYTES * threads

    def encode(self, texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64], int]]:
        """From (stream, text) to (stream, ids, ends of documents in them, bytes of text); a stream stays in its order.

        Reading, tokenising and writing overlap: while a thread tokenises a batch, the caller's thread fills the next.
        """
        pending: deque[tuple[int, Batch, Future[Any]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            for stream, batch in self._batches(texts):
                future = pool.submit(self.tokenizer.encode_batch_fast, batch.pieces, add_special_tokens=False)
                pending.append((stream, batch, future))
                if len(pending) > IN_FLIGHT:
                    yield self._finished(*pending.popleft())
            while pending:
                yield self._finished(*pending.popleft())

    def _batches(self, texts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Batch]]:
        batches: dict[int, Batch] = {}
        for stream, text in texts:
            batch = batches.setdefault(stream, Batch())
            batch.num_bytes += len(text) if text.isascii() else len(text.encode())
            for piece in cut(text) if self.cuttable and len(text) > PIECE else (text,):
                if len(piece) > LONGEST:
                    raise TooLongToTokenise(
                        f"it has {len(piece):,} characters without a place to cut ({piece[:40]!r}...), too "
                        "many to tokenise at once; drop such documents with data.filters.max_characters"
                    )
                batch.pieces.append(piece)
                batch.last.append(False)
                batch.size += len(piece)
                if batch.size >= self.batch_bytes:
                    yield stream, batch
                    batch = batches[stream] = Batch()
            if batch.last:
                batch.last[-1] = True
            else:
                batch.pieces.append("")
                batch.last.append(True)
        yield from ((stream, batch) for stream, batch in batches.items() if batch.pieces)

    def _finished(
        self, stream: int, batch: Batch, future: Future[Any]
    ) -> tuple[int, NDArray[Any], NDArray[np.int64], int]:
        ids: list[int] = []
        ends: list[int] = []
        for encoding, last in zip(future.result(), batch.last, strict=True):
            ids.extend(encoding.ids)
            if last:
                ids.append(self.end)
                ends.append(len(ids))
        numbers = np.frombuffer(array("I", ids), np.uint32)  # several times faster than np.asarray of a list
        return stream, numbers.astype(self.dtype), np.array(ends, np.int64), batch.num_bytes


def use_threads(threads: int) -> None:
    """Sets the number of threads of the tokenizers library, which takes note of it when it first tokenises."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
