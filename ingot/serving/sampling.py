"""Choosing the next token: penalties, temperature, top-k, top-p and typical-p, with a random generator per request."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# A temperature or repetition penalty beyond these acts as if at them, and would overflow float32.
BOUNDS = (1e-6, 1e6)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; `seed` None means greedy, the rest at its default changes nothing."""

    seed: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


def new_seed() -> int:
    """A seed for a request that asks for sampling and names none."""
    return secrets.randbits(63)


class Sampler:
    """The choices of one request: they depend on its own seed and tokens alone, never on other requests."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], device: torch.device) -> None:
        self.sampling, self.device = sampling, device
        self.ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self._warpers = _warpers(sampling)
        self._generator: torch.Generator | None = None
        if sampling.seed is not None:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def pick(self, logits: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The next token id and the log-probabilities (vocabulary,) it was drawn from; `logits` is (vocabulary,).

        Raises: FloatingPointError when the model gives no usable numbers.
        """
        scores = self._process(logits.float())
        logprobs = torch.log_softmax(scores, dim=-1)
        if torch.isnan(logprobs).any():
            raise FloatingPointError("the model's logits are not numbers")
        if self._generator is None:
            token_id = int(scores.argmax())
        else:
            token_id = int(torch.multinomial(logprobs.exp(), 1, generator=self._generator))
        self.ids.append(token_id)
        return token_id, logprobs

    def _process(self, scores: torch.Tensor) -> torch.Tensor:
        """The steps that are on, in the order of text-generation-inference; (vocabulary,) -> (vocabulary,)."""
        if self.sampling.repetition_penalty != 1.0:
            ids = torch.tensor([self.ids], device=self.device)
            scores = RepetitionPenaltyLogitsProcessor(_bounded(self.sampling.repetition_penalty))(ids, scores[None])[0]
        if self.sampling.frequency_penalty or self.sampling.presence_penalty:
            scores = scores - self._penalties(scores.shape[-1])
        if self._warpers:
            no_ids = cast(torch.LongTensor, torch.empty((1, 0), dtype=torch.long, device=self.device))
            scores = self._warpers(no_ids, (scores - scores.max())[None])[0]
        return scores

    def _penalties(self, vocab_size: int) -> torch.Tensor:
        """What OpenAI's API takes off: frequency x count + presence for each token generated so far, (vocabulary,)."""
        generated = torch.tensor(self.ids[self.num_prompt_tokens :], device=self.device, dtype=torch.long)
        counts = torch.bincount(generated, minlength=vocab_size)
        return self.sampling.frequency_penalty * counts + self.sampling.presence_penalty * (counts > 0)


def _bounded(value: float) -> float:
    return min(max(float(value), BOUNDS[0]), BOUNDS[1])


def _warpers(sampling: Sampling) -> LogitsProcessorList:
    steps = LogitsProcessorList()
    if sampling.seed is None:
        return steps
    if sampling.temperature != 1.0:
        steps.append(TemperatureLogitsWarper(_bounded(sampling.temperature)))
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(top_k=sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(top_p=float(sampling.top_p)))
    if sampling.typical_p < 1.0:
        steps.append(TypicalLogitsWarper(mass=float(sampling.typical_p)))
    return steps
