"""The `plan` section of a pretraining recipe."""

from collections.abc import Iterator

from pydantic import Field

from ingot.recipe import InputError, Section


class PlanSection(Section):
    """What is expected of the run. It changes nothing in the result; the report holds the run against it."""

    mfu: float = Field(
        default=0.4, gt=0, le=1, description="expected model FLOPs utilisation on a GPU that is in the table"
    )
    tokens_per_second_per_gpu: float | None = Field(
        default=None, gt=0, description="expected rate of one process, instead of mfu; the only way on a CPU"
    )
    law: str = Field(
        default="besiroglu", description="law that predicts the loss: its name, or the law.json of `ingot plan fit`"
    )
    usd_per_gpu_hour: float | None = Field(default=None, gt=0, description="price of one GPU for an hour")

    def problems(self) -> Iterator[str]:
        """A law that is not there."""
        from ingot.planning.scaling import find_law

        try:
            find_law(self.law)
        except InputError as error:
            yield f"plan.law: {error}"
