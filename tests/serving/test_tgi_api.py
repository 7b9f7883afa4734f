"""The native routes, through the client that text-generation-inference's users have, and through raw HTTP."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import GenerationError, OverloadedError, ValidationError
from serving_helpers import HTTP, Script, serving

from ingot.serving.engine import EmbeddedEngine, GenerationRequest
from ingot.serving.loading import LoadedModel


def greedy(engine: EmbeddedEngine, prompt: str, most: int) -> str:
    request = GenerationRequest(tuple(engine.loaded.codec.encode(prompt)), most)
    return "".join(event.delta for event in engine.stream(request))


def events_of(body: str) -> list[Any]:
    """The JSON of each `data:` line."""
    lines = body.split("\n\n")
    assert lines[-1] == ""
    assert all(line.startswith("data:{") for line in lines[:-1])
    return [json.loads(line.removeprefix("data:")) for line in lines[:-1]]


def post(url: str, route: str, inputs: str = "Hello", **parameters: Any) -> httpx.Response:
    return HTTP.post(url + route, json={"inputs": inputs, "parameters": parameters})


def test_inference_client_text(url: str, engine: EmbeddedEngine) -> None:
    client, expected = InferenceClient(url), greedy(engine, "Hello", 12)
    given = {"max_new_tokens": 12, "return_full_text": False}
    assert client.text_generation("Hello", **given) == expected
    assert client.text_generation("Hello", max_new_tokens=12) == "Hello" + expected  # the default of this route
    assert "".join(client.text_generation("Hello", stream=True, **given)) == expected


def test_inference_client_details(url: str, engine: EmbeddedEngine) -> None:
    client, expected = InferenceClient(url), greedy(engine, "Hello", 12)
    output = client.text_generation(
        "Hello", max_new_tokens=12, return_full_text=False, details=True, decoder_input_details=True, top_n_tokens=2
    )
    assert output.generated_text == expected
    assert output.details.finish_reason == "length"
    assert output.details.generated_tokens == len(output.details.tokens) == 12
    assert output.details.seed is None
    assert "".join(t.text for t in output.details.prefill) == "Hello"
    assert [len(t) for t in output.details.top_tokens] == [2] * 12
    *parts, last = client.text_generation("Hello", max_new_tokens=12, details=True, stream=True)
    assert "".join(p.token.text for p in [*parts, last] if not p.token.special) == expected
    assert last.details.finish_reason == "length"
    assert last.details.input_length == len(engine.loaded.codec.encode("Hello"))


def test_inference_client_sampling_and_stop(url: str, scripted_url: str, say: Callable[[str], list[int]]) -> None:
    client = InferenceClient(url)
    output = client.text_generation("Hello", do_sample=True, seed=11, max_new_tokens=8, details=True)
    assert output.details.seed == 11
    again = client.text_generation("Hello", do_sample=True, seed=11, max_new_tokens=8)
    assert again == output.generated_text
    say("one two three")
    stopped = InferenceClient(scripted_url).text_generation("Hello", stop=["tw"], details=True, return_full_text=False)
    assert stopped.generated_text == "one tw"  # here a stop string stays in the text
    assert stopped.details.finish_reason == "stop_sequence"


def test_inference_client_raises_the_right_errors(
    url: str, scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    client = InferenceClient(url)
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        client.text_generation("Hello", temperature=-1.0)
    with pytest.raises(ValidationError, match="`max_new_tokens` must be strictly positive"):
        list(client.text_generation("Hello", max_new_tokens=0, stream=True))
    say("one two three")
    with serving(scripted_engine) as scripted_url:
        scripted = InferenceClient(scripted_url)
        script.fails_at = 0
        with pytest.raises(GenerationError):
            scripted.text_generation("Hello")
        with pytest.raises(GenerationError):
            list(scripted.text_generation("Hello", stream=True))
        script.fails_at = 2
        with pytest.raises(GenerationError):  # after the stream has begun
            list(scripted.text_generation("Hello", stream=True))
        script.fails_at = None
        script.gate.clear()
        for _ in range(3):
            scripted_engine.submit(GenerationRequest((5,), 9), lambda event: None)
        with pytest.raises(OverloadedError):
            scripted.text_generation("Hello")
        refused = post(scripted_url, "/generate")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        script.gate.set()


def test_generate_has_details_only_when_asked(url: str, engine: EmbeddedEngine) -> None:
    reply = post(url, "/generate", max_new_tokens=5)
    assert reply.json() == {"generated_text": greedy(engine, "Hello", 5)}
    details = post(url, "/generate", max_new_tokens=5, details=True).json()["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert set(details["tokens"][0]) == {"id", "text", "logprob", "special"}
    assert details["prefill"] == []


def test_without_parameters_it_samples_and_fills_the_context(url: str, loaded: LoadedModel) -> None:
    replies = [HTTP.post(url + "/generate", json={"inputs": "Hello"}).json() for _ in range(3)]
    assert len({reply["generated_text"] for reply in replies}) > 1
    details = post(url, "/generate", details=True).json()["details"]
    if details["finish_reason"] == "length":
        assert details["generated_tokens"] == loaded.context_length - len(loaded.codec.encode("Hello"))


def test_a_set_temperature_turns_sampling_on(url: str) -> None:
    details = post(url, "/generate", do_sample=False, temperature=0.8, max_new_tokens=2, details=True).json()[
        "details"
    ]
    assert isinstance(details["seed"], int)


def test_generate_stream_frames(scripted_url: str, say: Callable[[str], list[int]]) -> None:
    ids = say("cat 🦜")
    reply = post(scripted_url, "/generate_stream", max_new_tokens=20, details=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    assert "[DONE]" not in reply.text
    frames = events_of(reply.text)
    assert [frame["token"]["id"] for frame in frames] == ids
    assert [frame["index"] for frame in frames] == list(range(1, len(ids) + 1))
    assert [frame["generated_text"] for frame in frames] == [None] * (len(ids) - 1) + ["cat 🦜"]
    assert "".join(f["token"]["text"] for f in frames if not f["token"]["special"]) == "cat 🦜"
    assert frames[-1]["token"] == {"id": 2, "text": "<|im_end|>", "logprob": 0.0, "special": True}
    details = frames[-1]["details"]
    assert details == {"finish_reason": "eos_token", "generated_tokens": len(ids), "seed": None, "input_length": 2}
    assert "top_tokens" not in frames[0]


def test_truncate_keeps_the_end_of_the_prompt(url: str, engine: EmbeddedEngine) -> None:
    ids = engine.loaded.codec.encode("Hello the cat sat")
    details = post(url, "/generate", "Hello the cat sat", truncate=2, decoder_input_details=True, max_new_tokens=1)
    assert [token["id"] for token in details.json()["details"]["prefill"]] == ids[-2:]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 96}, "`truncate` must be strictly positive and less than 96. Given: 96"),
        ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"stop": [""]}, "`stop` cannot hold an empty string"),
        ({"best_of": 2}, "`best_of` is not supported by this server"),
        ({"watermark": True}, "`watermark` is not supported by this server"),
        ({"grammar": {"type": "regex", "value": "a"}}, "`grammar` is not supported by this server"),
        ({"min_p": 0.1}, "`parameters.min_p` is not a parameter of this route"),
        ({"max_new_tokens": 96}, "`inputs` tokens + `max_new_tokens` must be <= 96. Given: 2 `inputs` tokens and 96 "),
        ({"max_new_tokens": "5"}, "`parameters.max_new_tokens`: Input should be a valid integer"),
        ({"max_new_tokens": True}, "`parameters.max_new_tokens`: Input should be a valid integer"),
        ({"seed": 2**64}, "`parameters.seed`: Input should be less than"),
        ({"details": "yes"}, "`parameters.details`: Input should be a valid boolean"),
    ],
)
@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream"])
def test_a_wrong_parameter_is_named(url: str, route: str, parameters: dict[str, Any], message: str) -> None:
    reply = post(url, route, **parameters)
    assert reply.status_code == 422
    assert reply.json()["error_type"] == "validation"
    assert reply.json()["error"].startswith(f"Input validation error: {message}")


def test_a_prompt_that_is_empty_or_too_long_is_refused_with_the_numbers(url: str) -> None:
    assert post(url, "/generate", "").json()["error"] == "Input validation error: `inputs` cannot be empty"
    error = post(url, "/generate", "a " * 200).json()["error"]
    assert error == "Input validation error: `inputs` must have less than 96 tokens. Given: 201"
    streaming = post(url, "/generate_stream", decoder_input_details=True).json()["error"]
    assert streaming.endswith("`decoder_input_details` == true is not supported when streaming tokens")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b'{"inputs": "a\xff"}', 400), (b"[" * 100_000, 400), (b'"x"', 422), (b"[]", 422),
        (b"{}", 422), (b'{"inputs": 5}', 422), (b'{"inputs": "a", "parameters": {"temperature": NaN}}', 400),
        (b'{"inputs": "a", "parameters": {"temperature": 1e999}}', 422), (b'{"inputs": "\\ud800"}', 400),
        (b'{"inputs": "a", "parameters": {"temperature": 1' + b"0" * 5000 + b"}}", 400),
        (b'{"inputs": "a", "parameters": {"top_k": 1' + b"0" * 400 + b"}}", 422),
        (b'{"inputs": "' + b"a" * 2_000_000 + b'"}', 413), (b'{"inputs": "\\u0000", "parameters": {}}', 200),
    ],
)  # fmt: skip
def test_abuse_is_answered_and_the_server_goes_on(url: str, body: bytes, status: int) -> None:
    reply = HTTP.post(url + "/generate", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    if status != 200:
        assert set(reply.json()) == {"error", "error_type"}
    assert post(url, "/generate", max_new_tokens=1).status_code == 200


def test_other_routes_methods_and_content_types_have_json_errors(url: str) -> None:
    assert HTTP.post(url + "/generate", content=b"{}").status_code == 415
    assert HTTP.post(url + "/generate", data={"inputs": "x"}).status_code == 415
    assert HTTP.get(url + "/nowhere").json() == {"error": "Not Found", "error_type": "not_found"}
    wrong_method = HTTP.get(url + "/generate")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"
    for page in ("/docs", "/redoc", "/openapi.json"):
        assert HTTP.get(url + page).status_code == 404


def test_health(scripted_engine: EmbeddedEngine, script: Script) -> None:
    with serving(scripted_engine, api_key="secret") as address:
        for route in ("/", "/health", "/ping"):
            assert (HTTP.get(address + route).status_code, HTTP.get(address + route).content) == (200, b"")
        script.fails_at = 0
        for _ in range(3):
            list(scripted_engine.stream(GenerationRequest((5,), 9)))
        sick = HTTP.get(address + "/health")
    assert sick.status_code == 503
    assert sick.json() == {"error": "unhealthy", "error_type": "healthcheck"}


def test_errors_of_the_model_show_nothing_of_the_machine(
    scripted_url: str, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("one two")
    script.fails_at = 1
    reply = post(scripted_url, "/generate")
    assert reply.status_code == 424
    assert reply.json()["error_type"] == "generation"
    assert "secret" not in reply.text
    frames = events_of(post(scripted_url, "/generate_stream").text)
    assert frames[-1] == reply.json()


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_frees_its_place(
    scripted_engine: EmbeddedEngine, scripted_url: str, script: Script, say: Callable[[str], list[int]], route: str
) -> None:
    say("one two three four")
    script.gate.clear()
    with pytest.raises(httpx.ReadTimeout):  # the model stands at its gate
        HTTP.post(scripted_url + route, json={"inputs": "Hello"}, timeout=httpx.Timeout(10, read=0.3))
    assert script.reached.wait(10)
    while not all(job.cancelled for job in scripted_engine._active):
        HTTP.get(scripted_url + "/health")  # lets the event loop see that the client has left
    script.gate.set()
    assert post(scripted_url, "/generate").status_code == 200
    assert scripted_engine.stats().cancelled == 1
    assert scripted_engine.stats().active == 0


def test_a_quiet_stream_is_kept_open(
    scripted_url: str, script: Script, say: Callable[[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingot.serving.exchange.KEEP_ALIVE_SECONDS", 0.02)
    say("one two")
    script.gate.clear()
    with HTTP.stream("POST", scripted_url + "/generate_stream", json={"inputs": "Hello"}) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data:")
        assert [next(lines) for _ in range(3)] == ["", ":", ""]
        script.gate.set()
        assert any('"generated_text":"one two"' in line for line in lines)


def test_a_mistake_of_the_server_is_told_without_details(
    scripted_url: str, scripted_engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted_engine.loaded.codec, "encode", lambda text: 1 / 0)
    reply = post(scripted_url, "/generate")
    assert reply.status_code == 500
    assert reply.json() == {"error": "the server made a mistake; its log has the details", "error_type": "internal"}


def test_while_it_shuts_down_it_says_so(scripted_url: str, scripted_engine: EmbeddedEngine) -> None:
    scripted_engine.close()
    assert post(scripted_url, "/generate").status_code == 503
    assert HTTP.get(scripted_url + "/health").status_code == 503


def test_alternatives_travel_with_the_stream(url: str) -> None:
    frames = events_of(post(url, "/generate_stream", top_n_tokens=3, max_new_tokens=2).text)
    assert [len(frame["top_tokens"]) for frame in frames] == [3, 3]
