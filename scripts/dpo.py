"""Train a model on preference pairs.

    accelerate launch scripts/dpo.py --config recipes/quickstart/dpo.yaml

Two processes on a CPU:
    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml --num_processes 2 scripts/dpo.py --config ...
"""

from ingot.recipe import main
from ingot.training.dpo import DPORecipe, run

if __name__ == "__main__":
    main(DPORecipe, run)
