"""Every recipe in the project loads, and the chains point at their own stages."""

from pathlib import Path

import pytest

from ingot.chain import CHAIN
from ingot.cli import load_stage, stage_of
from ingot.recipe import InputError, stage_inputs

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
FOLDERS = sorted({p.parent for p in RECIPES})


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_recipe_loads_and_writes_to_its_own_folder(path: Path) -> None:
    recipe = load_stage(path)
    assert recipe.stage == stage_of(path.stem)
    assert recipe.run.dir == Path("runs") / path.parent.name / path.stem


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_inputs_are_outputs_of_earlier_recipes_of_the_folder(folder: Path) -> None:
    written = {Path("runs") / folder.name / p.stem for p in folder.glob("*.yaml")}
    for path in folder.glob("*.yaml"):
        for key, needed, marker in stage_inputs(load_stage(path)):
            assert needed in written, f"{path}: {key} names {needed}"
            assert stage_of(needed.name) in marker.stages, f"{path}: {key}"


def test_the_quick_start_has_every_stage_of_the_chain() -> None:
    assert {p.stem for p in (ROOT / "recipes/quickstart").glob("*.yaml")} >= {
        *CHAIN,
        "sft_lora",
        "sft_qlora",
        "serve",
        "chat",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.num_key_value_heads=2", "num_key_value_heads"),
        ("--model.rope_parameters={rope_type: yarn}", "model: "),
        ("--model.hidden_act=sillu", "hidden_act"),
        ("--training.fp16=true", "training.fp16: also training.bf16 is set"),
        ("--training.data_seed=7", "training.data_seed: leave it out"),
    ],
)
def test_contradictions_are_told_when_the_recipe_is_read(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_stage(ROOT / "recipes/quickstart/pretrain.yaml", [override])
