"""Instructions from the speeches: a speech's own words, short, the same for the same seed."""

import collections
import re

import pytest

from ingot.data.speech_rows import FAR, LONGEST_ANSWER, load_speeches, speech_pairs, speech_rows, split_sentences
from ingot.data.speeches import read_speeches


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(speech_rows(0))


def words(text: str) -> str:
    return " ".join(re.sub(r"\s*\[[^\]]*\]", "", text).split())


def test_answers_are_the_speech_itself(rows: list[dict]) -> None:
    speeches = {row["id"]: words(row["text"]) for _, row in read_speeches()}
    quoted = [row for row in rows if row["kind"] != "century"]
    paragraphs = [(row["document"], words(p)) for row in quoted for p in row["response"].split("\n\n")]
    assert sum(text in speeches[document] for document, text in paragraphs) > 0.99 * len(paragraphs)


def test_every_speech_gives_several_kinds(rows: list[dict]) -> None:
    per_speech = collections.Counter(row["document"] for row in rows)
    assert len(per_speech) == 249
    assert min(per_speech.values()) >= 4
    assert sorted(per_speech.values())[5] >= 5
    kinds = collections.Counter(row["kind"] for row in rows)
    assert set(kinds) == {"opening", "closing", "continuation", "topic", "century"}
    assert min(kinds.values()) > 200


def test_rows_are_short_and_filled_in(rows: list[dict]) -> None:
    assert max(len(row["response"]) for row in rows) <= LONGEST_ANSWER
    assert max(len(row["prompt"]) + len(row["response"]) for row in rows) < 800
    assert not any("{" in row["prompt"] for row in rows)
    (opening,) = (row for row in rows if (row["document"], row["kind"]) == ("1863-Lincoln-1", "opening"))
    assert "Abraham Lincoln" in opening["prompt"]
    assert "1863" in opening["prompt"]
    assert opening["response"].startswith(
        "Fellow-Citizens of the Senate and House of Representatives:\n\nAnother year"
    )


def test_the_seed_decides(rows: list[dict]) -> None:
    assert list(speech_rows(0)) == rows
    assert list(speech_rows(1)) != rows


def test_rejected_answers_come_from_another_century() -> None:
    held_out = {"1790-Washington-1", "1863-Lincoln-1", "1998-Clinton-1", "2015-Obama-1"}
    pairs = list(speech_pairs(0, held_out))
    written: dict[str, set[int]] = collections.defaultdict(set)
    for row in speech_rows(0):
        written[row["response"]].add(row["year"])
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    for pair in (p for p in pairs if p["document"] not in held_out):
        assert any(abs(year - pair["year"]) >= FAR for year in written[pair["rejected"]])


def test_sentences_end_where_they_do() -> None:
    text = 'The President. Mr. Speaker, the U.S. Army won. "Well done!" [Laughter] No. 5 was J. P. Morgan. The end'
    expected = ["Mr. Speaker, the U.S. Army won.", '"Well done!"', "No. 5 was J. P. Morgan.", "The end"]
    assert split_sentences(text) == expected
    assert all(len(s.sentences) == len(s.paragraphs) for s in load_speeches()[:5])
