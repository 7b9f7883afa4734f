"""The proof that a document cannot be dropped never contradicts datatrove's filter."""

import random

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_top_duplicate, get_n_grams

from ingot.data.cleaning import repetition
from ingot.data.cleaning.repetition import WordRuns, surely_varied
from ingot.data.cleaning.rules import RepetitionRule
from ingot.data.cleaning.section import GopherRepetition
from ingot.data.cleaning.words import UnicodeWords

from .planted import invented

SPLITTER = UnicodeWords("unicode")


def repetitive(seed: int) -> str:
    """Text with more or fewer phrases that come back."""
    source = random.Random(seed)
    phrases = [" ".join(invented(seed + i, source.randrange(2, 15)).split()) for i in range(4)]
    parts = [
        source.choice(phrases) if source.random() < seed % 7 / 12 else invented(source.random(), 9) for _ in range(40)
    ]
    return " ".join(parts)


def test_never_below_what_the_filter_measures() -> None:
    for seed in range(60):
        words = SPLITTER.word_tokenize(repetitive(seed) + (" cannot can not 面包面包" * (seed % 3)))
        runs = WordRuns(words)
        for length in (2, 3, 4):
            assert runs.top_share(length) >= find_top_duplicate(get_n_grams(words, length))
        for length in (5, 7, 10):
            assert runs.repeated(5) >= runs.repeated(length) >= find_all_duplicate(words, length)


def test_the_same_decisions_as_the_filter() -> None:
    ours = RepetitionRule(GopherRepetition(), SPLITTER)
    theirs = GopherRepetitionFilter(language=SPLITTER)  # type: ignore[arg-type]
    proved = dropped = 0
    for seed in range(120):
        text = repetitive(seed)
        expected = theirs.filter(Document(text, ""))
        assert (ours.judge(text) is None) == (expected is True), seed
        dropped += expected is not True
        proved += surely_varied(SPLITTER.word_tokenize(text), len(text), GopherRepetition())
    assert dropped > 20 and proved > 20


@pytest.mark.parametrize(("text", "expected"), [("one", 0), ("one two three", 9), ("x " * 4, 9), ("", 0)])
def test_texts_with_few_words(text: str, expected: int) -> None:
    words = SPLITTER.word_tokenize(text)
    assert WordRuns(words).repeated(5) == 0
    assert WordRuns(words).top_share(2) == expected


def test_a_document_too_long_for_the_proof_goes_to_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert surely_varied(SPLITTER.word_tokenize(invented(1)), 2000, GopherRepetition())
    monkeypatch.setattr(repetition, "LONGEST", 100)
    assert not surely_varied(SPLITTER.word_tokenize(invented(1)), 2000, GopherRepetition())
