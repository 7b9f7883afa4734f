"""What a run does when something goes wrong: the keys of `run` that pretrain, sft and dpo share."""

from typing import ClassVar, Literal

from pydantic import Field

from ingot.recipe import RunSection, Section


class LossSpike(Section):
    """When the logged loss runs off, training goes back to a checkpoint from before and puts those rows off."""

    deviations: float = Field(8.0, gt=0, description="how far above the median of the window, in standard deviations")
    window: int = Field(50, ge=5, description="logged losses that say what is usual")
    patience: int = Field(3, ge=1, description="logged losses in a row that must be above, so that one peak passes")
    rewinds: int = Field(3, ge=1, description="times that a run goes back; the next spike stops it")


class TrainingRun(RunSection):
    """The run folder, and what happens when something goes wrong."""

    how: ClassVar[tuple[str, ...]] = (
        "dir",
        "if_changed",
        "background_save",
        "wait_for_disk",
        "skip_nonfinite",
        "loss_spike",
    )

    if_changed: Literal["refuse", "resume", "restart"] = Field(
        "refuse",
        description="an interrupted run whose recipe changed since its checkpoint: refuse it; resume (--resume) goes "
        "on from the checkpoint with the new recipe; restart (--restart) keeps the old folder as DIR.old-N and begins "
        "anew",
    )
    background_save: bool = Field(
        False,
        description="hash and store a checkpoint while training goes on; only one is under way at a time",
    )
    wait_for_disk: float = Field(
        300.0,
        ge=0,
        le=500,  # below the time that processes wait for each other
        description="seconds to wait for room on a full disk before the run stops without its latest steps",
    )
    skip_nonfinite: int = Field(
        0,
        ge=0,
        description="steps whose loss or gradient is not finite that may be left out; 0: stop at the first",
    )
    loss_spike: LossSpike | None = Field(
        None, description="go back to the last good checkpoint when the loss runs off; null: never"
    )

    def on_change(self) -> str:
        """What is done with an interrupted run of another recipe."""
        return self.if_changed
