"""Masks personal data: e-mail and IP addresses as datatrove finds them, telephone numbers, passwords in URLs."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from datatrove.pipeline.formatters.pii import PIIFormatter

from ingot.data.cleaning.section import Pii

NEAR = 256  # characters around an @ that can belong to an address
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]{1,128}:[^\s/@]{1,128}@")
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")  # most texts have none, and are spared the pattern of addresses
_PHONE = re.compile(
    r"(?<![\w.,/=-])"
    r"(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,5}){1,4}"  # +49 (30) 123-4567
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})"  # (212) 555-0123, 212-555-0123
    r"(?![\w-])"
)
Check = Callable[[str], bool]


class Masker:
    """Replaces personal data; the same text always gives the same result."""

    def __init__(self, section: Pii) -> None:
        found = PIIFormatter()
        self.section = section
        self.email = found.emails_replacer.regex
        self.ip = re.compile(rf"(?<![\d.])(?:{found.ip_replacer.regex.pattern})(?!\d|\.\d)")  # no part of 1.2.3.4.5
        self.public = found.ip_replacer.validator

    def mask(self, text: str) -> tuple[str, Counter[str]]:
        """The masked text and how many of each kind were masked."""
        counts: Counter[str] = Counter()
        section = self.section
        if section.url_credentials == "mask" and "://" in text and "@" in text:
            text, counts["pii: url credentials"] = _CREDENTIALS.subn("", text)
        if section.email == "mask" and "@" in text:
            text, counts["pii: email"] = self._mask_emails(text)
        if section.ip == "mask" and _DOTTED.search(text):
            text, counts["pii: ip"] = replace(self.ip, section.ip_replacement, text, self.public)
        if section.phone == "mask":
            text, counts["pii: phone"] = replace(_PHONE, section.phone_replacement, text, _enough_digits)
        return text, +counts

    def _mask_emails(self, text: str) -> tuple[str, int]:
        """Looks around every @ only: over a long line without spaces datatrove's pattern takes quadratic time."""
        parts, done, count = [], 0, 0
        for begin, end in _around(text, "@"):
            masked, found = replace(self.email, self.section.email_replacement, text[begin:end], first=count)
            parts += [text[done:begin], masked]
            done, count = end, count + found
        return "".join([*parts, text[done:]]), count


def replace(
    pattern: re.Pattern[str], replacements: Sequence[str], text: str, check: Check | None = None, first: int = 0
) -> tuple[str, int]:
    """Replaces the matches that pass the check; the replacements take turns, beginning with number `first`."""
    count = 0

    def next_one(match: re.Match[str]) -> str:
        nonlocal count
        if check is not None and not check(match.group(0)):
            return match.group(0)
        count += 1
        return replacements[(first + count - 1) % len(replacements)]

    return pattern.sub(next_one, text), count


def _enough_digits(number: str) -> bool:
    """Seven digits at least, and no more than the 15 of the ITU."""
    return 7 <= sum(map(str.isdigit, number)) <= 15


def _around(text: str, sign: str) -> Iterator[tuple[int, int]]:
    """Stretches of NEAR characters before and after every `sign`; those that meet become one."""
    begin, end = 0, 0
    place = text.find(sign)
    while place >= 0:
        if place - NEAR > end:
            if end:
                yield begin, end
            begin = place - NEAR
        end = min(place + NEAR, len(text))
        place = text.find(sign, place + 1)
    if end:
        yield begin, end
