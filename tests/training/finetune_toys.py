"""Recipes that fine-tune a tiny model on a game of colours."""

from pathlib import Path
from typing import Any

from ingot.faults.toys import COLOURS, VOCABULARY, finetune_tree, make_start, write_rows
from ingot.recipe import build_recipe
from ingot.training.dpo import DPORecipe
from ingot.training.sft import SFTRecipe

__all__ = ["COLOURS", "VOCABULARY", "dpo_recipe", "make_start", "sft_recipe", "write_rows"]


def sft_recipe(run_dir: Path, start: Path, rows: Path, model: Any = None, **training: Any) -> SFTRecipe:
    """A recipe that trains on most of the rows and measures with twenty."""
    given = {"packing": True, "assistant_only_loss": True, "learning_rate": 1e-2, "num_train_epochs": 4}
    return build_recipe(SFTRecipe, finetune_tree(run_dir, start, rows, {**given, **training}, **(model or {})))


def dpo_recipe(run_dir: Path, start: Path, rows: Path, model: Any = None, **training: Any) -> DPORecipe:
    """The same for preference pairs."""
    given = {"precompute_ref_log_probs": True, "learning_rate": 1e-3, "num_train_epochs": 2}
    return build_recipe(DPORecipe, finetune_tree(run_dir, start, rows, {**given, **training}, **(model or {})))
