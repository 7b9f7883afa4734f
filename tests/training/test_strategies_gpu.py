"""What needs GPUs: every strategy on all that there are. `pytest -m gpu tests/training/test_strategies_gpu.py`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.export.convert import checkpoint_to_hub
from ingot.loading import load_model
from ingot.recipe_yaml import dump_yaml
from ingot.training.callbacks import read_metrics

from .pretrain_toys import pretrain_tree
from .test_processes import Start, assert_equal_models, start  # noqa: F401 - fixtures

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

WHOLE = ("--fsdp_state_dict_type", "FULL_STATE_DICT")
STRATEGIES: list[tuple[str, tuple[str, ...]]] = [
    ("ddp", ()), ("zero1", ()), ("zero2", ()), ("zero3", ()), ("zero3_offload", ()), ("fsdp2", ()), ("fsdp2", WHOLE),
]  # fmt: skip


@pytest.fixture
def recipe_file(corpus: Path, tmp_path: Path) -> Path:
    """A recipe of eight blocks a step, however many GPUs there are, with AdamW."""
    tree = pretrain_tree(corpus, tmp_path / "pretrain")
    tree["run"] |= {"global_batch_size": 8, "optimizer": None, "sample_prompts": ["red"]}
    del tree["training"]["use_cpu"]
    path = tmp_path / "pretrain.yaml"
    path.write_text(dump_yaml(tree))
    return path


def train(
    start: Start,  # noqa: F811
    recipe: Path,
    run_dir: Path,
    config: str,
    *words: str,
    flags: tuple[str, ...] = (),
) -> str:
    """Runs the stage with one process for each GPU (one for single_gpu); returns what it said."""
    count = "1" if config == "single_gpu" else str(torch.cuda.device_count())
    options = ["--config_file", f"accelerate_configs/{config}.yaml", "--num_processes", count]
    program = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0", *flags]
    code, text = start(*program, "scripts/pretrain.py", "--config", recipe, f"--run.dir={run_dir}", *words).finish()
    assert code == 0, text
    return text


def losses(run_dir: Path) -> list[float]:
    """The training losses."""
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("optimizer", ["null", "lion"])
@pytest.mark.parametrize(("config", "flags"), STRATEGIES)
def test_a_strategy_trains_continues_and_exports(
    config: str,
    flags: tuple[str, ...],
    optimizer: str,
    start: Start,  # noqa: F811
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    words = [f"--run.optimizer={optimizer}"]
    train(start, recipe_file, tmp_path / "one", "single_gpu", *words)
    train(start, recipe_file, tmp_path / "all", config, *words, flags=flags)
    tolerance = 1e-5 if optimizer == "null" else 1e-3  # a rounding can turn the sign of a gradient near zero
    assert losses(tmp_path / "all") == pytest.approx(losses(tmp_path / "one"), abs=tolerance)
    exported = load_model(checkpoint_to_hub(tmp_path / "all/checkpoint-12", tmp_path / "hub"))
    assert_equal_models(exported, load_model(tmp_path / "all"))
    for name in ("checkpoint-12/checksums.json", "manifest.json"):  # as if stopped after step 8
        (tmp_path / "all" / name).unlink()
    before = losses(tmp_path / "all")
    assert "checkpoint-8" in train(start, recipe_file, tmp_path / "all", config, *words, flags=flags)
    assert losses(tmp_path / "all") == pytest.approx(before, abs=1e-6)


def test_float32_weights_of_a_bf16_run_are_exported(start: Start, recipe_file: Path, tmp_path: Path) -> None:  # noqa: F811
    for config in ("zero2", "zero3", "fsdp2"):
        run_dir = tmp_path / config
        train(start, recipe_file, run_dir, config, "--training.bf16=true")
        exported = load_model(checkpoint_to_hub(run_dir / "checkpoint-12", tmp_path / f"{config}-hub"))
        assert exported.dtype == torch.float32
        finished: Any = load_model(run_dir)
        for name, tensor in finished.state_dict().items():
            assert torch.equal(exported.state_dict()[name].to(tensor.dtype), tensor), name


def test_muon_under_fsdp2_is_refused_by_name(start: Start, recipe_file: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(AssertionError, match="muon needs whole matrices and FSDP2 splits them"):
        train(start, recipe_file, tmp_path / "all", "fsdp2", "--run.optimizer=muon")
