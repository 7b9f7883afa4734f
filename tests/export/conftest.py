"""Finished runs of a tiny model, from data to DPO, and an evaluation of it."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from ingot.recipe import FilePath, Recipe, RunSection, Section, StageFolder, build_recipe
from ingot.runs import open_run
from ingot.tokenization.build import save_tokenizer, train_bpe
from modeling import IngotConfig, IngotForCausalLM

TEXT = "the state of our union is strong and free people work in peace with law and trade at sea 日本 größer 🙂"


class DataRecipe(Recipe, stage="prepare_data"):
    """Stands for the stage that prepares data."""

    run: RunSection


class PretrainData(Section):
    """Stands for the data section of pretraining."""

    shards: Annotated[FilePath, StageFolder("prepare_data")]


class PretrainRecipe(Recipe, stage="pretrain"):
    """Stands for pretraining."""

    data: PretrainData
    run: RunSection


class DPORun(RunSection):
    """Stands for the run section of DPO."""

    from_: Annotated[FilePath, StageFolder("pretrain")]


class DPORecipe(Recipe, stage="dpo"):
    """Stands for DPO."""

    run: DPORun


class EvaluateModel(Section):
    """Stands for the model section of evaluation."""

    candidates: dict[str, Annotated[FilePath, StageFolder("pretrain", "dpo", hub=True)]]


class EvaluateRecipe(Recipe, stage="evaluate"):
    """Stands for evaluation."""

    model: EvaluateModel
    run: RunSection


SCORE = {
    "bits_per_byte": 1.4321, "perplexity": 23.4, "accuracy": 0.345,
    "tasks": {"continuation": {"acc": 0.61, "acc_stderr": 0.034, "chance": 0.25}},
}  # fmt: skip


def make_model(**options: Any) -> IngotForCausalLM:
    """A random model that knows every token of the tiny tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "tie_word_embeddings": True}
    config = IngotConfig(
        intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
        initializer_range=0.5, use_cache=False, **{**sizes, **options},
    )  # fmt: skip
    return IngotForCausalLM(config).eval()


def save_hub(folder: Path, model: Any) -> Path:
    """Saves a model and the tiny tokenizer as training leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_bpe(iter([TEXT] * 3), 320, "qwen2"), folder, "qwen2")
    model.save_pretrained(folder)
    return folder


def finish(recipe: Recipe, results: dict[str, Any], model: Any = None) -> Path:
    """Runs a stage that only saves a model and reports results."""
    with open_run(recipe) as folder:
        if model is not None:
            save_hub(folder.path / "model", model)
        folder.finish(results)
    return folder.path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs prepare_data, pretrain, dpo and evaluate, each made from the one before it."""
    top = tmp_path_factory.mktemp("runs")
    path = {stage: str(top / stage) for stage in ("prepare_data", "pretrain", "dpo", "evaluate")}
    splits = {"train": {"documents": 1234, "shards": [1, 2]}}
    finish(build_recipe(DataRecipe, {"run": {"dir": path["prepare_data"]}}), {"splits": splits})
    tree: dict[str, Any] = {"data": {"shards": path["prepare_data"]}, "run": {"dir": path["pretrain"]}}
    finish(build_recipe(PretrainRecipe, tree), {"eval_loss": 3.21}, make_model())
    tree = {"run": {"dir": path["dpo"], "from_": path["pretrain"]}}
    finish(build_recipe(DPORecipe, tree), {"margin_before": 0.01, "margin_after": 0.87}, make_model())
    tree = {"model": {"candidates": {"dpo": path["dpo"]}}, "run": {"dir": path["evaluate"]}}
    finish(build_recipe(EvaluateRecipe, tree), {"dpo": SCORE, "xz": {"bits_per_byte": 2.24}})
    return top
