"""Scaling laws: the worked numbers, the limits, and law files."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingot.planning.scaling import (
    DEFAULT_LAW,
    LAWS,
    ParametricLaw,
    best_tokens,
    budget_flops,
    find_law,
    optima,
    read_law,
    spread,
    token_limit,
)
from ingot.recipe import InputError

LLAMA_7B = 6_738_415_616
BUDGET = 9.2286e21  # 8 H100, 720 hours, MFU 0.45
OWN = {"E": 1.5, "A": 100.0, "alpha": 0.3, "B": 200.0, "beta": 0.4}


def test_the_budget_of_eight_h100_for_a_month() -> None:
    assert budget_flops(8, 989e12, 720, 0.45) == pytest.approx(9.2286e21, rel=5e-6)


@pytest.mark.parametrize(
    ("tokens", "rounded", "tex", "besiroglu"),
    [(215.3e9, 2.1506, 2.1243, 2.1503), (64.03e9, 2.2621, 2.2244, 2.2335)],
)
def test_the_six_losses(tokens: float, rounded: float, tex: float, besiroglu: float) -> None:
    for name, loss in {"hoffmann_rounded": rounded, "hoffmann": tex, "besiroglu": besiroglu}.items():
        assert round(LAWS[name].loss(LLAMA_7B, tokens) or 0, 4) == loss


@pytest.mark.parametrize(
    ("flops", "name", "parameters", "tokens", "ratio"),
    [
        (BUDGET, "hoffmann_rounded", "4.98", "309", "62"),
        (BUDGET, "hoffmann", "6.11", "252", "41"),
        (BUDGET, "besiroglu", "8.68", "177", "20.4"),
        (BUDGET, "rule_of_thumb", "8.77", "175", "20"),
        (5.76e23, "hoffmann_rounded", "32", "2982", "93"),
        (5.76e23, "besiroglu", "72", "1329", "18.4"),
    ],
)
def test_the_table_of_optima(flops: float, name: str, parameters: str, tokens: str, ratio: str) -> None:
    found = LAWS[name].optimum(flops)
    for value, text in ((found.parameters / 1e9, parameters), (found.tokens / 1e9, tokens)):
        assert f"{value:.{len(text.partition('.')[2])}f}" == text
    assert f"{found.tokens_per_parameter:.{len(ratio.partition('.')[2])}f}" == ratio
    assert found.flops == pytest.approx(flops)


def test_besiroglu_is_the_default() -> None:
    assert DEFAULT_LAW == "besiroglu"


@pytest.mark.parametrize("name", ["besiroglu", "hoffmann", "hoffmann_rounded", "kaplan"])
def test_the_closed_form_is_the_minimum_along_the_budget(name: str) -> None:
    law, flops = LAWS[name], 1e21
    best = law.optimum(flops)
    for factor in (0.99, 1.01):
        worse = law.loss(best.parameters * factor, best.tokens / factor)
        assert worse is not None and best.loss is not None and worse > best.loss


def test_kaplan_s_joint_fit_tends_to_its_laws_of_size_and_of_text_alone() -> None:
    law = LAWS["kaplan"]
    assert law.counts == "non_embedding"
    assert law.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert law.loss(1e30, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103, rel=1e-4)


def test_too_little_text_makes_the_model_larger() -> None:
    law = LAWS["besiroglu"]
    free, limited = law.optimum(BUDGET), law.optimum(BUDGET, token_limit(62.7e9, 2))
    assert limited.limited and not free.limited
    assert limited.tokens == pytest.approx(125.4e9)
    assert limited.flops == pytest.approx(BUDGET)
    assert limited.parameters > free.parameters
    assert limited.loss == pytest.approx(law.loss(limited.parameters, limited.tokens))
    assert law.optimum(BUDGET, 1e15) == free


def test_a_fixed_model_reads_all_that_compute_or_text_allows() -> None:
    assert best_tokens(BUDGET, 42.86e9) == pytest.approx(215.3e9, rel=1e-4)
    assert best_tokens(BUDGET, 6 * LLAMA_7B) == pytest.approx(228e9, rel=2e-3)
    assert best_tokens(BUDGET, 42.86e9, 100e9) == 100e9


def test_the_spread_is_largest_over_smallest() -> None:
    found = optima(BUDGET, laws={name: LAWS[name] for name in ("hoffmann_rounded", "rule_of_thumb")})
    assert spread(found)["parameters"] == pytest.approx(8.77 / 4.977, rel=1e-3)
    assert spread(found)["tokens_per_parameter"] == pytest.approx(62.1 / 20, rel=1e-3)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_numbers_that_make_no_sense_are_named(bad: float) -> None:
    for law in LAWS.values():
        with pytest.raises(InputError, match="flops: expected a number above 0"):
            law.optimum(bad)
    with pytest.raises(InputError, match="hours: expected a number above 0"):
        budget_flops(8, 989e12, bad, 0.45)
    with pytest.raises(InputError, match="max_tokens"):
        LAWS["besiroglu"].optimum(BUDGET, bad)
    with pytest.raises(InputError, match="tokens: "):
        LAWS["kaplan"].loss(1e9, bad)


def test_an_mfu_above_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"mfu: 45 is more than the whole GPU"):
        budget_flops(8, 989e12, 720, 45)


def write(path: Path, tree: Any) -> Path:
    """A law file with this content."""
    path.write_text(json.dumps(tree))
    return path


def test_a_law_file_is_read_with_all_it_says(tmp_path: Path) -> None:
    extras = {"name": "own", "unit": "nats per token of our own", "intervals": {"E": [1.4, 1.6]}}
    path = write(tmp_path / "law.json", OWN | extras | {"fitted_flops": [1e12, 1e13]})
    law = find_law(tmp_path)
    assert isinstance(law, ParametricLaw) and law == find_law(path)
    assert (law.name, law.E, law.beta, law.intervals["E"]) == ("own", 1.5, 0.4, (1.4, 1.6))
    assert law.loss(1e6, 1e8) == pytest.approx(1.5 + 100 / 1e6**0.3 + 200 / 1e8**0.4)
    assert law.extrapolates(2e14) and not law.extrapolates(9e13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": None}, "alpha: expected a number above 0, got None"),
        ({"A": -3}, "A: expected a number above 0, got -3"),
        ({"E": "1.5"}, "E: expected a number from 0, got '1.5'"),
        ({"aplha": 0.3}, "aplha: no such key of a law; did you mean 'alpha'?"),
        ({"counts": "some"}, "counts: expected 'all' or 'non_embedding', got 'some'"),
        ({"form": "A/N"}, "form: only"),
        ({"intervals": {"E": [2, 1]}}, r"intervals.E: expected \[low, high\]"),
        ({"intervals": [1]}, "intervals: expected an object"),
        ({"alpha": 1e-4, "beta": 1e-4, "A": 1e9}, "alpha 0.0001, beta 0.0001, A 1e.09, B 200: from .* has no optimum"),
        ({"alpha": 300.0, "beta": 300.0}, "alpha 300, beta 300, .* check the numbers"),
        ({"fitted_flops": 3}, r"fitted_flops: expected \[low, high\], got 3"),
    ],
)
def test_a_bad_law_file_is_told_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "law.json", OWN | change)
    with pytest.raises(InputError, match=rf"law\.json: {message}") as error:
        read_law(path)
    assert "\n" not in str(error.value)


def test_a_law_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an object"):
        read_law(write(tmp_path / "law.json", [1, 2]))
    with pytest.raises(InputError, match="beta: missing"):
        read_law(write(tmp_path / "law.json", {k: v for k, v in OWN.items() if k != "beta"}))
    (tmp_path / "law.json").write_text("E = 3")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        find_law(tmp_path / "law.json")
    with pytest.raises(InputError, match="no such law file"):
        find_law(tmp_path / "other.json")


def test_an_unknown_law_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'hoffmann'"):
        find_law("hofmann")
