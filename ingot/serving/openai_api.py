"""OpenAI's routes: `/v1/chat/completions` and `/v1/models`.

Two habits of text-generation-inference are kept: `system_fingerprint`, and a role in every chunk. Unlike there, a stop
string is not part of the answer and its finish_reason is "stop", as OpenAI's clients expect.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from ingot import __version__
from ingot.serving.engine import Event, GenerationRequest, Token
from ingot.serving.errors import ApiError, error_body, invalid
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
from ingot.serving.text import ChatTemplateError

FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
# Parameters that this server does not offer, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,), "function_call": (None, "none", "auto"), "functions": (None, []),
    "logit_bias": (None, {}), "modalities": (None, ["text"]), "n": (None, 1), "prediction": (None,),
    "reasoning_effort": (None,), "response_format": (None, {"type": "text"}), "store": (None, False),
    "tool_choice": (None, "none", "auto"), "tool_prompt": (None,), "tools": (None, []), "verbosity": (None,),
    "web_search_options": (None,),
}  # fmt: skip
MESSAGE_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []), "audio": (None,), "function_call": (None,), "name": (None,), "refusal": (None,),
    "tool_call_id": (None,), "tool_calls": (None, []),
}  # fmt: skip
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(gt=0, lt=2**32)]


class TextPart(ApiModel):
    """A piece of a message's content; images and sound are not offered."""

    type: Literal["text"]
    text: str


class ChatMessage(ApiModel):
    """One message of a conversation; the fields that replies also carry may come back empty."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    name: Any = None
    refusal: Any = None
    tool_call_id: Any = None
    tool_calls: Any = None

    def plain(self) -> dict[str, str]:
        """The message as the chat template reads it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class StreamOptions(ApiModel):
    """What a stream carries besides its text; the padding that OpenAI adds against eavesdroppers is never sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(ApiModel):
    """The body of `/v1/chat/completions`; None means not given."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str | None = None  # any name is answered by the one model that is served
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(gt=0, lt=2**31)] | None = None  # not OpenAI's, but many servers'
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_TOKENS)] | None = None
    # about the caller's own bookkeeping: nothing here changes the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    # see UNSUPPORTED
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    modalities: Any = None
    n: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    store: Any = None
    tool_choice: Any = None
    tool_prompt: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


def routes(service: Service) -> APIRouter:
    """OpenAI's routes over one service."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> Response:
        model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "ingot"}
        return JSONResponse({"object": "list", "data": [model]})

    @router.post("/chat/completions")
    async def chat_completions(http: Request) -> Response:
        body = await read_request(http, ChatBody)
        request = await asyncio.to_thread(to_request, service, body)
        head = _head(service, "chat.completion.chunk" if body.stream else "chat.completion")
        if body.stream:
            return await stream(service, request, http, _frames(head, body, request))
        events = await collect(service, request, http)
        return JSONResponse({**head, "choices": [_choice(events, body)], "usage": _usage(request, len(events))})

    return router


def to_request(service: Service, body: ChatBody) -> GenerationRequest:
    """A checked engine request.

    Raises: ApiError.
    """
    _check(body)
    try:
        ids = service.codec.encode_chat([message.plain() for message in body.messages])
    except ChatTemplateError as error:
        raise ApiError(422, "template_error", f"Template error: {error}", param="messages") from None
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return GenerationRequest(
        prompt_ids=tuple(ids),
        max_new_tokens=answer_length(service, len(ids), wanted, ("messages", "max_tokens")),
        sampling=_sampling(body),
        stop=stop_strings(body.stop),
        num_top_tokens=body.top_logprobs or 0,
    )


def _check(body: ChatBody) -> None:
    refuse_unsupported(body, UNSUPPORTED)
    for message in body.messages:
        refuse_unsupported(message, MESSAGE_UNSUPPORTED)
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise invalid("`max_tokens` and `max_completion_tokens` differ; give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise invalid("`stream_options` needs `stream` to be true", param="stream_options")


def _sampling(body: ChatBody) -> Sampling:
    """Temperature 0 is greedy; everything else samples."""
    greedy = body.temperature == 0
    return Sampling(
        seed=None if greedy else new_seed() if body.seed is None else body.seed,
        temperature=body.temperature or 1.0,
        top_k=body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
    )


def _head(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": f"{__version__}-native",
    }


def _usage(request: GenerationRequest, num_generated: int) -> dict[str, int]:
    num_prompt = len(request.prompt_ids)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def _choice(events: list[Event], body: ChatBody) -> dict[str, Any]:
    reason = events[-1].finish_reason
    assert reason is not None
    return {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(e.delta for e in events)},
        "logprobs": _logprobs(events) if body.logprobs else None,
        "finish_reason": FINISH_REASONS[reason],
    }


def _logprobs(events: list[Event]) -> dict[str, Any]:
    content = [
        {**_logprob(e.token), "top_logprobs": [_logprob(t) for t in e.top_tokens]}
        for e in events
        if e.token is not None
    ]
    return {"content": content}


def _logprob(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}


def _frames(head: dict[str, Any], body: ChatBody, request: GenerationRequest) -> Callable[[Event], Iterable[str]]:
    """Renders events one after another as chunks; tokens that complete no text travel with the next one."""
    usage = bool(body.stream_options and body.stream_options.include_usage)
    pending: list[Event] = []
    count = 0

    def frames(event: Event) -> Iterable[str]:
        nonlocal count
        if event.error is not None:
            yield from _error_frames(event.error)
            return
        count += 1
        pending.append(event)
        if event.delta or event.last:
            yield _frame({**head, "choices": [_chunk_choice(pending, body)], **({"usage": None} if usage else {})})
            pending.clear()
        if event.last:
            if usage:
                yield _frame({**head, "choices": [], "usage": _usage(request, count)})
            yield "data: [DONE]\n\n"

    return frames


def _chunk_choice(events: list[Event], body: ChatBody) -> dict[str, Any]:
    reason = events[-1].finish_reason
    return {
        "index": 0,
        "delta": {"role": "assistant", "content": "".join(e.delta for e in events)},
        "logprobs": _logprobs(events) if body.logprobs else None,
        "finish_reason": FINISH_REASONS[reason] if reason else None,
    }


def _error_frames(message: str) -> Iterable[str]:
    """The model failed after the stream began: an error in OpenAI's shape, with TGI's status field, then the end."""
    body = error_body("/v1/", generation_error(message))
    body["error"]["http_status_code"] = 424
    yield _frame(body)
    yield "data: [DONE]\n\n"


def _frame(value: dict[str, Any]) -> str:
    return f"data: {to_json(value)}\n\n"
