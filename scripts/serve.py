"""Serves a model over HTTP to OpenAI's and text-generation-inference's clients.

    python scripts/serve.py --config recipes/quickstart/serve.yaml

Any key of the recipe can be changed: --run.port=8081
"""

from ingot.recipe import main
from ingot.serving.serve import ServeRecipe, run

if __name__ == "__main__":
    main(ServeRecipe, run)
