"""The stock Trainer on Qwen3 with a recipe's weights and blocks: Ingot's losses, by another model and another loop."""

from pathlib import Path

import pytest

from ingot.benchmark import stock_pretrain
from ingot.recipe import InputError, build_recipe, dump_yaml
from ingot.training.pretrain import PretrainRecipe

from ..training.conftest import Pretrain, corpus, pretrain, same_environment  # noqa: F401 - fixtures
from ..training.pretrain_toys import pretrain_recipe, pretrain_tree
from ..training.test_pretrain import lines_of

CHANGES = {"run__optimizer": None, "run__global_batch_size": 4}


def test_the_stock_trainer_gives_the_same_losses(
    corpus: Path,  # noqa: F811
    pretrain: Pretrain,  # noqa: F811
    tmp_path: Path,
) -> None:
    ours, _ = pretrain(**CHANGES)
    tree = pretrain_tree(corpus, tmp_path / "stock")
    tree["run"] |= {"optimizer": None, "global_batch_size": 4}
    tree["training"] |= {"per_device_train_batch_size": 2, "save_strategy": "no", "eval_steps": 5}
    (tmp_path / "stock.yaml").write_text(dump_yaml(tree))
    stock_pretrain.main(["--config", str(tmp_path / "stock.yaml")])
    theirs = lines_of(tmp_path / "stock")
    losses = [[line[key] for line in lines_of(ours) if key in line] for key in ("loss", "grad_norm")]
    found = [[line[key] for line in theirs if key in line] for key in ("loss", "grad_norm")]
    assert found == [pytest.approx(expected, abs=2e-5) for expected in losses]
    heldout = {line["step"]: line["eval_loss"] for line in theirs if "eval_loss" in line}
    assert list(heldout) == [5, 10, 12]
    assert heldout[12] == pytest.approx([m["eval_loss"] for m in lines_of(ours) if "eval_loss" in m][-1], abs=1e-5)


def test_the_weights_that_decay_are_the_same(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = pretrain_recipe(corpus, tmp_path / "stock", **CHANGES, training__eval_strategy="no")
    trainer = stock_pretrain.stock_trainer(recipe, recipe.training.upstream_values())
    groups = trainer.create_optimizer().param_groups
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name in names.values() if "norm" not in name}


def test_what_upstream_has_not_is_refused(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    tree = pretrain_tree(corpus, tmp_path / "stock")
    with pytest.raises(InputError, match="run.optimizer: upstream's Trainer has it not"):
        stock_pretrain.stock_trainer(build_recipe(PretrainRecipe, tree), {})
    tree["run"], tree["training"]["bf16"] = {"dir": str(tmp_path), "fp8": True}, True
    with pytest.raises(InputError, match="run.fp8: upstream's Trainer has it not"):
        stock_pretrain.stock_trainer(build_recipe(PretrainRecipe, tree), {})
    tree["run"]["fp8"] = False
    tree["model"]["qk_norm"] = False
    recipe = build_recipe(PretrainRecipe, tree)
    with pytest.raises(InputError, match="model: Qwen3 has not this architecture"):
        stock_pretrain.stock_trainer(recipe, recipe.training.upstream_values())
