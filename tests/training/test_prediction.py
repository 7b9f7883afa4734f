"""What is predicted of a run, what is refused before it starts, and the report that holds it against its plan."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ingot.cli import load_stage
from ingot.planning.held import hold, table
from ingot.planning.plan import config_of_recipe
from ingot.recipe import InputError
from ingot.runs import read_json
from ingot.training.prediction import check_memory, predict, strategy_of_run

from .conftest import Pretrain

ROOT = Path(__file__).parents[2]
GIB = 2**30


def arguments(device: str = "cuda", **changes: Any) -> Any:
    values = {"device": torch.device(device), "deepspeed_plugin": None, "fsdp_plugin_args": None}
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that there is a GPU of so many GiB, of which a process may take a share."""

    def pretend(gib: float, name: str = "NVIDIA H200", share: float = 1.0) -> None:
        properties = SimpleNamespace(total_memory=int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    return pretend


def test_the_strategy_is_read_from_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero(**values: Any) -> Any:
        return arguments(deepspeed_plugin=SimpleNamespace(deepspeed_config={"zero_optimization": values}))

    assert strategy_of_run(arguments()) == "single"
    assert strategy_of_run(zero(stage=2)) == "zero2"
    assert strategy_of_run(zero(stage=3, offload_optimizer={"device": "cpu"})) == "zero3_offload"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch does with fsdp2.yaml
    assert strategy_of_run(arguments()) == "fsdp2"
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert strategy_of_run(arguments()) == "ddp"


def test_a_run_that_does_not_fit_is_refused_with_what_does(gpu: Any) -> None:
    recipe = load_stage(ROOT / "recipes/1b8/pretrain.yaml")
    config = config_of_recipe(recipe)
    gpu(139.8)
    assert 20 * GIB < (check_memory(recipe, config, arguments()) or 0) < 139 * GIB
    gpu(23.5, "NVIDIA GeForce RTX 4090")
    with pytest.raises(InputError, match="pretrain: needs about .* it fits with .*fsdp2"):
        check_memory(recipe, config, arguments())
    assert check_memory(recipe, config, arguments("cpu")) is None
    gpu(139.8, share=0.17)
    with pytest.raises(InputError, match="on each GPU, which has 23.77 GiB; it fits with"):
        check_memory(recipe, config, arguments())


def test_an_optimizer_whose_memory_is_not_known_does_not_stop_a_run(gpu: Any) -> None:
    gpu(80)
    recipe = load_stage(
        ROOT / "recipes/quickstart/pretrain.yaml", ["--run.optimizer=null", "--training.optim=adagrad"]
    )
    assert check_memory(recipe, config_of_recipe(recipe), arguments()) is None


def test_the_prediction_follows_the_plan_section(gpu: Any) -> None:
    gpu(139.8)
    plan = ["--plan.mfu=0.5", "--plan.usd_per_gpu_hour=3"]
    recipe = load_stage(ROOT / "recipes/quickstart/pretrain.yaml", plan)
    found = predict(recipe, config_of_recipe(recipe), arguments(), 3_276_800)
    assert found["parameters"] == 2_558_144 and found["mfu"] == 0.5
    assert found["hours"] == pytest.approx(3_276_800 / found["tokens_per_second"] / 3600)
    assert found["usd"] == pytest.approx(3 * found["hours"])
    recipe = load_stage(ROOT / "recipes/quickstart/pretrain.yaml", ["--plan.tokens_per_second_per_gpu=17400"])
    found = predict(recipe, config_of_recipe(recipe), arguments("cpu"), 3_276_800)
    assert (found["tokens_per_second"], found["mfu"], found["peak_memory_bytes"]) == (17_400, None, None)


def test_the_report_shows_predicted_and_measured(pretrain: Pretrain) -> None:
    folder, results = pretrain(plan__tokens_per_second_per_gpu=1000.0)
    held = results["plan"]
    assert held["parameters"]["predicted"] == held["parameters"]["measured"] == results["parameters"]
    assert held["tokens_per_second"] == {"predicted": 1000.0, "measured": results["tokens_per_second"]}
    # no law of the papers reaches down to a model of so few parameters
    assert held["loss"] == {"predicted": None, "measured": results["heldout_loss"]}
    assert 0 < held["hours"]["measured"] * 3600 <= read_json(folder / "manifest.json")["seconds"] + 0.1
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "| | predicted | measured | measured / predicted |" in report and "| tokens/s | 1k |" in report


def test_a_changed_plan_leaves_a_finished_run_finished(pretrain: Pretrain) -> None:
    _, results = pretrain()
    assert pretrain(plan__mfu=0.9)[1] == results


def test_unknown_figures_are_left_out_of_the_table() -> None:
    page = table(hold({"parameters": 10, "mfu": None, "usd": None}, {"parameters": 10, "mfu": 0.5}))
    assert "| parameters | 10 | 10 | 1.00 |" in page and "| MFU | n/a | 50.0% |" in page and "USD" not in page
