"""Everything that is done to one document, in the order of the FineWeb corpus.

Simple rules, language, Gopher's rules, C4's rules (which remove lines), FineWeb's rules, benchmarks, personal data.
"""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from ingot.data.cleaning.decontamination import BenchmarkIndex, benchmark_names, build_index
from ingot.data.cleaning.language import known_languages, language_of
from ingot.data.cleaning.pii import Masker
from ingot.data.cleaning.rules import C4Rule, Rule, rule_reasons, rules_after, rules_before, simple_reason
from ingot.data.cleaning.section import Cleaning
from ingot.data.cleaning.words import word_splitter

UNSURE = "language: unsure"


def prepare_cleaning(section: Cleaning, folder: Path) -> list[dict[str, Any]]:
    """What processes share: the index of the benchmarks, written to `folder` once. Returns what it holds.

    Raises: InputError for benchmarks that cannot be read.
    """
    return [] if section.decontaminate is None else build_index(section.decontaminate, folder)


def cleaning_reasons(section: Cleaning) -> list[str]:
    """Every reason that a Cleaner of this section can give, always in the same order."""
    reasons = list(rule_reasons(section.filters))
    if section.filters.languages:
        unwanted = sorted(set(known_languages()) - set(section.filters.languages))
        reasons += [UNSURE, *(f"language: {language}" for language in unwanted)]
    if section.decontaminate is not None and section.decontaminate.action == "document":
        reasons += [f"decontaminate: {name}" for name in benchmark_names(section.decontaminate)]
    return list(dict.fromkeys(reasons))


class Cleaner:
    """Judges and changes single documents; light to make and to send to another process, loads what it needs late."""

    def __init__(self, section: Cleaning, folder: Path) -> None:
        """`folder` is the one that `prepare_cleaning` wrote."""
        self.section, self.folder = section, folder
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"section": self.section, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        """Judging and cleaning need the same things, so those of the last document are kept."""
        self._lines: tuple[str, str | None, str, Counter[str]] | None = None
        self._cleaned: tuple[str, str, Counter[str]] | None = None

    def judge(self, text: str) -> str | None:
        """Why the document is dropped, or None; `text` is the document as it was read."""
        filters = self.section.filters
        reason = simple_reason(text, filters) or self._language_reason(text)
        if reason is None:
            reason = next((r for rule in self._before if (r := rule.judge(text)) is not None), None)
        if reason is not None:
            return reason
        reason, lines, _ = self._without_lines(text)
        if reason is None:
            reason = next((r for rule in self._after if (r := rule.judge(lines)) is not None), None)
        if reason is None:
            reason = self._benchmark_reason(lines)
        if reason is None and (cleaned := self.clean(text)[0]) != text:
            reason = simple_reason(cleaned, filters)
        return reason

    def clean(self, text: str) -> tuple[str, Counter[str]]:
        """The text without removed lines, benchmarks' spans and personal data, and how many of each there were."""
        if self._cleaned is None or self._cleaned[0] != text:
            self._cleaned = (text, *self._clean(text))
        return self._cleaned[1], self._cleaned[2].copy()

    def _clean(self, text: str) -> tuple[str, Counter[str]]:
        _, text, lines = self._without_lines(text)
        counts = lines.copy()
        if self._benchmarks is not None and self._benchmarks.section.action == "span":
            text, spans = self._benchmarks.cut(text)
            counts += spans
        if self._masker is not None:
            text, masked = self._masker.mask(text)
            counts += masked
        return text, counts

    def _language_reason(self, text: str) -> str | None:
        filters = self.section.filters
        if not filters.languages:
            return None
        language, certainty = language_of(text)
        if certainty < filters.language_threshold:
            return UNSURE
        return None if language in filters.languages else f"language: {language}"

    def _benchmark_reason(self, text: str) -> str | None:
        if self._benchmarks is None or self._benchmarks.section.action == "span":
            return None
        matches = self._benchmarks.matches(text)
        return f"decontaminate: {matches[0].benchmark}" if matches else None

    def _without_lines(self, text: str) -> tuple[str | None, str, Counter[str]]:
        """C4's reason to drop the document, what it leaves of it and what it removed."""
        if self._c4 is None:
            return None, text, Counter()
        if self._lines is None or self._lines[0] != text:
            self._lines = (text, *self._c4.edit(text))
        return self._lines[1:]

    @cached_property
    def _splitter(self) -> Any:
        return word_splitter(self.section.filters.words)

    @cached_property
    def _before(self) -> list[Rule]:
        return rules_before(self.section.filters, self._splitter)

    @cached_property
    def _c4(self) -> C4Rule | None:
        return None if self.section.filters.c4 is None else C4Rule(self.section.filters.c4, self._splitter)

    @cached_property
    def _after(self) -> list[Rule]:
        return rules_after(self.section.filters, self._splitter)

    @cached_property
    def _benchmarks(self) -> BenchmarkIndex | None:
        section = self.section.decontaminate
        return None if section is None else BenchmarkIndex(section, self.folder)

    @cached_property
    def _masker(self) -> Masker | None:
        return None if self.section.pii is None else Masker(self.section.pii)
