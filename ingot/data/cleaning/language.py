"""The language of a document, by a model that comes inside the package py3langid: nothing is downloaded."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from ingot.recipe import InputError

PIECES, PIECE = 3, 250  # what the model sees of a long document: characters from its beginning, middle and end


@cache
def _model() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise InputError("data.filters.languages: needs py3langid; install it with: pip install py3langid") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> list[str]:
    """The codes of the languages that the model knows.

    Raises: InputError when the package is not installed.
    """
    return sorted(_model().labels)


def language_of(text: str) -> tuple[str, float]:
    """The most likely language of a text and how certain that is, from 0 to 1."""
    language, certainty = _model().classify(_sample(text))
    return str(language), float(certainty)


def _sample(text: str) -> str:
    if len(text) <= PIECES * PIECE:
        return text
    starts = [i * (len(text) - PIECE) // (PIECES - 1) for i in range(PIECES)]
    return "\n".join(text[start : start + PIECE] for start in starts)


def unknown_languages(languages: Sequence[str]) -> Iterator[str]:
    """What is wrong with a recipe's languages."""
    if not languages:
        return
    try:
        known = set(known_languages())
    except InputError as error:
        yield str(error).removeprefix("data.filters.languages: ")
        return
    for language in languages:
        if language not in known:
            yield f"'{language}' is no code of the model, such as en, de, zh; it has {', '.join(sorted(known))}"
