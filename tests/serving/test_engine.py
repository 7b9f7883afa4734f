"""The embedded engine: what it says, how it takes turns, and what it survives."""

import queue
from collections.abc import Callable

import pytest
import torch
from serving_helpers import Script
from transformers import PreTrainedTokenizerBase

from ingot.serving.engine import (
    EmbeddedEngine,
    EngineClosedError,
    Event,
    GenerationRequest,
    OverloadedError,
)
from ingot.serving.loading import LoadedModel
from ingot.serving.sampling import Sampling

GREEDY = Sampling()
PROMPTS = ["Hello", "The cat sat on", "日本 how", "system"]


def ask(engine: EmbeddedEngine, prompt: str, sampling: Sampling = GREEDY, most: int = 24) -> str:
    request = GenerationRequest(tuple(engine.loaded.codec.encode(prompt)), most, sampling)
    return "".join(event.delta for event in engine.stream(request))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_generate(engine: EmbeddedEngine, loaded: LoadedModel, prompt: str) -> None:
    ids = torch.tensor([loaded.codec.encode(prompt)])
    expected = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    text = loaded.codec.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert ask(engine, prompt) == text


def test_a_seed_decides_the_text_whatever_else_runs(engine: EmbeddedEngine) -> None:
    sampling = Sampling(seed=7, temperature=1.5, top_p=0.9, typical_p=0.95, repetition_penalty=1.1)
    alone = [ask(engine, prompt, sampling) for prompt in PROMPTS]
    assert ask(engine, PROMPTS[0], Sampling(seed=8, temperature=1.5)) != alone[0]
    inbox: queue.Queue[tuple[int, Event]] = queue.Queue()
    for i, prompt in enumerate(PROMPTS * 3):
        request = GenerationRequest(tuple(engine.loaded.codec.encode(prompt)), 24, sampling)
        engine.submit(request, lambda event, i=i: inbox.put((i, event)))
    texts, ended = [""] * len(PROMPTS) * 3, 0
    while ended < len(texts):
        i, event = inbox.get(timeout=20)
        texts[i] += event.delta
        ended += event.last
    assert texts == alone * 3


def test_requests_take_turns(scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]) -> None:
    say("abcdef")
    inbox: queue.Queue[str] = queue.Queue()
    script.gate.clear()
    for name in "xy":
        request = GenerationRequest((5,), 6)
        scripted_engine.submit(request, lambda event, name=name: inbox.put(name))
    script.gate.set()
    order = "".join(inbox.get(timeout=20) for _ in range(12))
    assert order.count("x") == order.count("y") == 6
    assert "xyxy" in order or "yxyx" in order


def test_finish_reasons(scripted_engine: EmbeddedEngine, say: Callable[[str], list[int]]) -> None:
    num_tokens = len(say("cat mat"))
    for most, stop, reason, text in [
        (20, (), "eos_token", "cat mat"),
        (num_tokens, (), "length", "cat mat"),  # the limit is looked at before the end token, as TGI does
        (2, (), "length", None),
        (20, (" m",), "stop_sequence", "cat"),
    ]:
        events = list(scripted_engine.stream(GenerationRequest((5,), most, stop=stop)))
        assert events[-1].finish_reason == reason
        assert all(event.finish_reason is None for event in events[:-1])
        assert text is None or "".join(event.delta for event in events) == text


def test_logprobs_of_the_prompt_and_of_alternatives(engine: EmbeddedEngine, loaded: LoadedModel) -> None:
    ids = tuple(loaded.codec.encode("Hello there"))
    events = list(engine.stream(GenerationRequest(ids, 3, num_top_tokens=4, prompt_logprobs=True)))
    with torch.inference_mode():
        logprobs = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0], dim=-1)
    assert [token.id for token in events[0].prefill] == list(ids)
    assert events[0].prefill[0].logprob is None
    given = [token.logprob for token in events[0].prefill[1:]]
    assert given == pytest.approx([float(logprobs[i, t]) for i, t in enumerate(ids[1:])], abs=1e-5)
    values, top = logprobs[-1].topk(4)
    assert [token.id for token in events[0].top_tokens] == top.tolist()
    assert events[0].token is not None
    assert events[0].token.logprob == pytest.approx(float(values[0]), abs=1e-5)
    assert events[1].prefill == ()


def test_penalties_keep_tokens_from_coming_back(engine: EmbeddedEngine) -> None:
    ids = tuple(engine.loaded.codec.encode("Hello"))

    def distinct(sampling: Sampling) -> int:
        events = engine.stream(GenerationRequest(ids, 40, sampling))
        return len({event.token.id for event in events if event.token})

    plain = distinct(Sampling())
    assert plain < 40
    assert distinct(Sampling(presence_penalty=2.0, frequency_penalty=2.0)) > plain
    assert distinct(Sampling(repetition_penalty=1e9)) > plain


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=2**64 - 1, temperature=1e-300),
        Sampling(seed=0, temperature=1e300, top_k=10**9),
        Sampling(seed=-1, top_p=1e-300),
        Sampling(seed=3, typical_p=1e-300, repetition_penalty=1e-300),
    ],
)
def test_extreme_settings_still_answer(engine: EmbeddedEngine, sampling: Sampling) -> None:
    ask(engine, "Hello", sampling, most=5)
    assert engine.stats().failed == 0


def test_a_near_zero_temperature_is_greedy(engine: EmbeddedEngine) -> None:
    assert ask(engine, "Hello", Sampling(seed=1, temperature=1e-40)) == ask(engine, "Hello")


def test_a_failure_inside_the_model_ends_that_request_alone(
    scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("cat")
    script.fails_at = 1
    for _ in range(3):
        assert scripted_engine.health()
        *_, last = scripted_engine.stream(GenerationRequest((5,), 9))
        assert last.error == "the model raised RuntimeError; the server's log has the details"
    assert not scripted_engine.health()  # three in a row
    script.fails_at = None
    assert ask(scripted_engine, "Hello") == "cat"
    assert scripted_engine.health()
    assert scripted_engine.stats().active == 0


def test_more_than_it_can_hold_is_refused_and_a_cancelled_request_frees_its_place(
    scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("cat mat")
    script.gate.clear()
    request, inbox = GenerationRequest((5,), 9), queue.SimpleQueue[Event]()
    ids = [scripted_engine.submit(request, inbox.put) for _ in range(3)]
    with pytest.raises(OverloadedError):
        scripted_engine.submit(request, inbox.put)
    for request_id in ids:
        scripted_engine.cancel(request_id)
    script.gate.set()
    while (event := inbox.get(timeout=20)).finish_reason != "cancelled" or scripted_engine.stats().cancelled < 3:
        assert event.error is None
    assert scripted_engine.stats().active == scripted_engine.stats().waiting == 0
    assert ask(scripted_engine, "Hello") == "cat mat"


def test_closing_the_stream_cancels_the_request(
    scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("cat mat")
    script.gate.clear()
    events = scripted_engine.stream(GenerationRequest((5,), 9))
    next(events)
    events.close()  # type: ignore[attr-defined]
    script.gate.set()
    assert ask(scripted_engine, "Hello") == "cat mat"
    assert scripted_engine.stats().cancelled == 1


def test_a_receiver_that_is_gone_does_not_stop_the_others(
    scripted_engine: EmbeddedEngine, say: Callable[[str], list[int]]
) -> None:
    say("cat mat")

    def gone(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    scripted_engine.submit(GenerationRequest((5,), 9), gone)
    assert ask(scripted_engine, "Hello") == "cat mat"
    assert scripted_engine.stats().cancelled == 1


def test_closing_the_engine_ends_what_runs(
    scripted: LoadedModel, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("cat mat")
    engine, inbox = EmbeddedEngine(scripted), queue.SimpleQueue[Event]()
    script.gate.clear()
    engine.submit(GenerationRequest((5,), 9), inbox.put)
    inbox.get(timeout=20)
    script.reached.wait(20)
    engine._closed = True  # close() would wait for the gate
    script.gate.set()
    engine.close()
    last = inbox.get(timeout=20)
    while not last.last:
        last = inbox.get(timeout=20)
    assert last.error == "the server is shutting down"
    assert not engine.health()
    with pytest.raises(EngineClosedError):
        engine.submit(GenerationRequest((5,), 9), inbox.put)


def test_special_tokens_are_not_text(engine: EmbeddedEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    assert engine.loaded.codec.special_ids == {0, 1, 2, 3}
    assert engine.loaded.eos_token_ids == {0, 2}
    assert tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
