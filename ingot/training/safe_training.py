"""What Ingot's trainers have beside upstream's: an order of rows, a watch over the steps, safe checkpoints."""

from ingot.training.checkpoints import SafeCheckpoints
from ingot.training.hyperparameters import GivenHyperparameters
from ingot.training.order import OrderedRows
from ingot.training.watch import WatchedSteps


class SafeTraining(WatchedSteps, SafeCheckpoints, GivenHyperparameters, OrderedRows):
    """The mixin for transformers' Trainer and TRL's trainers: `class X(SafeTraining, Trainer)`."""
