"""The text that a tokenizer is trained on: in pieces of bounded size, and of a huge corpus an even part."""

import random
import re
from collections.abc import Callable, Iterable, Iterator

PIECE = 1 << 16  # characters; a longer text is handed over in parts, so that memory stays flat
# a single space between words: no expression of `build.PATTERNS` joins what stands before it with it
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=[^\W\d_])")


def pieces_of(text: str) -> Iterator[str]:
    """The text in parts of PIECE characters or a little more, cut between words; words count the same as uncut.

    Where no space follows for as long again (a script without spaces, one endless line), it is cut anyway.
    """
    start = 0
    while len(text) - start > 2 * PIECE:
        found = _BETWEEN_WORDS.search(text, start + PIECE, start + 2 * PIECE)
        end = found.start() if found else start + 2 * PIECE
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


class Sample:
    """Texts that can be read again and again, in pieces; with `max_bytes`, an even share of the pieces of that size.

    `total_bytes` is the size of all texts (counted in a first pass when `max_bytes` is set, else known after a whole
    pass), `used_bytes` what the last pass gave out, at most `max_bytes`.
    """

    def __init__(self, texts: Callable[[], Iterable[str]], max_bytes: int | None = None) -> None:
        self.texts, self.max_bytes = texts, max_bytes
        self.total_bytes = self.used_bytes = 0
        if max_bytes is not None:
            self.total_bytes = sum(size for _, size in self._pieces())

    def _pieces(self) -> Iterator[tuple[str, int]]:
        """Every piece with its bytes in UTF-8."""
        for text in self.texts():
            for piece in pieces_of(text):
                yield piece, len(piece.encode())

    def pieces(self) -> Iterator[str]:
        """The pieces of the sample, the same ones each time.

        Each is drawn with the probability of what is still to take over what is still to come, so that the share is
        even over the corpus and over long and short documents, and the limit is kept.
        Source: Knuth, The Art of Computer Programming, volume 2, 3.4.2, algorithm S, with bytes in place of records.
        """
        self.used_bytes = seen = 0
        generator = random.Random(0)
        for piece, size in self._pieces():
            if self.max_bytes is None or self._drawn(generator, size, seen):
                self.used_bytes += size
                yield piece
            seen += size
        self.total_bytes = seen

    def _drawn(self, generator: random.Random, size: int, seen: int) -> bool:
        assert self.max_bytes is not None
        left = self.max_bytes - self.used_bytes
        return size <= left and generator.random() * (self.total_bytes - seen) < left
