"""Measures models on held-out text, tasks and prompts, and writes report.md with plots.

    python scripts/evaluate.py --config recipes/quickstart/evaluate.yaml

Any key of the recipe can be changed: --model.candidates.mine=path/to/a/hub/folder --data.tasks='[my_task.yaml]'
"""

from ingot.evaluation.evaluate import EvaluateRecipe, run
from ingot.recipe import main

if __name__ == "__main__":
    main(EvaluateRecipe, run)
