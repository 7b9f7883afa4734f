"""Recipes for a model of a few thousand parameters on a seeded corpus of bytes."""

from pathlib import Path
from typing import Any

from ingot.faults.toys import SEQ_LENGTH, VOCABULARY, WORDS, make_corpus, pretrain_tree
from ingot.recipe import build_recipe
from ingot.training.pretrain import PretrainRecipe

__all__ = [
    "NO_EVALUATION", "SEQ_LENGTH", "VOCABULARY", "WORDS", "make_corpus", "pretrain_recipe", "pretrain_tree",
]  # fmt: skip

NO_EVALUATION = {"training__eval_strategy": "no", "training__eval_steps": None}


def pretrain_recipe(corpus: Path, run_dir: Path, **changes: Any) -> PretrainRecipe:
    """The recipe with changes, `section__key=value`; a value of None takes the key out."""
    tree = pretrain_tree(corpus, run_dir)
    for name, value in changes.items():
        section, key = name.split("__")
        tree.setdefault(section, {})[key] = value
        if value is None:
            del tree[section][key]
    return build_recipe(PretrainRecipe, tree)
