"""The report holds every number, the plots are pictures, and nothing breaks its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ingot.evaluation.report import Evaluation, Scores, before_and_after, read_metrics, table, write_report
from ingot.recipe import InputError

from .conftest import make_run


def scores(shift: float, chat: bool) -> Scores:
    """Scores in which every number is another."""
    task = {"acc": 0.5 + shift, "acc_stderr": 0.031, "chance": 0.25, "rows": 120, "num_fewshot": 2, "version": "1.0"}
    text = {"bits_per_byte": 1.4 + shift, "nats_per_token": 3.2 + shift, "perplexity": 24.5, "accuracy": 0.33 + shift}
    counts = {"documents": 12, "bytes": 654321, "tokens": 160000}
    answers = [{"prompt": "a | b", "text": "one\n<two> | three", "num_tokens": 3, "stopped": chat}]
    return Scores({**text, **counts, "tasks": {"continuation": task}}, answers, {"chat": chat, "parameters": 3262592})


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Two models; dpo has a margin before and after, base a loss curve."""
    base = make_run(tmp_path / "base", "pretrain", {"loss": 3.0})
    lines = [{"step": i, "loss": 5.0 - i, "learning_rate": 1e-3} for i in range(3)]
    (base / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 2}]))
    dpo = make_run(tmp_path / "dpo", "dpo", {"margin_before": 0.0125, "margin_after": 0.9876})
    return Evaluation(
        scores={"base": scores(0.011, False), "dpo": scores(0.022, True)},
        folders={"base": base, "dpo": dpo},
        compressed={
            "xz": {"bits_per_byte": 2.241, "bits_per_byte_separately": 2.641},
            "bz2": {"bits_per_byte": 1.971, "bits_per_byte_separately": 2.402},
        },
        conditions={"temperature": 0.7, "seed": 5, "transformers": "5.23.0"},
    )


def test_the_report_holds_every_number(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    text = (tmp_path / "report.md").read_text()
    held_out = "1.411 1.422 3.211 3.222 24.500 0.341 0.352 2.241 1.971 2.641 2.402 12 654,321"
    others = "0.511 0.522 0.031 0.250 120 0.013 0.988 3,262,592 0.7 5 5.23.0"
    expected = f"{held_out} {others}".split()
    assert [number for number in expected if number not in text] == []
    assert "| xz -9 | 2.241 |" in text and "| chance | 0.250 |" in text
    assert "| dpo (chat) | one<br>&lt;two&gt; &#124; three |" in text
    assert "| base | one<br>&lt;two&gt; &#124; three … |" in text


def test_every_picture_that_the_report_shows_is_there(evaluation: Evaluation, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path)
    for name in ("bits_per_byte.png", "continuation.png", "loss_base.png"):
        assert f"]({name})" in (tmp_path / "report.md").read_text()
        width, height = Image.open(tmp_path / name).size
        assert 500 < width < 2000 and 300 < height < 1000
    assert not (tmp_path / "loss_dpo.png").exists()


def test_before_and_after_come_from_the_manifest(evaluation: Evaluation, tmp_path: Path) -> None:
    assert list(before_and_after("dpo", evaluation.folders["dpo"])) == [["dpo", "margin", 0.0125, 0.9876]]
    assert list(before_and_after("hub", tmp_path)) == []


def test_metrics_without_a_loss_are_left_out_and_broken_lines_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "samples": 3}\n{"step": 1, "eval_loss": 2.5}\n')
    assert [line["step"] for line in read_metrics(path)] == [1, 1]
    path.write_text('{"step": 1, "loss": 2.0}\n{"step"')
    with pytest.raises(InputError, match="metrics.jsonl, line 2: not JSON"):
        read_metrics(path)
    assert read_metrics(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "value,cell", [(1234567, "1,234,567"), (0.12345, "0.123"), (True, "yes"), (None, ""), ("a", "a")]
)
def test_cells_are_readable(value: Any, cell: str) -> None:
    assert table(["x"], [[value]]).splitlines()[2] == f"| {cell} |"
