"""Writes a model as a Hub folder that loads anywhere, with a model card, and proves it equal to its source.

    python scripts/export.py --config recipes/quickstart/export.yaml

Any key of the recipe can be changed: --run.from=runs/quickstart/sft
"""

from ingot.export.export import ExportRecipe, run
from ingot.recipe import main

if __name__ == "__main__":
    main(ExportRecipe, run)
