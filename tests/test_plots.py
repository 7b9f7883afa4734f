"""Plots are pictures of a sane size that say what they show."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ingot import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test saves."""
    figures: list[Figure] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


METRICS: list[dict[str, Any]] = [
    {"step": 10, "loss": 5.0, "learning_rate": 1e-3},
    {"step": 20, "loss": 4.0, "grad_norm": 1.0},
    {"step": 20, "eval_loss": 4.5, "eval_bits_per_byte": 1.9},
    {"step": 20, "loss": None},
]


def test_loss_shows_training_and_held_out_loss_and_bits_per_byte(drawn: list[Figure], tmp_path: Path) -> None:
    plots.plot_loss(METRICS, tmp_path / "loss.png", "Pretraining")
    loss, bits = drawn[0].axes
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "training": [[10.0, 5.0], [20.0, 4.0]],
        "held out": [[20.0, 4.5]],
    }
    assert (loss.get_title(), loss.get_xlabel(), loss.get_ylabel()) == ("Pretraining", "step", "nats per token")
    assert bits.lines[0].get_xydata().tolist() == [[20.0, 1.9]]
    width, height = Image.open(tmp_path / "loss.png").size
    assert 1000 < width < 2000 and 400 < height < 1000


def test_loss_has_one_panel_without_bits_per_byte(drawn: list[Figure], tmp_path: Path) -> None:
    plots.plot_loss(METRICS[:2], tmp_path / "loss.png")
    assert len(drawn[0].axes) == 1


def test_metrics_without_a_loss_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line of the metrics has"):
        plots.plot_loss([{"step": 1, "grad_norm": 2.0}], tmp_path / "loss.png")


def test_bars_show_values_errors_and_lines(drawn: list[Figure], tmp_path: Path) -> None:
    lines = {"xz": 2.24, "bz2": 1.97, "chance": 0.25, "fourth": 1.0}
    plots.plot_bars({"base": 1.5, "sft": 1.6}, tmp_path / "bars.png", "Title", "bits per byte", {"base": 0.1}, lines)
    axis = drawn[0].axes[0]
    assert [bar.get_height() for bar in axis.patches] == [1.5, 1.6]
    assert {text.get_text() for text in axis.texts} == {"1.500", "1.600"}
    assert [text.get_text() for text in axis.get_legend().texts] == [f"{k} {v:.3f}" for k, v in lines.items()]
    assert axis.get_ylim()[1] > 2.24
    assert Image.open(tmp_path / "bars.png").format == "PNG"
