"""The text that a tokenizer is trained on: nothing lost when it is cut, an even part when it is limited."""

from collections import Counter

import pytest
from tokenizers import Regex, pre_tokenizers

from ingot.tokenization.build import PATTERNS
from ingot.tokenization.sampling import PIECE, Sample, pieces_of


def test_a_short_text_is_one_piece() -> None:
    assert list(pieces_of("a b")) == ["a b"]
    assert list(pieces_of("")) == []


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
def test_cutting_changes_no_word(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingot.tokenization.sampling.PIECE", 50)
    text = "It's 12 345 words,  two spaces\n\n and (so on) ... über größe.\r\n " * 40
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text and len(pieces) > 20
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole = Counter(word for word, _ in cut.pre_tokenize_str(text))
    assert Counter(word for piece in pieces for word, _ in cut.pre_tokenize_str(piece)) == whole


def test_a_line_without_spaces_is_cut_too() -> None:
    pieces = list(pieces_of("字" * (5 * PIECE)))
    assert "".join(pieces) == "字" * (5 * PIECE)
    assert max(map(len, pieces)) <= 2 * PIECE


def test_all_text_without_a_limit() -> None:
    sample = Sample(lambda: ["ab", "é"])
    assert list(sample.pieces()) == ["ab", "é"]
    assert (sample.total_bytes, sample.used_bytes) == (4, 4)


def test_a_limit_takes_an_even_share_the_same_each_time() -> None:
    documents = [f"{i:05d} " * (1 + i % 7) for i in range(20_000)]
    sample = Sample(lambda: documents, max_bytes=50_000)
    taken = list(sample.pieces())
    assert list(sample.pieces()) == taken
    assert 49_000 < sample.used_bytes <= 50_000
    assert sample.total_bytes == sum(map(len, documents))
    quarters = Counter(int(text[:5]) // 5000 for text in taken)
    assert max(quarters.values()) - min(quarters.values()) < 0.1 * len(taken)
    lengths = Counter(len(text) for text in taken)
    assert len(lengths) == 7 and max(lengths.values()) < 2 * min(lengths.values())  # long documents are taken, too


def test_a_limit_above_the_corpus_takes_all() -> None:
    sample = Sample(lambda: ["ab", "cd"], max_bytes=100)
    assert list(sample.pieces()) == ["ab", "cd"]
