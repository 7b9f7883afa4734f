"""Tells the profile of a run where the phases of a step begin."""

from typing import Any

from ingot.training.profiling import PHASES, StepProfile


class ProfiledSteps:
    """A mixin for transformers' Trainer, last before it: `class X(..., ProfiledSteps, Trainer)`."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    is_deepspeed_enabled: bool
    step_profile: StepProfile | None = None

    def _enter(self, phase: str) -> None:
        if self.step_profile is not None:
            self.step_profile.enter(phase)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, which comes first in every step."""
        if self.step_profile is not None:
            self.step_profile.begin_step(self.state.global_step, self.state.max_steps)
        found = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._enter("other")
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's: forward and backward of one micro-batch."""
        profile = self.step_profile
        if profile is None:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._watch_engine()
        profile.begin_micro_batch(self.state.global_step, self.accelerator.sync_gradients)
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        profile.end_micro_batch(self.state.global_step)
        self._write_profile()
        return loss

    def _watch_engine(self) -> None:
        """DeepSpeed makes its step within accelerate's backward pass."""
        if not self.is_deepspeed_enabled or "step" in vars(engine := self.accelerator.deepspeed_engine_wrapped.engine):
            return
        step = engine.step

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter("optimizer")
            done = step(*args, **kwargs)
            self._enter("other")
            return done

        engine.step = timed

    def _prepare_inputs(self, inputs: Any) -> Any:
        self._enter("data")
        prepared = super()._prepare_inputs(inputs)  # type: ignore[misc]
        self._enter("other")
        return prepared

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; in training the backward pass comes next."""
        self._enter("forward")
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self._enter("backward")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self._enter("optimizer")
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Upstream's, which comes where nothing is clipped, too."""
        self._enter("optimizer")
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's, which comes last in every step."""
        self._enter("other")
        last = self.state.global_step >= self.state.max_steps or self.control.should_training_stop
        if self.step_profile is not None and (last or self.control.should_evaluate or self.control.should_save):
            self.step_profile.end_step(last)
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]
        self._write_profile()

    def _write_profile(self) -> None:
        """Once: to files, to the log, and as a line of the metrics."""
        if self.step_profile is None or not self.step_profile.done:
            return
        profile, self.step_profile = self.step_profile, None
        found = profile.write(self.args.gradient_accumulation_steps)
        if found is not None:
            self.log({f"{phase}_seconds": found["seconds"][phase] for phase in PHASES})  # type: ignore[attr-defined]
