"""OpenAI's routes, through its own client, Hugging Face's, and raw HTTP."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from serving_helpers import HTTP, Script, serving

from ingot.serving.engine import EmbeddedEngine, GenerationRequest
from ingot.serving.loading import LoadedModel

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello 🦜"}]


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client for the tiny model."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def scripted_client(scripted_url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client for the scripted model."""
    with openai.OpenAI(base_url=f"{scripted_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def greedy(engine: EmbeddedEngine, most: int) -> str:
    request = GenerationRequest(tuple(engine.loaded.codec.encode_chat(MESSAGES)), most)
    return "".join(event.delta for event in engine.stream(request))


def post(url: str, **body: Any) -> httpx.Response:
    return HTTP.post(url + "/v1/chat/completions", json={"messages": MESSAGES, **body})


def test_openai_chat(client: openai.OpenAI, engine: EmbeddedEngine) -> None:
    reply = client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=12, temperature=0)
    assert reply.choices[0].message.content == greedy(engine, 12)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length"
    assert reply.model == "tiny"
    num_prompt = len(engine.loaded.codec.encode_chat(MESSAGES))
    assert reply.usage.prompt_tokens == num_prompt
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == num_prompt + 12


def test_openai_chat_stream(client: openai.OpenAI, engine: EmbeddedEngine) -> None:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="any", messages=MESSAGES, max_tokens=12, temperature=0, stream=True, stream_options=options
        )
    )
    *text, last, usage = chunks
    assert "".join(chunk.choices[0].delta.content for chunk in [*text, last]) == greedy(engine, 12)
    assert {chunk.choices[0].finish_reason for chunk in text} == {None}
    assert last.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_typed_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, n=3)
    assert caught.value.param == "n"
    assert caught.value.code == "unsupported_parameter"
    assert "`n` is not supported by this server" in caught.value.message
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=500)
    assert caught.value.code == "context_length_exceeded"
    assert "`messages` tokens + `max_tokens` must be <= 96. Given: " in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="any", input="x")
    assert post(url, temperature=-1).json() == {
        "error": {
            "message": "Input validation error: `temperature`: Input should be greater than or equal to 0",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": None,
        },
        "error_type": "validation",
    }


def test_openai_seed(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        reply = client.chat.completions.create(
            model="any", messages=MESSAGES, seed=seed, temperature=1.3, top_p=1.0, max_tokens=12
        )
        return str(reply.choices[0].message.content)

    assert ask(5) == ask(5)
    assert len({ask(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("stop", ["tw", ["never", "tw"]])
def test_a_stop_string_is_cut_off(
    scripted_client: openai.OpenAI, say: Callable[[str], list[int]], stop: str | list[str]
) -> None:
    say("one two three")
    reply = scripted_client.chat.completions.create(model="any", messages=MESSAGES, stop=stop)
    assert reply.choices[0].message.content == "one "
    assert reply.choices[0].finish_reason == "stop"
    stream = scripted_client.chat.completions.create(model="any", messages=MESSAGES, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == "one "


def test_the_end_of_a_turn_is_a_stop_and_no_text(
    scripted_client: openai.OpenAI, say: Callable[[str], list[int]]
) -> None:
    ids = say("cat 🦜")
    reply = scripted_client.chat.completions.create(model="any", messages=MESSAGES)
    assert reply.choices[0].message.content == "cat 🦜"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len(ids)
    chunks = list(scripted_client.chat.completions.create(model="any", messages=MESSAGES, stream=True))
    assert [c.choices[0].delta.content for c in chunks][-2:] == [" 🦜", ""]
    assert "\ufffd" not in "".join(c.choices[0].delta.content for c in chunks)


def test_logprobs(scripted_client: openai.OpenAI, say: Callable[[str], list[int]]) -> None:
    ids = say("cat 🦜")
    given: dict[str, Any] = {"model": "any", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    reply = scripted_client.chat.completions.create(**given)
    content = reply.choices[0].logprobs.content
    assert len(content) == len(ids)
    assert {len(token.top_logprobs) for token in content} == {2}
    chunks = list(scripted_client.chat.completions.create(**given, stream=True))
    streamed = [token for chunk in chunks for token in chunk.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_hugging_face_chat(url: str, engine: EmbeddedEngine) -> None:
    for address in (url, f"{url}/v1"):
        client = InferenceClient(address)
        reply = client.chat_completion(MESSAGES, max_tokens=12, temperature=0)
        assert reply.choices[0].message.content == greedy(engine, 12)
        chunks = list(client.chat_completion(MESSAGES, max_tokens=12, temperature=0, stream=True))
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == greedy(engine, 12)


def test_frames(scripted_url: str, say: Callable[[str], list[int]]) -> None:
    say("one")
    reply = post(scripted_url, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *frames, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "on"}
    assert all("usage" not in chunk for chunk in chunks)


def test_a_failure_in_the_stream_is_an_error_event(
    scripted_client: openai.OpenAI, scripted_url: str, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("one two three")
    script.fails_at = 0
    assert post(scripted_url, stream=True).status_code == 424
    script.fails_at = 2
    with pytest.raises(openai.APIError, match="Request failed during generation"):
        list(scripted_client.chat.completions.create(model="any", messages=MESSAGES, stream=True))
    *_, error, done, _ = post(scripted_url, stream=True).text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["http_status_code"] == 424
    assert done == "data: [DONE]"


def test_overload_is_a_rate_limit_error(
    scripted_client: openai.OpenAI, scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("one")
    script.gate.clear()
    for _ in range(3):
        scripted_engine.submit(GenerationRequest((5,), 9), lambda event: None)
    with pytest.raises(openai.RateLimitError) as caught:
        scripted_client.chat.completions.create(model="any", messages=MESSAGES)
    assert caught.value.response.headers["retry-after"] == "1"
    script.gate.set()


HARMLESS: dict[str, Any] = {
    "user": "me", "n": 1, "logit_bias": {}, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
    "store": False, "metadata": {"a": "b"}, "logprobs": False, "top_p": 1, "presence_penalty": 0, "stop": None,
    "parallel_tool_calls": True, "service_tier": "auto",
}  # fmt: skip


def test_parameters_that_ask_for_nothing_are_accepted(url: str, engine: EmbeddedEngine) -> None:
    reply = post(url, max_tokens=4, temperature=0, **HARMLESS)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == greedy(engine, 4)


def test_content_parts_and_earlier_replies_are_accepted(url: str) -> None:
    earlier = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "annotations": []}
    parts = {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "are you"}]}
    assert post(url, messages=[MESSAGES[1], earlier, parts], max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "name"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": "abc"}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": True}, "n"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"stop": ["a", ""]}, "stop"),
    ],
)
def test_a_wrong_parameter_is_named(url: str, body: dict[str, Any], param: str) -> None:
    for stream in ({}, {"stream": True}) if "stream_options" not in body else ({},):
        reply = post(url, **{**body, **stream})
        assert reply.status_code == 422
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert param in (error["param"], *error["message"].split("`"))


def test_an_image_is_refused_and_not_fetched(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"{url}/health"}}
    reply = post(url, messages=[{"role": "user", "content": [part]}])
    assert reply.status_code == 422


def test_a_conversation_that_is_too_long_is_refused_with_the_numbers(url: str, loaded: LoadedModel) -> None:
    messages = [{"role": "user", "content": "Hello " * 90}]
    num_tokens = len(loaded.codec.encode_chat(messages))
    reply = post(url, messages=messages)
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert f"`messages` must have less than 96 tokens. Given: {num_tokens}" in reply.json()["error"]["message"]


def test_a_model_without_a_template_says_so(scripted_engine: EmbeddedEngine) -> None:
    tokenizer = scripted_engine.loaded.codec.tokenizer
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with serving(scripted_engine) as address:
            reply = post(address)
    finally:
        tokenizer.chat_template = template
    assert reply.status_code == 422
    assert reply.json()["error_type"] == "template_error"
    assert "/generate" in reply.json()["error"]["message"]


def test_without_the_key_nothing_but_health_answers(engine: EmbeddedEngine) -> None:
    with serving(engine, api_key="secret") as address:
        for method, route in [
            ("POST", "/"), ("POST", "/generate"), ("POST", "/generate_stream"), ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"), ("GET", "/v1/models/"), ("OPTIONS", "/generate"), ("GET", "/nowhere"),
        ]:  # fmt: skip
            for header in (
                None,
                "secret",
                "Bearer",
                "Bearer secre",
                "Bearer SECRET",
                "Basic secret",
                "Bearer s\u00e9",
            ):
                headers = [] if header is None else [(b"Authorization", header.encode("utf-8"))]
                reply = HTTP.request(method, address + route, headers=headers)
                assert reply.status_code == 401
                assert "secret" not in reply.text
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
        assert client.models.list().data[0].id == "tiny"
        assert InferenceClient(address, token="secret").text_generation("Hello", max_new_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()


def test_no_other_origin_may_read_replies(url: str) -> None:
    reply = HTTP.get(f"{url}/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in reply.headers
