"""Whom the chat talks to: the engine in this process, or a server with OpenAI's API."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import Field

from ingot.recipe import InputError, Section
from ingot.serving.text import ChatTemplateError, Message

if TYPE_CHECKING:
    import openai

    from ingot.serving.engine import Engine
    from ingot.serving.loading import LoadedModel
    from ingot.serving.sampling import Sampling


class ChatError(RuntimeError):
    """An answer failed; the message says why and what to do."""


class Settings(Section):
    """How answers are written."""

    temperature: float = Field(0.7, ge=0, description="0 always takes the likeliest token; higher is more varied")
    top_p: float = Field(0.95, gt=0, le=1, description="only the likeliest tokens that together have this probability")
    top_k: int | None = Field(None, gt=0, lt=2**31, description="only this many of the likeliest tokens")
    max_tokens: int = Field(256, gt=0, lt=2**31, description="length of an answer at most")
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed gives the same answer; else a new one")


@dataclass(frozen=True)
class Piece:
    """Text of an answer; `left_out` counts the oldest messages that did not fit, in the first piece."""

    text: str
    left_out: int = 0


Pieces = Generator[Piece, None, None]


class Backend(Protocol):
    """What the terminal and the page need."""

    name: str
    raw: bool  # continues text and knows no messages
    completes: bool  # can continue text
    most_tokens: int  # that one answer can have

    def reply(self, messages: Sequence[Message], settings: Settings) -> Pieces:
        """Streams the answer to a conversation; closing the generator stops it.

        Raises: ChatError.
        """

    def complete(self, text: str, settings: Settings) -> Pieces:
        """Streams the continuation of a text; closing the generator stops it.

        Raises: ChatError.
        """


class LocalBackend:
    """The engine in this process."""

    completes = True

    def __init__(self, loaded: "LoadedModel", engine: "Engine", raw: bool | None = None) -> None:
        self._loaded, self._engine = loaded, engine
        self.name = loaded.name
        self.raw = not loaded.chats if raw is None else raw
        self.most_tokens = loaded.context_length - 1

    def reply(self, messages: Sequence[Message], settings: Settings) -> Pieces:
        """Streams an answer; the oldest messages are left out until the rest fits the context."""
        kept = list(messages)
        room = min(settings.max_tokens, self._loaded.context_length // 2)
        try:
            ids = self._loaded.codec.encode_chat(kept)
            while len(ids) + room > self._loaded.context_length and _droppable(kept):
                kept = _without_oldest(kept)
                ids = self._loaded.codec.encode_chat(kept)
        except ChatTemplateError as error:
            raise ChatError(str(error)) from None
        yield from self._stream(ids, settings, left_out=len(messages) - len(kept))

    def complete(self, text: str, settings: Settings) -> Pieces:
        """Streams a continuation; of a text longer than the context, the end is read."""
        ids = self._loaded.codec.encode(text)
        room = min(settings.max_tokens, self._loaded.context_length // 2)
        yield from self._stream(ids[-(self._loaded.context_length - room) :], settings, left_out=0)

    def _stream(self, ids: list[int], settings: Settings, left_out: int) -> Pieces:
        from ingot.serving.engine import GenerationRequest, OverloadedError

        context = self._loaded.context_length
        space = context - len(ids)
        if not ids:
            raise ChatError("there is nothing to read in this text")
        if space <= 0:
            raise ChatError(f"this has {len(ids)} tokens and the model reads less than {context}; say it shorter")
        request = GenerationRequest(tuple(ids), min(settings.max_tokens, space), to_sampling(settings))
        try:
            for event in self._engine.stream(request):
                if event.error is not None:
                    raise ChatError(event.error)
                yield Piece(event.delta, left_out)
                left_out = 0
        except OverloadedError:
            raise ChatError("too many answers are being written; try again in a moment") from None


def _droppable(messages: Sequence[Message]) -> bool:
    return sum(m["role"] != "system" for m in messages) > 1


def _without_oldest(messages: Sequence[Message]) -> list[Message]:
    """Without the oldest question and its answer; the system prompt stays."""
    start = 1 if messages[0]["role"] == "system" else 0
    end = start + 1
    while end < len(messages) - 1 and messages[end]["role"] != "user":
        end += 1
    return [*messages[:start], *messages[end:]]


def to_sampling(settings: Settings) -> "Sampling":
    """The engine's sampling; temperature 0 is greedy."""
    from ingot.serving.sampling import Sampling, new_seed

    if settings.temperature == 0:
        return Sampling()
    seed = new_seed() if settings.seed is None else settings.seed
    return Sampling(seed=seed, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)


class RemoteBackend:
    """A server with OpenAI's API, such as `ingot serve`, vLLM or SGLang."""

    raw = False
    completes = False
    most_tokens = 4096  # what the page offers; the server knows its own limit and says so

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        import openai

        self._client = openai.OpenAI(base_url=api_base(url), api_key=api_key or "none", max_retries=1)
        self.name = model or self._first_model(url)

    def _first_model(self, url: str) -> str:
        import openai

        try:
            models = self._client.models.list().data
        except (openai.OpenAIError, ValueError) as error:
            raise InputError(f"run.url: no OpenAI-compatible server answers at {url}: {explain(error)}") from None
        if not models:
            raise InputError(f"run.url: {url} serves no model")
        return models[0].id

    def reply(self, messages: Sequence[Message], settings: Settings) -> Pieces:
        """Streams an answer of the server; while it says that the conversation is too long, the oldest goes."""
        import httpx
        import openai

        kept = list(messages)
        while True:
            try:
                yield from self._ask(kept, settings, len(messages) - len(kept))
                return
            except openai.APIError as error:
                if error.code != "context_length_exceeded" or not _droppable(kept):
                    raise ChatError(explain(error)) from None
                kept = _without_oldest(kept)
            except httpx.HTTPError as error:
                raise ChatError(f"the connection broke: {error}") from None

    def _ask(self, messages: list[Message], settings: Settings, left_out: int) -> Pieces:
        given = settings.model_dump(exclude={"top_k"}, exclude_none=True)
        extra = {} if settings.top_k is None else {"top_k": settings.top_k}
        chunks: Any = self._client.chat.completions.create(
            model=self.name, messages=cast(Any, messages), stream=True, extra_body=extra, **given
        )
        with chunks:
            for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    yield Piece(chunk.choices[0].delta.content, left_out)
                    left_out = 0

    def complete(self, text: str, settings: Settings) -> Pieces:
        """Not offered: OpenAI's chat API has no plain continuation."""
        raise ChatError("continuing plain text needs the model in this process: give model.path instead of run.url")


def api_base(url: str) -> str:
    """The base address for OpenAI's client: with /v1, which users leave out."""
    base = url.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def explain(error: "openai.OpenAIError | ValueError") -> str:
    """What an OpenAI client's error says, without its wrapping."""
    import openai

    body = error.body if isinstance(error, openai.APIError) else None
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return str(error)
