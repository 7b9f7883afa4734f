"""The keys of a recipe: datatrove's names and defaults, switches, and one line for every mistake."""

import inspect
from typing import Any

import pytest
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

from ingot.data.cleaning.section import C4, Cleaning, FineWeb, GopherQuality, GopherRepetition, Minhash
from ingot.recipe import InputError, Recipe, build_recipe, to_tree
from ingot.sections import Section


class CleaningRecipe(Recipe, stage="cleaning"):
    """A recipe with nothing but cleaning."""

    data: Cleaning


def build(**data: Any) -> Cleaning:
    return build_recipe(CleaningRecipe, {"data": data, "run": {"dir": "x"}}).data


def plain(value: Any) -> Any:
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("section", "upstream"),
    [
        (GopherQuality, GopherQualityFilter),
        (GopherRepetition, GopherRepetitionFilter),
        (C4, C4QualityFilter),
        (FineWeb, FineWebQualityFilter),
    ],
)
def test_thresholds_are_those_of_datatrove(section: type[Section], upstream: type) -> None:
    """Every threshold of the installed datatrove is a key, with the same default."""
    theirs = {k: plain(p.default) for k, p in inspect.signature(upstream).parameters.items()}
    for name in ("self", "exclusion_writer", "language"):
        theirs.pop(name, None)
    assert section().model_dump() == theirs


def test_true_means_the_defaults_and_false_means_off() -> None:
    filters = build(filters={"gopher_quality": True, "c4": False, "fineweb": {"short_line_length": 20}}).filters
    assert filters.gopher_quality == GopherQuality() and filters.c4 is None
    assert filters.fineweb is not None and filters.fineweb.short_line_length == 20
    assert build(minhash="off").minhash is None and build(minhash=True).minhash == Minhash()


def test_the_resolved_recipe_shows_every_threshold_and_builds_the_same_again() -> None:
    recipe = build_recipe(
        CleaningRecipe, {"data": {"filters": {"c4": True}, "minhash": True, "pii": True}, "run": {"dir": "x"}}
    )
    tree = to_tree(recipe)
    assert tree["data"]["filters"]["c4"]["min_num_sentences"] == 5
    assert build_recipe(CleaningRecipe, tree).data == recipe.data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"filters": {"gopher_quality": {"min_doc_word": 9}}}, "gopher_quality.min_doc_word: .*'min_doc_words'"),
        ({"filters": {"gopher_quality": "yes"}}, "gopher_quality: expected true, false or a mapping"),
        ({"filters": {"c4": {"min_num_sentences": "5"}}}, "c4.min_num_sentences: expected a whole number"),
        ({"minhash": {"num_buckets": 0}}, "minhash.num_buckets: expected a whole number of at least 1"),
        ({"decontaminate": True}, "decontaminate.benchmarks: missing"),
        ({"pii": {"email": "hide"}}, "pii.email: expected one of mask, keep"),
        ({"keep_dropped": {"per_reason": 0}}, "keep_dropped.per_reason: expected a whole number above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(**data)
    assert "\n" not in str(error.value)


def test_contradictions() -> None:
    filters = build(
        filters={
            "min_characters": 9,
            "max_characters": 5,
            "gopher_repetition": {"dup_n_grams": [[5, 0.1], [0.5, 5]]},
            "words": "eng_Latin",
            "languages": ["en", "englisch", "deu"],
        }
    )
    problems = list(filters.cleaning_problems("data"))
    assert [problem.split(": ")[0] for problem in problems] == [
        "data.filters.max_characters",
        "data.filters.gopher_repetition.dup_n_grams.1",
        "data.filters.languages",
        "data.filters.languages",
        "data.filters.words",
    ]
    assert "'englisch' is no code of the model, such as en, de" in problems[2] and "'deu'" in problems[3]


def test_minhash_says_what_its_numbers_mean() -> None:
    section = Minhash()
    assert section.threshold == pytest.approx(0.72, abs=0.005)
    assert section.found(0.8) == pytest.approx(0.924, abs=0.001)  # the figure in datatrove's source
    assert "0.72" in section.in_words() and "92% at 0.8" in section.in_words()
