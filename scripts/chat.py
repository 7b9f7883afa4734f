"""Talks to a model: in the terminal, or on a web page with --run.web=true.

    python scripts/chat.py --config recipes/quickstart/chat.yaml

Any key of the recipe can be changed: --generation.temperature=0
"""

from ingot.recipe import main
from ingot.serving.chat import ChatRecipe, run

if __name__ == "__main__":
    main(ChatRecipe, run)
