"""The chat: in a terminal, through pipes, on a page, and against a server."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from serving_helpers import HTTP, Script, serving_app
from starlette.testclient import TestClient

from ingot.recipe import InputError, build_recipe
from ingot.serving import chat
from ingot.serving.backends import ChatError, LocalBackend, Piece, Pieces, RemoteBackend, Settings
from ingot.serving.chat import ChatRecipe, chat_folder, run
from ingot.serving.chat_page import PageOptions, build_page, create_page
from ingot.serving.engine import EmbeddedEngine
from ingot.serving.loading import LoadedModel
from ingot.serving.terminal import CONTROL, Terminal, changed
from ingot.serving.text import Message

ROOT = Path(__file__).parents[2]
GREEDY = Settings(temperature=0.0, max_tokens=10)


class Echo:
    """A backend that repeats what it was sent, so that a test sees the conversation that a model would."""

    name, raw, completes, most_tokens = "echo", False, True, 100

    def __init__(self) -> None:
        self.seen: list[list[Message]] = []
        self.answer: Callable[[str], Sequence[str]] = lambda text: ["you said ", text]

    def reply(self, messages: Sequence[Message], settings: Settings) -> Pieces:
        """Repeats the last message."""
        self.seen.append(list(messages))
        for text in self.answer(messages[-1]["content"]):
            yield Piece(text)

    def complete(self, text: str, settings: Settings) -> Pieces:
        """Goes on after the text."""
        yield Piece(" and so on")


def talk(backend: Any, *lines: str, system: str | None = None, settings: Settings = GREEDY) -> str:
    """What comes out when these lines go in."""
    output = io.StringIO()
    Terminal(backend, settings, system, io.StringIO("".join(f"{line}\n" for line in lines)), output).run()
    return output.getvalue()


def test_a_conversation_keeps_its_turns() -> None:
    echo = Echo()
    assert talk(echo, "one", "", "two", system="Be kind.") == "you said one\nyou said two\n"
    assert [message["role"] for message in echo.seen[1]] == ["system", "user", "assistant", "user"]
    assert echo.seen[1][2]["content"] == "you said one"


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    lines = [
        "one",
        "/clear",
        "two",
        "/system Be brief.",
        "three",
        " /four",
        "/nonsense",
        "/status",
        "/help",
        "/exit",
        "no",
    ]
    assert talk(echo, *lines) == "you said one\nyou said two\nyou said three\nyou said /four\n"
    assert [len(messages) for messages in echo.seen] == [1, 1, 2, 4]
    notes = capsys.readouterr().err
    assert "/nonsense: no such command; /help lists them" in notes
    assert "4 messages; system: Be brief." in notes
    assert "/set temperature=0.7" in notes


def test_set_changes_settings_and_names_what_is_wrong() -> None:
    settings = changed(Settings(), "temperature=0 top_k=5 seed=3")
    assert (settings.temperature, settings.top_k, settings.seed) == (0.0, 5, 3)
    assert changed(settings, "seed=none").seed is None
    for text, message in [
        ("temprature=1", "temprature: no such setting; did you mean 'temperature'?"),
        ("top_p=2", "top_p: input should be less than or equal to 1, got 2"),
        ("max_tokens=many", "max_tokens: input should be a valid integer, got 'many'"),
        ("", "/set takes name=value pairs"),
        ("temperature 1", "/set takes name=value pairs"),
    ]:
        with pytest.raises(InputError) as caught:
            changed(settings, text)
        assert str(caught.value).startswith(message)


def test_control_characters_do_not_reach_the_terminal() -> None:
    echo = Echo()
    echo.answer = lambda text: ["a\x1b[2Jb\r\x07\x9bc\td"]
    assert talk(echo, "x") == "a[2Jbc\td\n"


def test_an_interrupted_answer_is_kept_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()

    def interrupted(text: str) -> Iterator[str]:
        yield "half "
        if text == "one":
            raise KeyboardInterrupt  # what Ctrl-C does while the terminal waits for a piece
        yield "whole"

    echo.answer = interrupted  # type: ignore[assignment]
    assert talk(echo, "one", "two") == "half \nhalf whole\n"
    assert echo.seen[1][1] == {"role": "assistant", "content": "half "}
    assert "(stopped)" in capsys.readouterr().err


def test_the_engine_answers_with_the_model(loaded: LoadedModel, engine: EmbeddedEngine) -> None:
    text = talk(LocalBackend(loaded, engine), "Hello")
    ids = loaded.codec.encode_chat([{"role": "user", "content": "Hello"}])
    prompt = torch.tensor([ids])
    output = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
    assert text == CONTROL.sub("", loaded.codec.decode(output[0, len(ids) :].tolist())) + "\n"


def test_the_oldest_messages_make_room(loaded: LoadedModel, engine: EmbeddedEngine) -> None:
    backend = LocalBackend(loaded, engine)
    turn = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello you"}]
    question = {"role": "user", "content": "How are you"}
    system = {"role": "system", "content": "Be kind."}
    pieces = list(backend.reply([system, *turn * 5, question], GREEDY))
    left_out = pieces[0].left_out
    assert left_out > 0
    assert left_out % 2 == 0
    assert [piece.left_out for piece in pieces[1:]] == [0] * (len(pieces) - 1)
    fitting = list(backend.reply([system, *(turn * 5)[left_out:], question], GREEDY))
    assert [p.text for p in fitting] == [p.text for p in pieces]
    assert fitting[0].left_out == 0
    with pytest.raises(ChatError, match="say it shorter"):
        list(backend.reply([{"role": "user", "content": "Hello " * 90}], GREEDY))


def test_a_base_model_continues_the_text(
    loaded: LoadedModel, engine: EmbeddedEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = LocalBackend(loaded, engine, raw=True)
    output = talk(backend, "The cat sat on", "The cat sat on")
    first, second = output[: len(output) // 2], output[len(output) // 2 :]
    assert first == second  # nothing is remembered
    assert output.startswith("The cat sat on")
    assert "it continues your text" in capsys.readouterr().err
    long = "".join(piece.text for piece in backend.complete("Hello " * 200, GREEDY))
    assert long == "".join(piece.text for piece in backend.complete("Hello " * 100, GREEDY))


def test_chat_against_a_server_gives_the_same_answer(url: str, loaded: LoadedModel, engine: EmbeddedEngine) -> None:
    remote = RemoteBackend(url)
    assert remote.name == "tiny"
    assert talk(remote, "Hello") == talk(LocalBackend(loaded, engine), "Hello")
    seeded = Settings(temperature=1.2, seed=4, max_tokens=8, top_k=20)
    assert talk(remote, "Hello", settings=seeded) == talk(LocalBackend(loaded, engine), "Hello", settings=seeded)
    turn = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello you"}]
    pieces = list(remote.reply([*turn * 5, {"role": "user", "content": "How are you"}], GREEDY))
    assert pieces[0].left_out > 0
    with pytest.raises(ChatError, match="must have less than 96 tokens"):
        list(remote.reply([{"role": "user", "content": "Hello " * 90}], GREEDY))


def test_a_failure_of_the_server_is_told(
    scripted_url: str, script: Script, say: Callable[[str], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    say("one two")
    script.fails_at = 2
    talk(RemoteBackend(scripted_url), "Hello")
    assert "error: Request failed during generation" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"run\.url: no OpenAI-compatible server answers at http://127\.0\.0\.1:9"):
        RemoteBackend("http://127.0.0.1:9")


def recipe(model_path: Path, folder: Path, **run_keys: Any) -> ChatRecipe:
    tree = {"model": {"path": str(model_path)}, "generation": {"temperature": 0.0, "max_tokens": 10}}
    return build_recipe(ChatRecipe, {**tree, "run": {"dir": str(folder), **run_keys}})


def test_run_answers_what_stands_on_its_input(
    model_path: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for keys in ({}, {"url": url}):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        assert run(recipe(model_path, tmp_path, **keys)) == {"model": "tiny"}
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != "\n"
    assert "tiny" in (tmp_path / "log.txt").read_text()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert chat_folder(model_path, dir=str(tmp_path)) == {"model": "tiny"}


def test_contradictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.path: missing; name a folder with a model"):
        build_recipe(ChatRecipe, {"run": {}})
    with pytest.raises(InputError, match=r"generation\.raw: a server's chat API cannot continue plain text"):
        build_recipe(ChatRecipe, {"generation": {"raw": True}, "run": {"url": "http://x"}})
    with pytest.raises(InputError, match=r"run\.api_key: is for the server at run\.url"):
        build_recipe(ChatRecipe, {"model": {"path": "x"}, "run": {"api_key": "k"}})
    with pytest.raises(InputError, match="does not exist; make it with: ingot export"):
        run(recipe(tmp_path / "nothing", tmp_path))


def test_through_a_pipe(url: str, tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(f"run: {{dir: {tmp_path}, url: '{url}'}}\n")
    command = [sys.executable, "scripts/chat.py", "--config", str(tmp_path / "chat.yaml"), "--generation.max_tokens=5"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, input=b"Hello \xff\n", capture_output=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().endswith("\n")
    assert b"/help lists the commands" in done.stderr


class Keyboard(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def test_at_a_terminal_ctrl_c_keeps_and_ctrl_d_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["one", KeyboardInterrupt, "two", EOFError])

    def type_line(prompt: str) -> str:
        key = next(typed)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", type_line)
    output = io.StringIO()
    Terminal(Echo(), GREEDY, None, Keyboard(), output).run()
    assert output.getvalue() == "you said one\nyou said two\n\n"
    assert "/exit or Ctrl-D leaves" in capsys.readouterr().err


def test_run_serves_the_page(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    def serve_app(app: Any, listener: Any) -> None:
        with TestClient(app) as client:
            pages.append(client.get("/").text)

    monkeypatch.setattr(chat, "serve_app", serve_app)
    assert run(recipe(model_path, tmp_path, web=True, host="0.0.0.0", port=0)) == {"model": "tiny"}
    assert "Ingot: tiny" in pages[0]
    log = (tmp_path / "log.txt").read_text()
    assert "chat with tiny at http://127.0.0.1:" in log
    assert "anyone who reaches 0.0.0.0 can use this page" in log


@contextmanager
def visiting(address: str) -> Iterator[Client]:
    """A client of the page, which keeps a connection open until it is closed."""
    client = Client(address, verbose=False, analytics_enabled=False)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def page(loaded: LoadedModel, engine: EmbeddedEngine) -> Iterator[str]:
    """The address of a chat page over the tiny model."""
    app = create_page(LocalBackend(loaded, engine), GREEDY, PageOptions())
    with serving_app(app) as address:
        yield address


def test_the_page_streams(page: str, loaded: LoadedModel, engine: EmbeddedEngine) -> None:
    with visiting(page) as client:
        job = client.submit("Hello", "", 0.0, 0.95, 10, api_name="/chat")
        answer = job.result(timeout=30)
        assert CONTROL.sub("", answer) + "\n" == talk(LocalBackend(loaded, engine), "Hello")
        assert len(job.outputs()) > 1
        assert all(answer.startswith(part) for part in job.outputs())
        completed = client.predict("The cat", 0.0, 0.95, 10, api_name="/complete")
        assert completed + "\n" == talk(LocalBackend(loaded, engine, raw=True), "The cat")
        with pytest.raises(AppError, match="less than minimum"):
            client.predict("Hello", "", -3.0, 0.95, 10, api_name="/chat")


def test_the_page_remembers_the_conversation() -> None:
    echo = Echo()
    page = create_page(echo, GREEDY, PageOptions())
    with serving_app(page) as address, visiting(address) as client:
        for text in ("one", "two"):
            client.predict(text, "Be kind.", 0.0, 0.95, 10, api_name="/chat")
    assert echo.seen[1] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "you said one"},
        {"role": "user", "content": "two"},
    ]


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_from_answers(page: str) -> None:
    reply = HTTP.get(page)
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert "fonts.googleapis.com" not in reply.text
    config = HTTP.get(f"{page}/config").json()
    assert config["analytics_enabled"] is False
    chatbots = [c["props"] for c in config["components"] if c["type"] == "chatbot"]
    assert [(c["sanitize_html"], c["allow_file_downloads"]) for c in chatbots] == [(True, False)]


def test_the_page_of_a_base_model_has_no_chat(loaded: LoadedModel, engine: EmbeddedEngine) -> None:
    config = build_page(LocalBackend(loaded, engine, raw=True), GREEDY, PageOptions()).config
    assert [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"] == ["Raw completion"]
    config = build_page(Echo(), GREEDY, PageOptions(system_prompt="Be kind.")).config
    assert [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"] == ["Chat", "Raw completion"]


def test_stopping_on_the_page_ends_the_answer() -> None:
    echo, closed = Echo(), threading.Event()

    def endless(text: str) -> Iterator[str]:
        try:
            while not closed.wait(0.01):
                yield "more "
        finally:
            closed.set()

    echo.answer = endless  # type: ignore[assignment]
    with serving_app(create_page(echo, GREEDY, PageOptions())) as address, visiting(address) as client:
        job = client.submit("Hello", "", 0.0, 0.95, 10, api_name="/chat")
        while not job.outputs():
            closed.wait(0.01)
        job.cancel()
        assert closed.wait(20)


def test_a_failure_is_told_on_the_page(
    scripted: LoadedModel, scripted_engine: EmbeddedEngine, script: Script, say: Callable[[str], list[int]]
) -> None:
    say("one two")
    script.fails_at = 2
    app = create_page(LocalBackend(scripted, scripted_engine), GREEDY, PageOptions())
    with serving_app(app) as address, visiting(address) as client, pytest.raises(AppError, match="the model raised"):
        client.predict("Hello", "", 0.0, 0.95, 10, api_name="/chat")
