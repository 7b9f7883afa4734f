"""Corpora with near-duplicates planted in them, and how many of them a method finds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ingot.data.cleaning.shingles import words_of

SYLLABLES = [
    "ba",
    "co",
    "da",
    "fe",
    "gi",
    "ho",
    "ju",
    "ka",
    "lo",
    "mi",
    "nu",
    "pe",
    "ra",
    "so",
    "ti",
    "vu",
    "we",
    "zo",
]


@dataclass(frozen=True)
class Planted:
    """A document, how it came about and the number of the document that it was made from."""

    text: str
    kind: str
    original: int | None = None


def invented(seed: int, num_words: int = 300) -> str:
    """Text of made-up words, short ones often, in sentences."""
    source = random.Random(seed)
    words = ["".join(source.choices(SYLLABLES, k=source.choice((1, 2, 2, 3, 3, 4)))) for _ in range(num_words)]
    return " ".join(word.capitalize() + "." if i % 13 == 0 else word for i, word in enumerate(words))


def edited(text: str, share: float, source: random.Random) -> str:
    """The text with this share of its words replaced, removed or doubled."""
    words = text.split(" ")
    for place in source.sample(range(len(words)), max(1, round(share * len(words)))):
        change = source.randrange(3)
        words[place] = ("changed", "", f"{words[place]} {words[place]}")[change]
    return " ".join(word for word in words if word)


def plant(texts: Sequence[str], seed: int = 0) -> list[Planted]:
    """A quarter of the texts gets a near-copy further on; the others get none, a common header or a common quote."""
    source = random.Random(seed)
    documents = [Planted(text, "plain") for text in texts]
    header = "All rights are reserved and nothing of this page may be copied without leave of its owners. " * 2
    quote = " ".join(texts[0].split(" ")[:40])
    shares = {"copy": 0.0, "edit 1%": 0.01, "edit 5%": 0.05, "edit 10%": 0.1, "edit 20%": 0.2}
    for i in range(1, len(texts)):
        kind = (*shares, *["plain"] * 7, "header", "header", "quote", "quote")[i % 16]
        if kind in shares:
            near = texts[i] if kind == "copy" else edited(texts[i], shares[kind], source)
            documents.append(Planted(near, kind, i))
        elif kind == "header":
            documents[i] = Planted(header + texts[i], kind)
        elif kind == "quote":
            documents[i] = Planted(f'{texts[i]} As was said: "{quote}"', kind)
    return documents


def similarity(first: str, second: str, ngram: int = 5) -> float:
    """The share of their runs of words that two texts have in common (Jaccard)."""
    one, two = (set(words_of(text, same_numbers=True).runs(ngram).tolist()) for text in (first, second))
    return len(one & two) / max(1, len(one | two))
