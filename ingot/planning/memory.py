"""Memory of a training run: the estimate, the settings with which it would fit, and the setup of a recipe."""

from ingot.planning.fitting import settings_that_fit
from ingot.planning.memory_estimate import MemoryEstimate, estimate_memory, inference_memory
from ingot.planning.recipe_setup import setup_of_recipe, strategy_of
from ingot.planning.setups import TrainingSetup

__all__ = [
    "MemoryEstimate",
    "TrainingSetup",
    "estimate_memory",
    "inference_memory",
    "settings_that_fit",
    "setup_of_recipe",
    "strategy_of",
]
