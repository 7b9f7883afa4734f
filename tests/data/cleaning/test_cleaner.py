"""All steps together: their order, what pass 2 repeats, and what another process gets."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from ingot.data.cleaning import cleaner as module
from ingot.data.cleaning.cleaner import Cleaner, cleaning_reasons, prepare_cleaning
from ingot.data.cleaning.section import Cleaning

from .test_rules import STORY

GERMAN = "Der Bäcker öffnete seinen Laden vor Sonnenaufgang und füllte die ganze Straße mit dem Duft von warmem Brot."
EVERYTHING: dict[str, Any] = {
    "filters": {
        "languages": ["en"], "gopher_quality": True, "gopher_repetition": True, "c4": True, "fineweb": True,
    },
    "pii": True,
}  # fmt: skip


def make(folder: Path, **keys: Any) -> Cleaner:
    section = Cleaning(**keys)
    assert prepare_cleaning(section, folder) == []
    return Cleaner(section, folder)


def test_everything_off_keeps_and_changes_nothing(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.judge("a@b.com {") is None and made.clean("a@b.com {") == ("a@b.com {", {})
    assert made.judge(" ") == "empty"


def test_lines_go_and_addresses_are_masked(tmp_path: Path) -> None:
    made = make(tmp_path, **EVERYTHING)
    text = f"Home | About | Contact\n{STORY} Write to ann@bakery.com.\nAll rights reserved"
    assert made.judge(text) is None
    cleaned, counts = made.clean(text)
    assert cleaned == f"{STORY} Write to email@example.com."
    assert counts == {"c4: lines that end no sentence": 2, "pii: email": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (GERMAN, "language: de"),
        ("1234 5678 " * 30, "language: unsure"),
        (STORY[:208], "gopher_quality: too few words"),
        (STORY.replace(".", "\n"), "c4: too few sentences"),
    ],
)
def test_reasons(tmp_path: Path, text: str, reason: str) -> None:
    made = make(tmp_path, **EVERYTHING)
    assert made.judge(text) == reason
    assert reason in cleaning_reasons(made.section)


def test_a_document_is_judged_again_when_cleaning_shortens_it(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"filters": {"min_characters": 30, "c4": {"min_num_sentences": -1}}}
    made = make(tmp_path, **keys)
    assert made.judge("A menu without any end at all\nIt is here.") == "too_short"
    assert made.judge("A long menu without any end at all") == "empty"


def test_pass_two_in_another_process_gives_the_same_text(tmp_path: Path) -> None:
    first = make(tmp_path, **EVERYTHING)
    texts = [f"{STORY} a@b.com c@d.org\nmenu", STORY, f"8.8.8.8 {STORY}"]
    judged = [(first.judge(text), first.clean(text)) for text in texts]
    sent = pickle.dumps(first)
    second = pickle.loads(sent)
    assert len(sent) < 5000  # what was loaded stays behind
    assert [second.clean(text) for text in reversed(texts)] == [cleaned for _, cleaned in reversed(judged)]


def test_what_is_counted_can_be_changed_by_the_caller(tmp_path: Path) -> None:
    made = make(tmp_path, **EVERYTHING)
    made.clean(STORY + " a@b.com.")[1].clear()
    assert made.clean(STORY + " a@b.com.")[1] == {"pii: email": 1}


def test_nothing_is_loaded_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("loaded too early")

    for name in ("C4Rule", "BenchmarkIndex", "Masker", "rules_before", "language_of", "word_splitter"):
        monkeypatch.setattr(module, name, refuse)
    made = make(tmp_path, **EVERYTHING)
    with pytest.raises(AssertionError, match="too early"):
        made.judge(STORY)


def test_reasons_have_a_fixed_order_without_doubles() -> None:
    reasons = cleaning_reasons(Cleaning(**EVERYTHING))
    assert reasons == cleaning_reasons(Cleaning(**EVERYTHING)) and len(set(reasons)) == len(reasons)
    assert reasons[0] == "empty" and "language: fr" in reasons and "language: en" not in reasons
