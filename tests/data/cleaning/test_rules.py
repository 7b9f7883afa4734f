"""Rules that drop a document, each shown by a document that it drops, and the names of their reasons."""

import inspect
import re
from typing import Any

import pytest
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

from ingot.data.cleaning.rules import WORDS, C4Rule, rule_reasons, rules_after, rules_before, simple_reason
from ingot.data.cleaning.section import C4, Filters
from ingot.data.cleaning.words import UnicodeWords

SPLITTER = UnicodeWords("unicode")
STORY = (
    "The old baker opened the small shop before sunrise and filled the quiet street with the smell of bread. "
    "People of every age came to buy their rolls and to talk about the weather that the coming week would have. "
    "Nobody was in a hurry, because the trains were late and the office on the hill did not open until nine. "
    "When the bell of the church rang, he closed the door for a moment and drank a cup of coffee with his wife. "
    "Then the children arrived with their coins and asked, as always, whether there were any broken biscuits left."
)
ALL = Filters(gopher_quality={}, gopher_repetition={}, c4={}, fineweb={})  # type: ignore[arg-type]


def judged(text: str, **filters: Any) -> str | None:
    """The first reason of the filters, before or after C4's."""
    section = Filters(**filters)
    rules = [*rules_before(section, SPLITTER), *rules_after(section, SPLITTER)]
    return next((reason for rule in rules if (reason := rule.judge(text))), None)


@pytest.mark.parametrize(
    ("text", "filters", "reason"),
    [
        (" \n ", {}, "empty"),
        ("short", {"min_characters": 9}, "too_short"),
        ("long text", {"max_characters": 5}, "too_long"),
        ("12 34 ab", {"min_letter_share": 0.5}, "few_letters"),
        ("a\na\na", {"max_repeated_line_share": 0.5}, "repeated_lines"),
        (STORY, {"min_characters": 9, "min_letter_share": 0.5, "max_repeated_line_share": 0.1}, None),
    ],
)
def test_simple_rules(text: str, filters: dict[str, Any], reason: str | None) -> None:
    assert simple_reason(text, Filters(**filters)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STORY, None),
        ("The end of it.", "too few words"),
        ("a b c d e " * 20, "words too short"),
        (STORY + " #" * 60, "too many hash signs"),
        (STORY + " ..." * 60, "too many ellipses"),
        ("\n".join("- " + line for line in STORY.split(". ")), "too many bullets"),
        (STORY + " 12" * 60, "too few words with letters"),
        ("vier dunkle Boote " * 30, "too few stop words"),
    ],
)
def test_gopher_quality(text: str, reason: str | None) -> None:
    assert judged(text, gopher_quality=True) == (reason and f"gopher_quality: {reason}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STORY, None),
        ("\n".join([STORY, *["Read more"] * 9]), "repeated lines"),
        ("\n\n".join([STORY, *["Read more"] * 9]), "repeated paragraphs"),
        ("\n".join([STORY, *STORY.split(". "), STORY]), "characters in repeated lines"),
        (STORY + " big cat" * 40, "frequent 2 words"),
        (f"{STORY} {STORY[:300]}", "repeated 5 words"),
    ],
)
def test_gopher_repetition(text: str, reason: str | None) -> None:
    assert judged(text, gopher_repetition=True) == (reason and f"gopher_repetition: {reason}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (STORY, None),
        ("no line of this text ends\nas a sentence should\n" * 9, "too few lines end a sentence"),
        ("Yes.\nNo.\nNever.\n" + STORY, "too many short lines"),
        ("\n".join([STORY[:200] + ".", STORY[:200] + "."]), "characters in repeated lines"),
    ],
)
def test_fineweb(text: str, reason: str | None) -> None:
    assert judged(text, fineweb=True) == (reason and f"fineweb: {reason}")


def test_thresholds_are_used() -> None:
    short = "The end of it."
    assert judged(short, gopher_quality={"min_doc_words": 4, "min_avg_word_length": 2, "min_stop_words": 1}) is None
    assert (
        judged(short, gopher_quality={"min_doc_words": None, "min_avg_word_length": None, "min_stop_words": 0}) is None
    )
    assert judged("vier dunkle Boote " * 30, gopher_quality={"stop_words": ["vier", "Boote"]}) is None


def test_c4_removes_lines_and_counts_them() -> None:
    rule = C4Rule(C4(), SPLITTER)
    lines = ["A menu without an end", "", "Please enable JavaScript now.", "We use cookies on this page.", "Go on."]
    text = "\n".join([*lines, "x" * 2000 + " is long, is it not.", STORY, "It was so.[1] Said they all."])
    reason, left, counts = rule.edit(text)
    assert reason is None and left == f"{STORY}\nIt was so. Said they all."
    assert counts == {
        "c4: lines that end no sentence": 1,
        "c4: lines with javascript": 1,
        "c4: lines on cookies or terms": 1,
        "c4: short lines": 1,
        "c4: lines with a long word": 1,
    }
    assert rule.edit(left)[1:] == (left, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("One. Two is here now.", "too few sentences"),
        (STORY + "\nThe text is lorem ipsum dolor.", "lorem ipsum"),
        (STORY + "\nif (x) { return the value of y.", "curly bracket"),
    ],
)
def test_c4_drops_documents(text: str, reason: str) -> None:
    assert C4Rule(C4(), SPLITTER).edit(text)[0] == f"c4: {reason}"
    tolerant = C4(min_num_sentences=-1, filter_lorem_ipsum=False, filter_curly_bracket=False)
    assert C4Rule(tolerant, SPLITTER).edit(text)[0] is None


def test_every_reason_of_the_installed_datatrove_has_words() -> None:
    upstream = {
        "gopher_quality": GopherQualityFilter,
        "gopher_repetition": GopherRepetitionFilter,
        "c4": C4QualityFilter,
        "fineweb": FineWebQualityFilter,
    }
    for rule, theirs in upstream.items():
        assert set(re.findall(r'return False, "(\w+)"', inspect.getsource(theirs))) == set(WORDS[rule]), rule
    source = inspect.getsource(GopherRepetitionFilter)
    assert re.findall(r'return False, f"(.*)"', source) == ["top_{n}_gram", "duplicated_{n}_n_grams"]
    assert len(list(rule_reasons(ALL))) == len(set(rule_reasons(ALL))) > 30
