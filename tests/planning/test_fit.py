"""A law fitted to runs: known coefficients come back, and runs that cannot be compared are refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.planning.fit import Point, fit_command, fit_law
from ingot.planning.law_fitting import EXPONENTS, budgets, parabola
from ingot.planning.scaling import COEFFICIENTS, ParametricLaw, find_law
from ingot.recipe import InputError
from ingot.runs import write_json

TRUTH = ParametricLaw(name="truth", source="made up", unit="", E=1.8, A=480.0, alpha=0.35, B=2000.0, beta=0.37)
BUDGETS = (1e18, 1e19, 1e20)
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the best size


def points(noise: float = 0.0, seed: int = 0, flops: tuple[float, ...] = BUDGETS) -> list[Point]:
    """Runs that follow the truth, with relative noise."""
    generator = np.random.default_rng(seed)
    found = []
    for budget in flops:
        for factor in SIZES:
            size = TRUTH.best_parameters(budget) * factor
            tokens = budget / 6 / size
            loss = TRUTH.loss(size, tokens) * math.exp(noise * generator.normal())
            found.append(Point(f"c{budget:g}-x{factor}", size, tokens, loss))
    return found


def test_without_noise_the_coefficients_come_back() -> None:
    fit = fit_law(points(), bootstrap=0)
    for key in COEFFICIENTS:
        assert getattr(fit.law, key) == pytest.approx(getattr(TRUTH, key), rel=1e-3)
    assert np.abs(fit.residuals).max() < 1e-6
    assert fit.warnings == () and fit.law.intervals == {} and fit.loss_interval(1e9, 1e10) is None


def test_with_noise_the_truth_is_inside_the_intervals() -> None:
    fit = fit_law(points(noise=0.002, seed=3), bootstrap=60, seed=1)
    for key in COEFFICIENTS:
        low, high = fit.law.intervals[key]
        assert low <= getattr(TRUTH, key) <= high, key
        assert low <= getattr(fit.law, key) <= high, key
    best = TRUTH.optimum(1e21)
    sizes, losses = fit.optimum_interval(1e21), fit.loss_interval(best.parameters, best.tokens)
    assert sizes is not None and sizes[0] < best.parameters < sizes[1] < 4 * sizes[0]
    assert losses is not None and best.loss is not None and losses[0] < best.loss < losses[1] < 1.05 * losses[0]


def test_a_run_that_went_wrong_moves_the_law_little_and_is_named() -> None:
    runs = points()
    bad = runs[7]
    runs[7] = Point(bad.name, bad.parameters, bad.tokens, bad.loss * 1.15)
    fit = fit_law(runs, bootstrap=0)
    assert fit.law.alpha == pytest.approx(TRUTH.alpha, rel=0.02)
    assert fit.warnings == (f"{bad.name} is +15.0% off the fit: look at its loss curve",)


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = points(noise=0.003)
    first, again, other = (fit_law(runs, bootstrap=8, seed=seed).law.intervals for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("runs", "warning"),
    [
        (points(flops=(1e18, 1e20)), "only 10 runs"),
        (points(flops=(1e18, 1e20)), "three sizes or more at 2 budgets only"),
        (points(0.001, flops=(1e19,)) + points(0.001, 1, flops=(1.05e19,)), "all runs have the same compute"),
        ([p for p in points() if "1e+19" not in p.name or "x0" not in p.name], "the smallest model is the best"),
        (
            [p for p in points() if "1e+20" not in p.name or "x0" in p.name or "x1" in p.name],
            "the largest model is the best: add larger",
        ),
    ],
)
def test_what_the_data_cannot_tell_is_said(runs: list[Point], warning: str) -> None:
    assert any(warning in text for text in fit_law(runs, bootstrap=0).warnings)


def test_a_coefficient_that_the_runs_do_not_determine_is_said() -> None:
    flat = [Point(p.name, p.parameters, p.tokens, 2.0 + 1e5 / p.tokens**0.6) for p in points()]
    runs = [Point(p.name, p.parameters, p.tokens, p.loss * (1 + 1e-4 * i)) for i, p in enumerate(flat)]
    fit = fit_law(runs, bootstrap=10)
    assert any("alpha" in text for text in fit.warnings), fit.warnings
    assert EXPONENTS[0] <= fit.law.alpha <= EXPONENTS[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0, True, None])
def test_a_point_that_is_no_number_is_named(bad: Any) -> None:
    runs = [*points(), Point("runs/broken", 1e6, 1e8, bad)]
    with pytest.raises(InputError, match="runs/broken: loss is"):
        fit_law(runs)


def test_five_runs_are_too_few() -> None:
    with pytest.raises(InputError, match="5 runs that differ in size or tokens: five coefficients need at least 6"):
        fit_law([*points()[:5], points()[0]])


def test_runs_of_one_budget_lie_together_and_their_parabola_finds_the_best_size() -> None:
    groups = budgets(points())
    assert [len(group) for group in groups] == [5, 5, 5]
    for budget, group in zip(BUDGETS, groups, strict=True):
        assert parabola(group) == pytest.approx(TRUTH.best_parameters(budget), rel=0.2)
        assert parabola(group[:2]) is None


Change = Callable[[dict[str, Any]], None]


def write_run(folder: Path, point: Point, change: Change = lambda manifest: None) -> Path:
    """A finished pretraining run folder, as far as a fit reads it."""
    manifest = {
        "stage": "pretrain",
        "recipe": {
            "model": {"hidden_size": 64},
            "data": {"seq_length": 256},
            "training": {"max_steps": 100, "lr_scheduler_type": "linear", "weight_decay": 0.1},
            "run": {"optimizer": "muon"},
        },
        "inputs": {"model.tokenizer": "t", "data.shards": "s"},
        "results": {
            "parameters": round(point.parameters), "tokens": round(point.tokens), "heldout_loss": point.loss,
            "heldout_bits_per_byte": point.loss / 2, "steps": 100,
        },
        "files": {},
    }  # fmt: skip
    change(manifest)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_runs(root: Path) -> list[Path]:
    """A folder of runs that follow the truth."""
    return [write_run(root / f"run-{i:02d}", point) for i, point in enumerate(points())]


def test_the_command_writes_a_law_that_the_planner_reads(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    (tmp_path / "runs/notes.txt").write_text("not a run")
    (tmp_path / "runs/recipes").mkdir()
    write_run(tmp_path / "runs/prepare_data", points()[0], lambda m: m.update(stage="prepare_data"))
    best = TRUTH.optimum(1e21)
    assert best.loss is not None
    check = write_run(tmp_path / "runs/big", Point("", best.parameters, best.tokens, best.loss * 1.01))
    out = tmp_path / "law"
    results = fit_command(sorted((tmp_path / "runs").iterdir()), out, bootstrap=5, check=[check])
    assert {p.name for p in out.iterdir()} == {
        "law.json", "fit.json", "points.csv", "report.md", "isoflop.png", "fit.png",
    }  # fmt: skip
    law = find_law(out)
    assert isinstance(law, ParametricLaw) and law.alpha == pytest.approx(TRUTH.alpha, rel=1e-3)
    assert law.fitted_flops == pytest.approx((1e18, 1e20), rel=1e-6) and law.name == "law"
    assert results["runs"] == 15 and len(results["left_out"]) == 3
    assert results["check"][0]["miss"] == pytest.approx(0.01, rel=1e-2)
    assert results["bits_per_byte_per_nat"] == pytest.approx(0.5)
    assert json.loads((out / "fit.json").read_text())["law"]["E"] == law.E
    text = (out / "report.md").read_text()
    assert "| alpha | 0.35 |" in text and str(check) in text and "+1.00%" in text


def forget(*keys: str) -> Change:
    """Takes a key out of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


def put(value: Any, *keys: str) -> Change:
    """Puts another value into a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("other", "inputs", "model.tokenizer"), "another tokenizer than"),
        (put("other", "inputs", "data.shards"), "another training or held-out text than"),
        (put([{"weight": 2.0}], "recipe", "data", "mixture"), "mixed by other weights than"),
        (put(512, "recipe", "data", "seq_length"), "measured on 512 tokens at a time and"),
        (put(math.nan, "results", "heldout_loss"), "heldout_loss is nan"),
        (forget("results", "tokens"), "tokens is None"),
        (put("constant", "recipe", "training", "lr_scheduler_type"), r"learning rate \(constant\) does not end"),
        (put(60, "results", "steps"), "stopped at step 60 of 100"),
        (put(8, "recipe", "model", "num_experts"), "a mixture of experts"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    runs = write_runs(tmp_path / "runs")
    bad = write_run(tmp_path / "runs/bad", points()[0], change)
    with pytest.raises(InputError, match=f"runs/bad: .*{message}") as error:
        fit_command([*runs, bad], tmp_path / "law", bootstrap=0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "law").exists()


def test_an_unfinished_run_is_refused_and_a_missing_one_too(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half/started.json", {"stage": "pretrain"})
    with pytest.raises(InputError, match="half: not finished; continue it"):
        fit_command([*runs, tmp_path / "half"], tmp_path / "law")
    with pytest.raises(InputError, match="none: no such run folder"):
        fit_command([*runs, tmp_path / "none"], tmp_path / "law")
    with pytest.raises(InputError, match="no finished run of pretrain among these"):
        fit_command([tmp_path], tmp_path / "law")


def test_settings_that_differ_beside_size_are_told(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    runs.append(write_run(tmp_path / "other", points()[0], put(0.0, "recipe", "training", "weight_decay")))
    results = fit_command(runs, tmp_path / "law", bootstrap=0)
    assert any("the runs differ in training.weight_decay" in text for text in results["warnings"])
