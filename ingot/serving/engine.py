"""The engine: what turns requests into tokens, behind a protocol that other engines can also keep.

The embedded engine runs in one thread of its own and needs torch and transformers alone. It takes turns between the
active requests, one token each, every request with its own key-value cache and random generator: nobody waits for
another to finish, and the text of a request never depends on what else is running.
"""

import inspect
import logging
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from ingot.runs import get_logger
from ingot.serving.loading import LoadedModel
from ingot.serving.sampling import Sampler, Sampling
from ingot.serving.text import Detokenizer, StopStrings

logger: logging.Logger = get_logger(__name__)

FinishReason = Literal["length", "eos_token", "stop_sequence", "cancelled"]
UNHEALTHY_AFTER = 3  # requests in a row that failed inside the model


class OverloadedError(RuntimeError):
    """As many requests as allowed are running and waiting."""


class EngineClosedError(RuntimeError):
    """The engine is shutting down."""


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    keep_stop: bool = False  # whether a stop string stays in the text
    num_top_tokens: int = 0  # alternatives to report for each token
    prompt_logprobs: bool = False


@dataclass(frozen=True)
class Token:
    """A token with its text and log-probability; the first token of a prompt has none."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


@dataclass(frozen=True)
class Event:
    """One step of a request: a token and the text it completes, or an error; `finish_reason` or `error` comes last."""

    token: Token | None = None
    delta: str = ""
    top_tokens: tuple[Token, ...] = ()
    prefill: tuple[Token, ...] = ()  # the prompt's tokens, with the first event, when asked for
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing now and has done since it started."""

    active: int
    waiting: int
    finished: int
    failed: int
    cancelled: int
    generated_tokens: int


class Engine(Protocol):
    """What a server needs from whatever runs the model."""

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> str:
        """Starts a request and returns its id; `deliver` gets each event, on the engine's thread.

        Raises: OverloadedError, EngineClosedError.
        """

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        """Runs a request and yields its events; closing the iterator cancels it."""

    def cancel(self, request_id: str) -> None:
        """Ends a request and frees its place; one that is unknown or finished is left alone."""

    def stats(self) -> EngineStats:
        """Numbers for monitoring."""

    def health(self) -> bool:
        """Whether requests can be answered."""


@dataclass
class _Job:
    request: GenerationRequest
    deliver: Callable[[Event], None]
    steps: Iterator[Event]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    cancelled: bool = False


class EmbeddedEngine:
    """Runs a transformers model in a thread of this process."""

    def __init__(self, loaded: LoadedModel, max_active: int = 4, max_waiting: int = 32) -> None:
        self.loaded, self.max_active, self.max_waiting = loaded, max_active, max_waiting
        self._can_keep_logits = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters
        self._work = threading.Condition()  # guards everything below
        self._waiting: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._closed = False
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0, "generated_tokens": 0}
        self._failures_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="ingot-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> str:
        """Starts a request; see Engine."""
        assert request.prompt_ids, "a prompt has tokens"
        assert 0 < request.max_new_tokens <= self.loaded.context_length - len(request.prompt_ids)
        job = _Job(request, deliver, self._steps(request))
        with self._work:
            if self._closed or not self._thread.is_alive():
                raise EngineClosedError("the server is shutting down")
            if len(self._active) + len(self._waiting) >= self.max_active + self.max_waiting:
                raise OverloadedError("Model is overloaded")
            self._waiting.append(job)
            self._work.notify_all()
        return job.id

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        """Runs a request and yields its events; see Engine."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request_id = self.submit(request, events.put)
        try:
            while True:
                event = events.get()
                yield event
                if event.last:
                    return
        finally:
            self.cancel(request_id)

    def cancel(self, request_id: str) -> None:
        """Ends a request; it leaves before its next token."""
        with self._work:
            for job in (*self._active, *self._waiting):
                job.cancelled = job.cancelled or job.id == request_id
            self._work.notify_all()

    def stats(self) -> EngineStats:
        """Numbers for monitoring."""
        with self._work:
            return EngineStats(active=len(self._active), waiting=len(self._waiting), **self._counts)

    def health(self) -> bool:
        """Whether the thread runs and the last requests did not all fail inside the model."""
        with self._work:
            return not self._closed and self._thread.is_alive() and self._failures_in_a_row < UNHEALTHY_AFTER

    def close(self) -> None:
        """Ends every request and the thread."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while jobs := self._next_round():
                for job in jobs:
                    self._step(job)
        for job in [*self._active, *self._waiting]:
            self._end(job, Event(error="the server is shutting down"), "cancelled")

    def _next_round(self) -> list[_Job]:
        """Waits for work and fills free places; empty when the engine closes."""
        with self._work:
            self._work.wait_for(lambda: self._closed or self._waiting or self._active)
            if self._closed:
                return []
            while self._waiting and len(self._active) < self.max_active:
                self._active.append(self._waiting.popleft())
            return self._active + [job for job in self._waiting if job.cancelled]

    def _step(self, job: _Job) -> None:
        """One token of one request; whatever goes wrong in it ends this request alone."""
        if job.cancelled:
            self._end(job, Event(finish_reason="cancelled"), "cancelled")
            return
        try:
            event = next(job.steps)
        except Exception as error:  # the model's code may raise anything, and other requests must go on
            logger.exception("a request failed inside the model")
            message = f"the model raised {type(error).__name__}; the server's log has the details"
            self._end(job, Event(error=message), "failed")
            return
        self._counts["generated_tokens"] += 1
        if event.last:
            self._end(job, event, "finished")
        else:
            self._give(job, event)

    def _end(self, job: _Job, event: Event, outcome: str) -> None:
        """Frees the place before the last event goes out, so that whoever sees the end can start the next request."""
        job.steps = iter(())  # drops the key-value cache
        with self._work:
            for jobs in (self._active, self._waiting):
                if job in jobs:
                    jobs.remove(job)
            self._counts[outcome] += 1
            if outcome != "cancelled":
                self._failures_in_a_row = self._failures_in_a_row + 1 if outcome == "failed" else 0
        self._give(job, event)

    def _give(self, job: _Job, event: Event) -> None:
        try:
            job.deliver(event)
        except RuntimeError:  # the receiver's event loop is gone, and the receiver with it
            job.cancelled = True

    def _steps(self, request: GenerationRequest) -> Iterator[Event]:
        """The tokens of one request, each computed when the engine asks for it."""
        sampler = Sampler(request.sampling, request.prompt_ids, self.loaded.device)
        text = Detokenizer(self.loaded.codec, request.prompt_ids)
        stops = StopStrings(request.stop, request.keep_stop)
        logits, cache = self._forward(request.prompt_ids, None, all_logits=request.prompt_logprobs)
        prefill = self._prefill(request.prompt_ids, logits) if request.prompt_logprobs else ()
        for left in range(request.max_new_tokens - 1, -1, -1):
            token_id, logprobs = sampler.pick(logits[-1])
            reason: FinishReason | None = "eos_token" if token_id in self.loaded.eos_token_ids else None
            reason = "length" if left == 0 else reason
            delta, stopped = stops.add(text.add(token_id) + (text.finish() if reason else ""))
            delta += stops.finish() if reason and not stopped else ""
            reason = "stop_sequence" if stopped else reason
            token = self._token(token_id, delta, logprobs)
            top = self._top_tokens(logprobs, request.num_top_tokens)
            yield Event(token, delta, top, prefill, reason)
            if reason:
                return
            prefill = ()
            logits, cache = self._forward((token_id,), cache)

    def _forward(self, ids: tuple[int, ...], cache: Any, all_logits: bool = False) -> tuple[torch.Tensor, Any]:
        """Logits (tokens, vocabulary) of the last token at least, of all when asked for, and the key-value cache."""
        keep = {} if all_logits or not self._can_keep_logits else {"logits_to_keep": 1}
        input_ids = torch.tensor([ids], device=self.loaded.device)
        output = self.loaded.model(input_ids=input_ids, past_key_values=cache, use_cache=True, **keep)
        return output.logits[0], output.past_key_values

    def _prefill(self, ids: tuple[int, ...], logits: torch.Tensor) -> tuple[Token, ...]:
        """The prompt's tokens with the log-probability of each after those before it."""
        logprobs = torch.log_softmax(logits[:-1].float(), dim=-1)
        given = logprobs.gather(1, torch.tensor(ids[1:], device=logprobs.device)[:, None])[:, 0].tolist()
        values = [None, *given]
        return tuple(Token(i, self.loaded.codec.token_text(i), v) for i, v in zip(ids, values, strict=True))

    def _token(self, token_id: int, delta: str, logprobs: torch.Tensor) -> Token:
        """A generated token; a special one has no part in the answer's text but shows its name here."""
        special = token_id in self.loaded.codec.special_ids
        text = delta + self.loaded.codec.token_text(token_id) if special else delta
        return Token(token_id, text, float(logprobs[token_id]), special)

    def _top_tokens(self, logprobs: torch.Tensor, count: int) -> tuple[Token, ...]:
        """The most likely tokens, as (id, text, logprob), that sampling left possible."""
        if not count:
            return ()
        values, ids = logprobs.topk(min(count, len(logprobs)))
        pairs = [(i, v) for i, v in zip(ids.tolist(), values.tolist(), strict=True) if v > float("-inf")]
        codec = self.loaded.codec
        return tuple(Token(i, codec.token_text(i), v, i in codec.special_ids) for i, v in pairs)
