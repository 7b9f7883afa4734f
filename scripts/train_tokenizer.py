"""Trains a tokenizer on the training documents of a corpus.

    python scripts/train_tokenizer.py --config recipes/quickstart/train_tokenizer.yaml

Any key of the recipe can be changed: --tokenizer.vocab_size=8192
"""

from ingot.recipe import main
from ingot.tokenization.train_tokenizer import TokenizerRecipe, run

if __name__ == "__main__":
    main(TokenizerRecipe, run)
