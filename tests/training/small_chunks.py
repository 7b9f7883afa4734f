"""The pretrain script with the logits made in chunks so small that a toy's batch has several.

    accelerate launch ... -m tests.training.small_chunks --config ...

INGOT_TEST_CHUNK: tokens of a chunk; as usual where it is not set.
"""

import os

from ingot.recipe import main
from ingot.training.pretrain import PretrainRecipe, run
from modeling import modeling_ingot


def make_small() -> None:
    """Changes the chunks of this process."""
    if rows := os.environ.get("INGOT_TEST_CHUNK"):
        modeling_ingot.CPU_CHUNK_BYTES, modeling_ingot.MIN_CHUNK_ROWS = 0, int(rows)


if __name__ == "__main__":
    make_small()
    main(PretrainRecipe, run)
