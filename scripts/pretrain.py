"""Pretrain a model from random weights.

On a laptop or one GPU:
    python scripts/pretrain.py --config recipes/quickstart/pretrain.yaml
On several GPUs (any file of accelerate_configs/):
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 \
        scripts/pretrain.py --config recipes/1b8/pretrain.yaml
Keys are overridden as --training.learning_rate=3e-4; --help lists them.
"""

from ingot.recipe import main
from ingot.training.pretrain import PretrainRecipe, run

if __name__ == "__main__":
    main(PretrainRecipe, run)
