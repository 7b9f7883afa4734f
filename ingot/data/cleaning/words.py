"""Words and sentences for datatrove's rules, found without a model, a download or another package."""

import re
from collections.abc import Iterable, Iterator

from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer, load_tokenizer_assignments, load_word_tokenizer

from ingot.data.cleaning.shingles import NO_SPACES
from ingot.recipe import InputError, nearest

_NO_SPACES = "".join(f"{chr(first)}-{chr(last)}" for first, last in NO_SPACES)
_WORD = re.compile(
    rf"[{_NO_SPACES}]"  # a sign of a script that writes no spaces is a word of its own
    r"|https?://\S+"
    rf"|[^\W{_NO_SPACES}]+(?:(?:[.,]|[-:/](?=\d))[^\W{_NO_SPACES}]+)*"  # house, 3.14, U.S, 10:43
    r"|(?<=\w)['’]\w+"  # don't is don and 't
    r"|\.{2,}|[^\w\s]"  # an ellipsis, or a sign
)


def _sentence_end(signs: Iterable[str]) -> re.Pattern[str]:
    ends = "".join(map(re.escape, sorted(signs)))
    return re.compile(rf"[{ends}]+[\"'”’»)\]]*(?=\s|$)|[。！？｡]+")


_RARE = re.compile("[\U00010000-\U0010ffff]")  # with these signs in it the pattern is ten times slower
_END, _END_RARE = _sentence_end(s for s in TERMINAL_PUNCTUATION if s <= "\uffff"), _sentence_end(TERMINAL_PUNCTUATION)


class UnicodeWords(WordTokenizer):
    """Words of letters and digits, signs by themselves; sentences end at a terminal sign before white space."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words and signs in order."""
        return _WORD.findall(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of every sentence; together they cover the text."""
        pattern = _END_RARE if not text.isascii() and _RARE.search(text) else _END
        ends = [m.end() for m in pattern.finditer(text)]
        if not ends or text[ends[-1] :].strip():
            ends.append(len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences, without the white space around them."""
        return [text[begin:end].strip() for begin, end in self.span_tokenize(text)]


def word_splitter(words: str) -> WordTokenizer:
    """The splitter that the recipe names: our own, or datatrove's for a language.

    Raises: InputError when datatrove's needs a package or a download that is not there.
    """
    if words == "unicode":
        return UnicodeWords("unicode")
    try:
        splitter = load_word_tokenizer(words)
        splitter.word_tokenize("a b")
    except (ImportError, OSError, LookupError) as error:
        first = str(error).strip().split("\n")[0]
        raise InputError(f"data.filters.words: the splitter for '{words}' is not ready: {first}") from None
    return splitter


def splitter_problem(words: str) -> Iterator[str]:
    """What is wrong with the recipe's `words`, without loading the splitter."""
    known = load_tokenizer_assignments()
    if words != "unicode" and words not in known:
        meant = nearest(words, {"unicode", *known})
        hint = f"; did you mean '{meant}'?" if meant else ""
        yield f"no splitter for '{words}'{hint}; `unicode` takes any language"
