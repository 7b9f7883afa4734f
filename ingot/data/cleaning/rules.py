"""Rules that drop a document: the simple ones of the recipe, and datatrove's filters with the reasons in words."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import split_into_words

from ingot.data.cleaning.repetition import surely_varied
from ingot.data.cleaning.section import C4, Filters, GopherRepetition, Section

SIMPLE = ("empty", "too_short", "too_long", "few_letters", "repeated_lines")
WORDS = {  # datatrove's name of a reason -> what we call it
    "gopher_quality": {
        "gopher_short_doc": "too few words",
        "gopher_long_doc": "too many words",
        "gopher_below_avg_threshold": "words too short",
        "gopher_above_avg_threshold": "words too long",
        "gopher_too_many_hashes": "too many hash signs",
        "gopher_too_many_ellipsis": "too many ellipses",
        "gopher_too_many_bullets": "too many bullets",
        "gopher_too_many_end_ellipsis": "too many lines end with an ellipsis",
        "gopher_below_alpha_threshold": "too few words with letters",
        "gopher_enough_stop_words": "too few stop words",
    },
    "gopher_repetition": {
        "empty": "empty",
        "dup_line_frac": "repeated lines",
        "dup_para_frac": "repeated paragraphs",
        "dup_line_char_frac": "characters in repeated lines",
        "dup_para_char_frac": "characters in repeated paragraphs",
    },
    "c4": {
        "lorem_ipsum": "lorem ipsum",
        "curly_bracket": "curly bracket",
        "too_few_sentences": "too few sentences",
    },
    "fineweb": {
        "empty": "empty",
        "line_punct_ratio": "too few lines end a sentence",
        "short_line_ratio": "too many short lines",
        "char_dup_ratio": "characters in repeated lines",
        "list_ratio": "too many line ends",
    },
}
C4_LINES = {
    "line-filter-too_long_word": "c4: lines with a long word",
    "line-filter-no_terminal_punc": "c4: lines that end no sentence",
    "line-filter-too_few_words": "c4: short lines",
    "line-filter-javascript": "c4: lines with javascript",
    "line-filter-policy": "c4: lines on cookies or terms",
}


def simple_reason(text: str, filters: Filters) -> str | None:
    """Why one of the simple rules drops a document, or None; the cheapest test comes first."""
    if not text.strip():
        return "empty"
    if len(text) < filters.min_characters:
        return "too_short"
    if filters.max_characters is not None and len(text) > filters.max_characters:
        return "too_long"
    if filters.min_letter_share > 0 and _letter_share(text) < filters.min_letter_share:
        return "few_letters"
    if filters.max_repeated_line_share < 1 and _repeated_line_share(text) > filters.max_repeated_line_share:
        return "repeated_lines"
    return None


def _letter_share(text: str) -> float:
    """Letters over visible characters."""
    visible = "".join(text.split())
    return sum(map(str.isalpha, visible)) / len(visible)


def _repeated_line_share(text: str) -> float:
    """Lines that repeat an earlier one, over all lines that are not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 1 - len(set(lines)) / len(lines)


class Rule:
    """One of datatrove's filters under its name in the recipe."""

    def __init__(self, name: str, made: BaseFilter) -> None:
        self.name, self.filter = name, made

    def judge(self, text: str) -> str | None:
        """Why the document is dropped, or None."""
        return self._reason(self.filter.filter(Document(text, "")))

    def _reason(self, answer: bool | tuple[bool, str]) -> str | None:
        kept, reason = answer if isinstance(answer, tuple) else (answer, "")
        return None if kept else f"{self.name}: {in_words(self.name, reason)}"


def in_words(rule: str, reason: str) -> str:
    """What a reason of datatrove's means."""
    if reason in WORDS[rule]:
        return WORDS[rule][reason]
    digits = "".join(c for c in reason if c.isdigit())  # top_2_gram, duplicated_5_n_grams
    return f"frequent {digits} words" if reason.startswith("top_") else f"repeated {digits} words"


class RepetitionRule(Rule):
    """Gopher's repetition rules; those on words are left out where they cannot drop the document."""

    def __init__(self, section: GopherRepetition, language: Any) -> None:
        given = _given(section, language)
        super().__init__("gopher_repetition", GopherRepetitionFilter(**given))
        self.on_lines = Rule(self.name, GopherRepetitionFilter(**{**given, "top_n_grams": [], "dup_n_grams": []}))
        self.section, self.language = section, language

    def judge(self, text: str) -> str | None:
        """Why the document is dropped, or None."""
        if surely_varied(split_into_words(text, self.language), len(text), self.section):
            return self.on_lines.judge(text)
        return super().judge(text)


class C4Rule(Rule):
    """C4's rules, which also remove lines."""

    def __init__(self, section: C4, language: Any) -> None:
        super().__init__("c4", _CountingC4(**section.model_dump(), language=language))
        self.blank_lines = "c4: lines that end no sentence" if section.filter_no_terminal_punct else "c4: short lines"

    def edit(self, text: str) -> tuple[str | None, str, Counter[str]]:
        """Reason to drop the document or None, the lines that are left, and the number of lines removed by rule."""
        assert isinstance(self.filter, _CountingC4)
        document = Document(text, "")
        self.filter.lines = Counter()
        reason = self._reason(self.filter.filter(document))
        lines = self.filter.lines
        lines[self.blank_lines] -= sum(not line.strip() for line in text.splitlines())  # no loss, so not counted
        return reason, document.text, +lines


class _CountingC4(C4QualityFilter):
    """Counts the removed lines of one document; datatrove's statistics are over all of them."""

    lines: Counter[str]

    def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
        for label in labels:
            if label in C4_LINES:
                self.lines[C4_LINES[label]] += value


def rules_before(filters: Filters, language: Any) -> list[Rule]:
    """Rules on the text as it comes, in the order of the FineWeb corpus."""
    rules: list[Rule] = []
    if filters.gopher_repetition is not None:
        rules.append(RepetitionRule(filters.gopher_repetition, language))
    if filters.gopher_quality is not None:
        rules.append(Rule("gopher_quality", GopherQualityFilter(**_given(filters.gopher_quality, language))))
    return rules


def rules_after(filters: Filters, language: Any) -> list[Rule]:
    """Rules on what C4's rules left."""
    if filters.fineweb is None:
        return []
    given = _given(filters.fineweb, language)
    stop_chars = None if filters.fineweb.stop_chars is None else tuple(filters.fineweb.stop_chars)
    return [Rule("fineweb", FineWebQualityFilter(**{**given, "stop_chars": stop_chars}))]


def _given(section: Section, language: Any) -> dict[str, Any]:
    return {**section.model_dump(), "language": language}


def rule_reasons(filters: Filters) -> Iterator[str]:
    """Every reason that these filters can give, but languages."""
    yield from SIMPLE
    for rule, words in WORDS.items():
        if getattr(filters, rule) is None:
            continue
        yield from (f"{rule}: {text}" for text in words.values())
        if filters.gopher_repetition is not None and rule == "gopher_repetition":
            yield from (f"{rule}: frequent {n} words" for n, _ in filters.gopher_repetition.top_n_grams)
            yield from (f"{rule}: repeated {n} words" for n, _ in filters.gopher_repetition.dup_n_grams)
