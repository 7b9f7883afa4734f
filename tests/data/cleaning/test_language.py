"""The language model that comes with a package, on sentences in 26 languages."""

import json
import sys
from pathlib import Path

import pytest

from ingot.data.cleaning import language
from ingot.data.cleaning.language import known_languages, language_of
from ingot.recipe import InputError

SENTENCES: dict[str, list[str]] = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))


def test_every_language_is_told_from_three_sentences() -> None:
    answers = {code: language_of(" ".join(sentences)) for code, sentences in SENTENCES.items()}
    assert {code: answer[0] for code, answer in answers.items()} == {code: code for code in SENTENCES}
    assert min(certainty for _, certainty in answers.values()) > 0.65
    assert set(SENTENCES) <= set(known_languages())


def test_single_sentences_cut_at_60_characters() -> None:
    pairs = [(code, language_of(text[:60])) for code, sentences in SENTENCES.items() for text in sentences]
    right = sum(code == found for code, (found, _) in pairs)
    wrong_but_sure = [pair for pair in pairs if pair[0] != pair[1][0] and pair[1][1] >= 0.65]
    assert right >= 0.97 * len(pairs) and not wrong_but_sure


def test_no_language_in_signs_and_numbers() -> None:
    assert language_of("12 34 56 | 78 90 --- 11 22")[1] < 0.65
    assert language_of("")[1] < 0.65


def test_of_a_long_text_the_beginning_the_middle_and_the_end_are_looked_at() -> None:
    english, german = " ".join(SENTENCES["en"]) + " ", " ".join(SENTENCES["de"]) + " "
    assert language_of(english + german * 20)[0] == "de"
    assert language_of(german + english * 20)[0] == "en"


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    language._model.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(InputError, match="needs py3langid; install it with"):
        language_of("text")
    assert list(language.unknown_languages(["en"])) == ["needs py3langid; install it with: pip install py3langid"]
