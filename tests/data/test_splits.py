"""The held-out draw: whole groups, spread over the strata, a pure function of ids and seed."""

import hashlib
import random

import numpy as np
import pytest

from ingot.data import splits
from ingot.data.sources import Split
from ingot.data.splits import choose_splits, digest_of, draw_of
from ingot.recipe import InputError


def draws_of(seed: int, size: int) -> np.ndarray:
    return np.array([draw_of(seed, [f"d{i}"]) for i in range(size)], np.uint64)


def test_counts_are_exact_and_depend_on_the_seed() -> None:
    split = Split(validation=3, test=5)
    chosen = choose_splits(draws_of(1, 100), {}, split)
    assert [(chosen == i).sum() for i in range(3)] == [92, 3, 5]
    assert (chosen == choose_splits(draws_of(1, 100), {}, split)).all()
    assert (chosen != choose_splits(draws_of(2, 100), {}, split)).any()


def test_groups_stay_together() -> None:
    draws = np.repeat(draws_of(0, 20), 4)
    chosen = choose_splits(draws, {}, Split(validation=2, test=3)).reshape(20, 4)
    assert (chosen == chosen[:, :1]).all()
    assert (chosen[:, 0] == 2).sum() == 3


def test_shares_do_not_depend_on_the_other_documents() -> None:
    split = Split(validation=0.1, test=0.2)
    chosen = choose_splits(draws_of(0, 5000), {}, split)
    assert (chosen[:50] == choose_splits(draws_of(0, 50), {}, split)).all()
    assert abs((chosen == 1).mean() - 0.1) < 0.02
    assert abs((chosen == 2).mean() - 0.2) < 0.02


def test_strata_are_covered_evenly() -> None:
    draws = draws_of(0, 120)
    strata = {int(d): 1900 + i for i, d in enumerate(draws)}
    chosen = choose_splits(draws, strata, Split(validation=2, test=4, stratify="year"))
    held_out = np.flatnonzero(chosen)
    assert (held_out // 20).tolist() == [0, 1, 2, 3, 4, 5]  # one from each sixth
    assert (np.flatnonzero(chosen == 1) // 60).tolist() == [0, 1]  # validation too covers both halves


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(InputError, match="holds out 5 of 5 documents; nothing is left to train on"):
        choose_splits(draws_of(0, 5), {}, Split(validation=2, test=3))
    with pytest.raises(InputError, match="of 2 groups"):
        choose_splits(draws_of(0, 2), {}, Split(test=3, group=["title"]))


def test_contradictions_in_the_recipe_are_named() -> None:
    assert "both as numbers or both as shares" in next(Split(validation=2, test=0.5).problems("data.split"))
    assert "less than 1" in next(Split(validation=0.5, test=0.5).problems("data.split"))
    assert "needs numbers of documents" in next(Split(test=0.5, stratify="year").problems("data.split"))


def test_digest_ignores_case_and_white_space_only() -> None:
    assert digest_of("A  b\nc") == digest_of(" a B C ")
    assert digest_of("a b c") != digest_of("a b d")


@pytest.mark.parametrize("seed", range(20))
def test_the_digest_of_a_long_text_is_that_of_its_words(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    drawn = random.Random(seed)
    text = "".join(
        drawn.choices(["Σ", "ΑΣ", "a", "İ", "ß", " ", "\n", "\u2003", "\x1c", "word", "\u0301", "'"], k=400)
    )
    monkeypatch.setattr(splits, "AT_ONCE", drawn.randrange(1, 50))
    wanted = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()
    assert splits.digest_of(text) == wanted
    assert splits.digest_of(f"  {text}\n") == wanted
