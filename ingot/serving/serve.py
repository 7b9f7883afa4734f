"""The serve stage: a model folder behind an HTTP server that OpenAI's and text-generation-inference's clients read."""

import contextlib
import logging
import logging.handlers
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ingot.recipe import FilePath, InputError, Recipe, RunSection, Section, StageFolder, build_recipe
from ingot.runs import check_inputs, get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ingot.serving.engine import EmbeddedEngine

logger: logging.Logger = get_logger(__name__)

KEY_VARIABLE = "INGOT_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_SECONDS = 5  # for requests that are still running when the server is told to stop

ModelPath = Annotated[FilePath, StageFolder("export", "dpo", "sft", "pretrain", hub=True)]


class LoadOptions(Section):
    """How a model is loaded."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="numbers to compute in; auto: float32 on a CPU, elsewhere as saved"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: the GPU when there is one")
    trust_remote_code: bool = Field(False, description="run the Python code of a folder that is not Ingot's own")


class ServedModel(LoadOptions):
    """Which model answers."""

    path: ModelPath = Field(description="a run folder with a model, or any Hub-format folder")


class ServeRun(RunSection):
    """Where the server listens and how much it takes on."""

    dir: FilePath = Field(Path("runs/serve"), description="folder for the server's log")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    api_key: str | None = Field(None, min_length=1, description=f"key that clients must send; or set {KEY_VARIABLE}")
    model_name: str | None = Field(None, min_length=1, description="the model's name in replies; else the folder's")
    max_active_requests: int = Field(4, gt=0, description="requests that generate at the same time")
    max_waiting_requests: int = Field(32, ge=0, description="requests that wait for a place; more are told 429")
    max_total_tokens: int | None = Field(
        None, gt=1, description="prompt and answer together; else the model's context"
    )


class ServeRecipe(Recipe, stage="serve"):
    """Serve a model over HTTP: /v1/chat/completions, /v1/models, /generate, /generate_stream, /health."""

    model: ServedModel
    run: ServeRun = Field(default_factory=lambda: ServeRun.model_validate({}))


def serve_folder(path: Path, **run_keys: Any) -> dict[str, Any]:
    """Serves a folder with the default recipe; `run_keys` are those of the run section, such as port=8080."""
    return run(build_recipe(ServeRecipe, {"model": {"path": str(path)}, "run": run_keys}, str(path)))


def run(recipe: ServeRecipe) -> dict[str, Any]:
    """Serves until it is interrupted; returns what was served.

    Raises: InputError when the port is taken or the model cannot be loaded.
    """
    check_inputs(recipe)
    with contextlib.closing(listen(recipe.run.host, recipe.run.port)) as listener, log_file(recipe.run.dir):
        from ingot.serving.engine import EmbeddedEngine
        from ingot.serving.loading import load_model

        section, options = recipe.model, recipe.run
        loaded = load_model(
            section.path, section.dtype, section.device, section.trust_remote_code, options.model_name,
            options.max_total_tokens,
        )  # fmt: skip
        engine = EmbeddedEngine(loaded, options.max_active_requests, options.max_waiting_requests)
        try:
            _serve(engine, listener, _api_key(recipe))
        finally:
            engine.close()
        stats = engine.stats()
    logger.info("served %d requests, %d tokens", stats.finished, stats.generated_tokens)
    return {"requests": stats.finished, "failed": stats.failed, "generated_tokens": stats.generated_tokens}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is known before a model is loaded.

    Raises: InputError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"run.port: cannot listen on {host}:{port}: {error.strerror}; choose another with --run.port={port + 1}"
        ) from None
    return listener


@contextlib.contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Writes the log to `log.txt` in a folder as well."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        folder / "log.txt", maxBytes=10_000_000, backupCount=3, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ingot", "uvicorn.error")]
    for target in loggers:
        target.addHandler(handler)
    try:
        yield
    finally:
        for target in loggers:
            target.removeHandler(handler)
        handler.close()


def _api_key(recipe: ServeRecipe) -> str | None:
    key = recipe.run.api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and recipe.run.host not in LOOPBACK:
        logger.warning(
            "anyone who reaches %s can use this server; set %s to ask for a key", recipe.run.host, KEY_VARIABLE
        )
    return key


def _serve(engine: "EmbeddedEngine", listener: socket.socket, api_key: str | None) -> None:
    from ingot.serving.app import create_app
    from ingot.serving.exchange import Service

    loaded, url = engine.loaded, url_of(listener)
    app = create_app(Service(engine, loaded.codec, loaded.name, loaded.context_length), api_key)
    logger.info("serving %s at %s (OpenAI clients: base_url=%s/v1); Ctrl-C stops", loaded.name, url, url)
    serve_app(app, listener)


def url_of(listener: socket.socket) -> str:
    """The address that a browser reaches a listening socket under."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_app(app: "FastAPI", listener: socket.socket) -> None:
    """Serves an application until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
