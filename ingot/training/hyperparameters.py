"""What a checkpoint must not bring back: the hyperparameters of the recipe that it was saved under."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ingot.recipe import InputError
from ingot.runs import read_json
from ingot.training.checkpoint_folders import RUN_STATE

# of an optimizer's groups; others, such as a step counted there, are states
GIVEN = ("weight_decay", "betas", "eps", "momentum")


class GivenHyperparameters:
    """A mixin for transformers' Trainer: a continued run goes by its recipe, where upstream's goes by the checkpoint.

    Optimizers and schedules save their hyperparameters with their states; upstream loads both.
    """

    args: Any
    optimizer: Any
    lr_scheduler: Any
    _given: tuple[dict[str, Any], ...] = ()  # of each group, as the recipe says

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; remembers what the recipe gave to it."""
        made_before = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if not made_before:
            self._given = tuple(
                {k: deepcopy(group[k]) for k in ("lr", *GIVEN) if k in group} for group in optimizer.param_groups
            )
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Upstream's; then the recipe's hyperparameters again, and its learning rate of the step that comes.

        Raises: InputError where a new learning rate would have no effect.
        """
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        groups = self.optimizer.param_groups
        if checkpoint is None or len(groups) != len(self._given):
            return
        for group, given in zip(groups, self._given, strict=True):
            group.update({key: given[key] for key in GIVEN if key in given})
        if type(self.lr_scheduler) is LambdaLR:
            self._set_learning_rates(self.lr_scheduler)
        elif not self._was_saved_under(checkpoint):
            raise InputError(
                f"training.learning_rate: {self.args.learning_rate} would not be used: under this "
                "training.lr_scheduler_type it follows from the steps before; take the change back, or begin anew "
                "with --restart"
            )

    def _was_saved_under(self, checkpoint: str) -> bool:
        """Whether a checkpoint was saved with this learning rate; one of an earlier version does not say."""
        state = Path(checkpoint) / RUN_STATE
        made = read_json(state).get("recipe", {}) if state.is_file() else {}
        return bool(made.get("training", {}).get("learning_rate", self.args.learning_rate) == self.args.learning_rate)

    def _set_learning_rates(self, schedule: LambdaLR) -> None:
        schedule.base_lrs = [given["lr"] for given in self._given]
        for group, base, factor in zip(
            self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["initial_lr"], rate = base, base * factor(schedule.last_epoch)
            if isinstance(group["lr"], Tensor):  # torchao's compiled steps read this very one
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        schedule._last_lr = [deepcopy(group["lr"]) for group in self.optimizer.param_groups]
