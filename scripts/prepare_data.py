"""Reads, filters, splits and tokenises a corpus into memory-mapped token shards.

    python scripts/prepare_data.py --config recipes/quickstart/prepare_data.yaml

Any key of the recipe can be changed: --data.split.seed=7
"""

from ingot.data.prepare_data import DataRecipe, run
from ingot.recipe import main

if __name__ == "__main__":
    main(DataRecipe, run)
