"""Fine-tune a model on conversations.

    accelerate launch scripts/sft.py --config recipes/quickstart/sft.yaml

LoRA and 4-bit QLoRA: recipes/quickstart/sft_lora.yaml and sft_qlora.yaml. Two processes on a CPU:
    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml --num_processes 2 scripts/sft.py --config ...
"""

from ingot.recipe import main
from ingot.training.sft import SFTRecipe, run

if __name__ == "__main__":
    main(SFTRecipe, run)
