"""Runs for a scaling law: shapes of the template's proportions, budgets that are met, and a sweep that continues."""

from pathlib import Path
from typing import Any

import pytest

from ingot.cli import load_stage
from ingot.planning import sweep
from ingot.planning.sweep import PlannedRun, plan_budget, read_template, shapes, sweep_command
from ingot.recipe import InputError
from ingot.recipe_yaml import dump_yaml, read_yaml

TEMPLATE: dict[str, Any] = {
    "model": {
        "tokenizer": "runs/t", "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "data": {"shards": "runs/d", "seq_length": 256},
    "training": {
        "max_steps": 800, "per_device_train_batch_size": 8, "learning_rate": 0.008, "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
    },
    "run": {"dir": "runs/x", "global_batch_size": 16},
}  # fmt: skip


def write_template(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """A template recipe with other values in its sections."""
    path = tmp_path / "pretrain.yaml"
    path.write_text(dump_yaml({name: {**section, **changes.get(name, {})} for name, section in TEMPLATE.items()}))
    return path


def test_parameters_are_those_of_the_model() -> None:
    import torch

    from modeling import IngotConfig, IngotForCausalLM

    model = {k: v for k, v in TEMPLATE["model"].items() if k != "tokenizer"}
    for shape in shapes(TEMPLATE["model"])[::40]:
        with torch.device("meta"):
            built = IngotForCausalLM(IngotConfig(**{**model, **shape.keys}))
        assert built.num_parameters() == shape.parameters


def test_shapes_keep_the_proportions() -> None:
    found = shapes(TEMPLATE["model"])
    assert [s.parameters for s in found] == sorted({s.parameters for s in found})
    for shape in found:
        assert shape.hidden_size == 32 * shape.num_attention_heads
        assert shape.num_attention_heads == 2 * shape.num_key_value_heads
        assert shape.intermediate_size % 32 == 0
        assert shape.intermediate_size / shape.hidden_size == pytest.approx(2.75, abs=0.3)
        assert shape.num_hidden_layers == 1 or 0.6 <= shape.num_hidden_layers / (shape.hidden_size * 3 / 128) <= 1.6
    assert any(s.keys.items() <= TEMPLATE["model"].items() for s in found), "the template itself is one of them"


def test_a_budget_is_met_by_every_run_around_its_center() -> None:
    runs = plan_budget(TEMPLATE, 1e14, 1e6, 5, 2.0, 0.0, Path("out"))
    sizes = [run.shape.parameters for run in runs]
    assert len(set(sizes)) == 5 and sizes == sorted(sizes)
    for size, target in zip(sizes, (0.25e6, 0.5e6, 1e6, 2e6, 4e6), strict=True):
        assert size == pytest.approx(target, rel=0.35)
    for run in runs:
        assert run.tokens == run.steps * 16 * 256
        assert run.flops == pytest.approx(1e14, rel=0.01)
        assert run.learning_rate == 0.008


def test_the_rate_falls_with_the_width_as_asked() -> None:
    for run in plan_budget(TEMPLATE, 1e14, 1e6, 5, 2.0, 0.75, Path("out")):
        assert run.learning_rate == pytest.approx(0.008 * (128 / run.shape.hidden_size) ** 0.75, rel=4e-3)


def test_a_budget_of_a_few_steps_is_refused() -> None:
    with pytest.raises(InputError, match=r"--flops: 1e\+10 is . steps of 4,096 tokens for "):
        plan_budget(TEMPLATE, 1e10, 1e6, 3, 2.0, 0.0, Path("out"))


def test_a_schedule_of_steps_keeps_its_shares() -> None:
    kwargs = {"decay_type": "1-sqrt", "num_decay_steps": 150}
    template = {"training": {"max_steps": 1000, "lr_scheduler_kwargs": kwargs}}
    assert sweep._schedule(template, 200) == {"lr_scheduler_kwargs": {"decay_type": "1-sqrt", "num_decay_steps": 30}}
    assert sweep._schedule({"training": {"max_steps": 1000}}, 200) == {}


def test_a_dry_run_writes_recipes_that_load_and_trains_nothing(tmp_path: Path) -> None:
    config, out = write_template(tmp_path), tmp_path / "out"
    results, page = sweep_command(config, [3e13, 1e13], 3, out, load_stage, dry_run=True, tokens_per_parameter=20)
    assert [run["budget"] for run in results["runs"]] == [1e13] * 3 + [3e13] * 3
    assert {run["state"] for run in results["runs"]} == {"planned"}
    assert results["total_flops"] == pytest.approx(3 * 4e13, rel=0.02)
    assert "6 runs, 1.2e+14 FLOP in all" in page and f"{results['runs'][0]['parameters']:,}" in page
    assert [p.name for p in out.iterdir()] == ["recipes"]
    run = results["runs"][0]
    tree = read_yaml(Path(run["recipe"]))
    assert tree["model"]["hidden_size"] == run["hidden_size"]
    assert tree["training"] == TEMPLATE["training"] | {"max_steps": run["steps"]}
    assert tree["run"] == {"dir": run["run"], "global_batch_size": 16}
    assert read_template(Path(run["recipe"]), load_stage)["model"] == tree["model"]  # `ingot pretrain` takes it


def test_a_sweep_that_failed_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = write_template(tmp_path), tmp_path / "out"
    monkeypatch.setattr("ingot.planning.sweep.is_complete", lambda recipe: recipe.run.dir.is_dir())

    def start(run: PlannedRun) -> int:
        """Makes the folder that counts as a finished run here; the third attempt fails."""
        started.append(run.name)
        if len(started) == 3:
            return 3
        run.folder.mkdir()
        return 0

    started: list[str] = []
    with pytest.raises(SystemExit) as end:
        sweep_command(config, [1e13], 4, out, load_stage, tokens_per_parameter=20, start=start)
    assert end.value.code == 3 and len(started) == 3
    results, page = sweep_command(config, [1e13], 4, out, load_stage, tokens_per_parameter=20, start=start)
    assert started[2] == started[3] and len(set(started)) == 4
    assert [run["state"] for run in results["runs"]] == ["skipped", "skipped", "done", "done"]
    assert "2 runs done, 2 were finished before" in page and f"ingot plan fit {out}/*" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"lr_scheduler_type": "constant"}}, "constant does not end with the run"),
        ({"training": {"warmup_steps": 100}}, "warmup_steps: write a share"),
        (
            {"model": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}},
            "a law of N and D is for dense models",
        ),
        ({"training": {"learning_rte": 1}}, "did you mean 'learning_rate'"),
        ({"training": {"max_steps": -1, "num_train_epochs": 1.0}}, "training.max_steps: missing"),
    ],
)
def test_a_template_that_is_unfit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sweep_command(write_template(tmp_path, **changes), [1e13], 3, tmp_path / "out", load_stage, dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flops", "models", "options", "message"),
    [
        ([], 3, {}, "--flops: give one budget or more"),
        ([1e13, float("nan")], 3, {}, "--flops: expected numbers above 0"),
        ([1e13], 0, {}, "--models: expected"),
        ([1e13], 3, {"spacing": 1.0}, "--spacing: expected a factor above 1"),
        ([1e13], 3, {"tokens_per_parameter": -20.0}, "--tokens-per-parameter"),
        ([1e13], 3, {"law": "kaplan"}, "--law: kaplan counts no embeddings"),
        ([1e13], 999, {}, "--models: the template's proportions give"),
    ],
)
def test_numbers_that_give_no_sweep_are_named(
    tmp_path: Path, flops: list[float], models: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sweep_command(write_template(tmp_path), flops, models, tmp_path / "out", load_stage, dry_run=True, **options)
