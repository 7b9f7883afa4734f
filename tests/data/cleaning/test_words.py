"""Words and sentences without a model, and runs of words as numbers."""

import pytest

from ingot.data.cleaning import shingles, words
from ingot.data.cleaning.shingles import words_of
from ingot.data.cleaning.words import UnicodeWords, word_splitter
from ingot.recipe import InputError

SPLITTER = UnicodeWords("unicode")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't go, Mr. Fox!", "Don 't go , Mr . Fox !"),
        ("3.14 at 10:43 ... well-known", "3.14 at 10:43 ... well - known"),
        ("see https://a.b/c?d now", "see https://a.b/c?d now"),
        ("über den Fluß", "über den Fluß"),
        ("面包 ok パン", "面 包 ok パ ン"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert SPLITTER.word_tokenize(text) == expected.split()


def test_sentences_cover_the_text() -> None:
    text = 'He said: "Go!" Then he left. 雨停以后。孩子们跑。 And so on'
    spans = SPLITTER.span_tokenize(text)
    assert "".join(text[begin:end] for begin, end in spans) == text
    assert SPLITTER.sent_tokenize(text) == ['He said: "Go!"', "Then he left.", "雨停以后。", "孩子们跑。", "And so on"]
    assert len(SPLITTER.span_tokenize("Only 3.5 points")) == 1 and SPLITTER.span_tokenize("") == [(0, 0)]


def test_sentences_end_in_every_script() -> None:
    for sign in ("।", "؟", "։", "\U00011047"):
        assert SPLITTER.sent_tokenize(f"aa bb{sign} cc") == [f"aa bb{sign}", "cc"]


def test_a_splitter_that_needs_a_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("Please install `spacy`")

    monkeypatch.setattr(words, "load_word_tokenizer", missing)
    with pytest.raises(InputError, match="data.filters.words: the splitter for 'eng' is not ready: Please install"):
        word_splitter("eng")


def test_words_are_compared_without_case_accents_and_signs() -> None:
    assert (words_of("Héllo, WORLD (it's)").hashes == words_of("hello world it s").hashes).all()
    assert (words_of("é").hashes == words_of("e\u0301").hashes).all()
    assert words_of("a1").hashes != words_of("a2").hashes
    assert (words_of("a 12,345", True).hashes == words_of("a 6 78", True).hashes).all()


def test_words_know_their_places() -> None:
    text = "Ein e\u0301le\u0300ve: 面包!"
    found = words_of(text)
    assert [text[b:e] for b, e in zip(found.begins, found.ends, strict=True)] == [
        "Ein",
        "e\u0301le\u0300ve",
        "面",
        "包",
    ]


def test_runs() -> None:
    found, other = words_of("a b c d e").runs(3), words_of("x b c d").runs(3)
    assert len(found) == 3 and found[1] == other[1] and len({*found, *other}) == 4
    assert words_of("a b c").runs(3) != words_of("c b a").runs(3)
    assert not len(words_of("a b").runs(3)) and not len(words_of("").runs(3)) and not len(words_of("...").runs(1))


def test_a_long_text_is_hashed_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Some words, and\nsome more: 面包师 été 12,345 " * 20
    whole = words_of(text, same_numbers=True)
    monkeypatch.setattr(shingles, "PIECE", 50)
    parts = words_of(text, same_numbers=True)
    for name in ("hashes", "begins", "ends"):
        assert (getattr(whole, name) == getattr(parts, name)).all()
    assert len(words_of("x" * 130).hashes) == 3  # a word without end is cut
