"""Tokenizers: training them, the chat template, and checking them against a model."""
