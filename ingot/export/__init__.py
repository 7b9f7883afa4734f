"""Publishes a model as a Hub folder that loads anywhere, with proof that it is equal to its source."""
