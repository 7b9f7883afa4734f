"""The routes of text-generation-inference: `/generate`, `/generate_stream`, `/`, `/health`.

Shapes, rules and messages are those of its router 3.3; `huggingface_hub.InferenceClient` and LangChain speak to `/`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from ingot.serving.engine import Event, GenerationRequest, Token
from ingot.serving.errors import ApiError, error_body, error_response, invalid
from ingot.serving.exchange import (
    MAX_TOP_TOKENS,
    ApiModel,
    Service,
    answer_length,
    collect,
    generation_error,
    read_request,
    refuse_unsupported,
    stop_strings,
    stream,
    to_json,
)
from ingot.serving.sampling import Sampling, new_seed

# Parameters that this server does not offer, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "adapter_id": (None,), "best_of": (None, 1), "grammar": (None,), "watermark": (None, False),
}  # fmt: skip
UInt32 = Annotated[int, Field(ge=0, lt=2**32)]


class Parameters(ApiModel):
    """TGI's generation parameters; None means not given."""

    adapter_id: Any = None
    best_of: Any = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: float | None = None
    grammar: Any = None
    max_new_tokens: UInt32 | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_k: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    top_n_tokens: UInt32 | None = None
    top_p: float | None = None
    truncate: UInt32 | None = None
    typical_p: float | None = None
    watermark: Any = None


class GenerateBody(ApiModel):
    """The body of `/generate` and `/generate_stream`."""

    inputs: str
    parameters: Parameters | None = None


class CompatBody(GenerateBody):
    """The body of `/`, which may ask for a stream."""

    stream: bool | None = None


def routes(service: Service) -> APIRouter:
    """The native routes over one service."""
    router = APIRouter()

    @router.post("/generate")
    async def generate(http: Request) -> Response:
        body = await read_request(http, GenerateBody)
        return JSONResponse(await _generate(service, http, body, full_text=False))

    @router.post("/generate_stream")
    async def generate_stream(http: Request) -> Response:
        return await _stream(service, http, await read_request(http, GenerateBody), full_text=False)

    @router.post("/")
    async def compat(http: Request) -> Response:
        body = await read_request(http, CompatBody)
        if body.stream:
            return await _stream(service, http, body, full_text=True)
        return JSONResponse([await _generate(service, http, body, full_text=True)])

    @router.api_route("/", methods=["GET", "HEAD"])
    @router.api_route("/health", methods=["GET", "HEAD"])
    @router.api_route("/ping", methods=["GET", "HEAD"])
    async def health(http: Request) -> Response:
        if service.engine.health():
            return Response(status_code=200)
        return error_response(http.url.path, ApiError(503, "healthcheck", "unhealthy"))

    return router


async def _generate(service: Service, http: Request, body: GenerateBody, full_text: bool) -> dict[str, Any]:
    request = await asyncio.to_thread(to_request, service, body, False)
    events = await collect(service, request, http)
    text = _prefix(body, full_text) + "".join(e.delta for e in events)
    parameters = body.parameters or Parameters()
    if not (parameters.details or parameters.decoder_input_details):
        return {"generated_text": text}
    return {"generated_text": text, "details": _details(request, events)}


async def _stream(service: Service, http: Request, body: GenerateBody, full_text: bool) -> Response:
    request = await asyncio.to_thread(to_request, service, body, True)
    parameters = body.parameters or Parameters()
    frames = _frames(request, _prefix(body, full_text), bool(parameters.details))
    return await stream(service, request, http, frames)


def _prefix(body: GenerateBody, full_text: bool) -> str:
    """The prompt when the reply is to repeat it; `full_text` is the route's default."""
    wanted = body.parameters.return_full_text if body.parameters else None
    return body.inputs if (full_text if wanted is None else wanted) else ""


def to_request(service: Service, body: GenerateBody, streaming: bool) -> GenerationRequest:
    """A checked engine request.

    Raises: ApiError with TGI's message.
    """
    given = body.parameters or Parameters(do_sample=True)  # TGI samples when there are no parameters at all
    refuse_unsupported(given, UNSUPPORTED)
    for broken, message in _rules(service, given, streaming):
        if broken:
            raise invalid(message)
    if not body.inputs:
        raise invalid("`inputs` cannot be empty")
    ids = service.codec.encode(body.inputs)
    ids = ids[-given.truncate :] if given.truncate else ids
    return GenerationRequest(
        prompt_ids=tuple(ids),
        max_new_tokens=answer_length(service, len(ids), given.max_new_tokens, ("inputs", "max_new_tokens")),
        sampling=_sampling(given),
        stop=stop_strings(given.stop),
        keep_stop=True,
        num_top_tokens=given.top_n_tokens or 0,
        prompt_logprobs=bool(given.decoder_input_details),
    )


def _rules(service: Service, given: Parameters, streaming: bool) -> Iterator[tuple[bool, str]]:
    """Every rule as (is it broken, what TGI says then)."""
    longest = service.max_total_tokens - 1
    yield _not_positive(given.temperature), "`temperature` must be strictly positive"
    yield _not_positive(given.repetition_penalty), "`repetition_penalty` must be strictly positive"
    yield abs(given.frequency_penalty or 0) > 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"
    yield _not_fraction(given.top_p), "`top_p` must be > 0.0 and < 1.0"
    yield _not_fraction(given.typical_p), "`typical_p` must be > 0.0 and < 1.0"
    yield _not_positive(given.top_k), "`top_k` must be strictly positive"
    yield _not_positive(given.max_new_tokens), "`max_new_tokens` must be strictly positive"
    yield (
        (given.top_n_tokens or 0) > MAX_TOP_TOKENS,
        f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_TOKENS}. Given: {given.top_n_tokens}",
    )
    yield (
        streaming and bool(given.decoder_input_details),
        "`decoder_input_details` == true is not supported when streaming tokens",
    )
    yield (
        given.truncate is not None and not 0 < given.truncate <= longest,
        f"`truncate` must be strictly positive and less than {longest + 1}. Given: {given.truncate}",
    )


def _not_positive(value: float | None) -> bool:
    return value is not None and value <= 0


def _not_fraction(value: float | None) -> bool:
    return value is not None and not 0 < value < 1


def _sampling(given: Parameters) -> Sampling:
    """Sampling is on when asked for, or when a parameter is set that only sampling reads."""
    warped = given.temperature not in (None, 1.0) or any((given.top_k, given.top_p, given.typical_p))
    seed = (new_seed() if given.seed is None else given.seed) if given.do_sample or warped else None
    return Sampling(
        seed=seed,
        temperature=given.temperature or 1.0,
        top_k=given.top_k,
        top_p=given.top_p or 1.0,
        typical_p=given.typical_p or 1.0,
        repetition_penalty=given.repetition_penalty or 1.0,
        frequency_penalty=given.frequency_penalty or 0.0,
    )


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _details(request: GenerationRequest, events: list[Event]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "finish_reason": events[-1].finish_reason,
        "generated_tokens": len(events),
        "seed": request.sampling.seed,
        "prefill": [{"id": t.id, "text": t.text, "logprob": t.logprob} for t in events[0].prefill],
        "tokens": [_token(e.token) for e in events if e.token],
    }
    if request.num_top_tokens:
        details["top_tokens"] = [[_token(t) for t in e.top_tokens] for e in events]
    return details


def _frames(request: GenerationRequest, prefix: str, details: bool) -> Callable[[Event], Iterable[str]]:
    """Renders events one after another; the last one carries the whole text."""
    text: list[str] = [prefix]
    index = 0

    def frames(event: Event) -> Iterable[str]:
        nonlocal index
        if event.error is not None:
            yield f"data:{to_json(error_body('/', generation_error(event.error)))}\n\n"
            return
        assert event.token is not None
        index += 1
        text.append(event.delta)
        frame = {"index": index, "token": _token(event.token), "generated_text": None, "details": None}
        if event.top_tokens:
            frame["top_tokens"] = [_token(t) for t in event.top_tokens]
        if event.last:
            frame["generated_text"] = "".join(text)
            frame["details"] = _stream_details(request, event, index) if details else None
        yield f"data:{to_json(frame)}\n\n"

    return frames


def _stream_details(request: GenerationRequest, event: Event, count: int) -> dict[str, Any]:
    return {
        "finish_reason": event.finish_reason,
        "generated_tokens": count,
        "seed": request.sampling.seed,
        "input_length": len(request.prompt_ids),
    }
