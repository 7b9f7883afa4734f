"""One HTTP exchange: a checked request body in, the engine's events out, as a reply or as a stream."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect

from ingot.serving.engine import Engine, EngineClosedError, Event, GenerationRequest, OverloadedError
from ingot.serving.errors import ApiError, invalid
from ingot.serving.text import TextCodec

M = TypeVar("M", bound="ApiModel")

MAX_BODY_BYTES = 2_000_000
MAX_STOP_SEQUENCES = 4
MAX_TOP_TOKENS = 5
KEEP_ALIVE_SECONDS = 15.0
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ApiModel(BaseModel):
    """A request body: unknown parameters, wrong types, NaN and infinity are refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True)
class Service:
    """What the routes share: one engine, its tokenizer and its limits."""

    engine: Engine
    codec: TextCodec
    name: str  # the model's name in replies
    max_total_tokens: int  # prompt and answer together
    created: int = field(default_factory=lambda: int(time.time()))


async def read_request(http: Request, kind: type[M]) -> M:
    """The checked JSON body of a request.

    Raises: ApiError with 400, 413, 415 or 422.
    """
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "validation", "expected `Content-Type: application/json`")
    tree = _parse_json(await _read_body(http))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        _refuse(error)


async def _read_body(http: Request) -> bytes:
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, "validation", f"the request body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _parse_json(body: bytes) -> Any:
    try:
        tree = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if rb"\u" in body:  # escapes can spell half a character, which is no text: this raises then
            json.dumps(tree, ensure_ascii=False).encode("utf-8")
        return tree
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, "validation", f"the request body is not valid JSON: {reason}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(error: ValidationError) -> NoReturn:
    found = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        name = ".".join(str(part) for part in problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        found.append((name, "is not a parameter of this route" if unknown else f": {problem['msg']}"))
    message = "; ".join(f"`{name}`{' ' if not text.startswith(':') else ''}{text}" for name, text in found)
    raise invalid(message, param=found[0][0]) from None


def refuse_unsupported(given: BaseModel, harmless: dict[str, tuple[Any, ...]]) -> None:
    """Refuses by name what this server cannot do: each of these parameters may only have a value that asks nothing."""
    for name, values in harmless.items():
        value = getattr(given, name)
        if not any(type(value) is type(v) and value == v for v in values):
            raise invalid(f"`{name}` is not supported by this server", "unsupported_parameter", name)


def stop_strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple.

    Raises: ApiError when there are too many or one is empty.
    """
    strings = (given,) if isinstance(given, str) else tuple(given or ())
    if len(strings) > MAX_STOP_SEQUENCES:
        text = f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(strings)}"
        raise invalid(text, param="stop")
    if not all(strings):
        raise invalid("`stop` cannot hold an empty string", param="stop")
    return strings


def answer_length(service: Service, num_prompt: int, wanted: int | None, names: tuple[str, str]) -> int:
    """The tokens that an answer may have: as wanted, or what the context leaves.

    Raises: ApiError with the numbers when prompt and answer do not fit; `names` are those of the route's parameters.
    """
    prompt, length = names
    total, code = service.max_total_tokens, "context_length_exceeded"
    if num_prompt == 0:
        raise invalid(f"`{prompt}` cannot be empty", param=prompt)
    if num_prompt >= total:
        raise invalid(f"`{prompt}` must have less than {total} tokens. Given: {num_prompt}", code, prompt)
    if wanted is not None and num_prompt + wanted > total:
        text = f"`{prompt}` tokens + `{length}` must be <= {total}. "
        text += f"Given: {num_prompt} `{prompt}` tokens and {wanted} `{length}`"
        raise invalid(text, code, length)
    return total - num_prompt if wanted is None else wanted


class Running:
    """A request in the engine, its events brought to the event loop; it is cancelled when its client leaves."""

    def __init__(self, service: Service, request: GenerationRequest, http: Request) -> None:
        self._engine, self._http = service.engine, http
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        try:
            self._id = self._engine.submit(request, self._deliver)
        except OverloadedError:
            raise ApiError(429, "overloaded", "Model is overloaded") from None
        except EngineClosedError as error:
            raise ApiError(503, "healthcheck", str(error)) from None
        self._watch = asyncio.create_task(self._cancel_when_client_leaves())

    def _deliver(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _cancel_when_client_leaves(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            continue
        self._engine.cancel(self._id)

    async def next(self, patience: float | None = None) -> Event | None:
        """The next event; None when it takes longer than `patience` seconds.

        Raises: ClientDisconnect when the client has left.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), patience)
        except TimeoutError:
            return None
        if event.finish_reason == "cancelled":
            raise ClientDisconnect
        return event

    async def first(self) -> Event:
        """The first event, while the reply's status can still say that something went wrong.

        Raises: ApiError when the request fails; ClientDisconnect.
        """
        event = await self.next()
        assert event is not None
        if event.error is not None:
            raise generation_error(event.error)
        return event

    def close(self) -> None:
        """Frees what the request still holds."""
        self._watch.cancel()
        self._engine.cancel(self._id)


def generation_error(message: str) -> ApiError:
    """The model failed on this request: 424."""
    return ApiError(424, "generation", f"Request failed during generation: {message}")


async def collect(service: Service, request: GenerationRequest, http: Request) -> list[Event]:
    """Runs a request to its end and returns its events.

    Raises: ApiError when it fails.
    """
    running = Running(service, request, http)
    try:
        events = [await running.first()]
        while not events[-1].last:
            event = await running.next()
            assert event is not None
            events.append(event)
    finally:
        running.close()
    if events[-1].error is not None:
        raise generation_error(events[-1].error)
    return events


async def stream(
    service: Service, request: GenerationRequest, http: Request, frames: Callable[[Event], Iterable[str]]
) -> StreamingResponse:
    """Runs a request as server-sent events; `frames` renders one event. What fails before the first token is an error.

    Raises: ApiError.
    """
    running = Running(service, request, http)
    try:
        first = await running.first()
    except BaseException:
        running.close()
        raise
    return StreamingResponse(_frames(running, first, frames), headers=STREAM_HEADERS, media_type="text/event-stream")


async def _frames(running: Running, first: Event, frames: Callable[[Event], Iterable[str]]) -> AsyncIterator[str]:
    event: Event | None = first
    try:
        while True:
            if event is None:
                yield ":\n\n"  # a comment, so that proxies keep a quiet connection open
            else:
                for frame in frames(event):
                    yield frame
                if event.last:
                    return
            event = await running.next(KEEP_ALIVE_SECONDS)
    except ClientDisconnect:
        return
    finally:
        running.close()


def to_json(value: Any) -> str:
    """Compact JSON on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
