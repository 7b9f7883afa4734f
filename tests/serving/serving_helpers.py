"""A model that says what a test wants, and a server in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import torch
import uvicorn
from fastapi import FastAPI

from ingot.serving.app import create_app
from ingot.serving.engine import EmbeddedEngine
from ingot.serving.exchange import Service
from ingot.serving.serve import listen, url_of

HTTP = httpx.Client(timeout=30)  # one for all tests: making a client costs more than a request


class Script(torch.nn.Module):
    """A model that says the given ids in turn, waits at a gate when there is one, and breaks on demand."""

    device = torch.device("cpu")

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.answer: list[int] = [0]
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()  # set when the model waits at its gate
        self.fails_at: int | None = None

    def forward(
        self, input_ids: torch.Tensor, past_key_values: int | None, use_cache: bool, logits_to_keep: int = 0
    ) -> SimpleNamespace:
        """Logits that make the next id of the answer certain; the cache counts the steps."""
        step = past_key_values or 0
        if step > 0:
            self.reached.set()
            assert self.gate.wait(20)
        if self.fails_at == step:
            raise RuntimeError("this forward pass was told to fail at /secret/path")
        logits = torch.full((1, input_ids.shape[1], self.vocab_size), -100.0)
        logits[..., self.answer[min(step, len(self.answer) - 1)]] = 0.0
        return SimpleNamespace(logits=logits, past_key_values=step + 1)


@contextmanager
def serving(engine: EmbeddedEngine, api_key: str | None = None) -> Iterator[str]:
    """The address of a server over an engine."""
    loaded = engine.loaded
    service = Service(engine, loaded.codec, loaded.name, loaded.context_length)
    with serving_app(create_app(service, api_key)) as address:
        yield address


@contextmanager
def serving_app(app: FastAPI) -> Iterator[str]:
    """The address of an application that is served in a thread."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
