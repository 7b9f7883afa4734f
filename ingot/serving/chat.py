"""The chat stage: talk to a model in the terminal or on a web page, in this process or through a server."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pydantic import Field

from ingot.recipe import FilePath, Recipe, RunSection, build_recipe
from ingot.runs import check_inputs, get_logger
from ingot.serving.backends import Backend, LocalBackend, RemoteBackend, Settings
from ingot.serving.serve import KEY_VARIABLE, LOOPBACK, LoadOptions, ModelPath, listen, log_file, serve_app, url_of

logger: logging.Logger = get_logger(__name__)

ANSWERS_AT_ONCE = 4


class ChatModel(LoadOptions):
    """Which model answers; not read when `run.url` is given."""

    path: ModelPath | None = Field(None, description="a run folder with a model, or any Hub-format folder")


class Generation(Settings):
    """What the model is told and how it answers."""

    system_prompt: str | None = Field(None, description="what stands before every conversation")
    raw: bool | None = Field(
        None, description="true: continue plain text; false: answer messages; null: as the model was trained"
    )


class ChatRun(RunSection):
    """Where the chat takes place."""

    dir: FilePath = Field(Path("runs/chat"), description="folder for the chat's log (it holds no conversations)")
    web: bool = Field(False, description="a page in the browser instead of the terminal")
    host: str = Field("127.0.0.1", description="address of the page")
    port: int = Field(7860, ge=0, le=65535, description="port of the page; 0 takes any free one")
    url: str | None = Field(None, min_length=1, description="an OpenAI-compatible server to talk to instead")
    api_key: str | None = Field(None, min_length=1, description=f"key for that server; or set {KEY_VARIABLE}")
    model_name: str | None = Field(None, min_length=1, description="model to ask for there; else its first")


class ChatRecipe(Recipe, stage="chat"):
    """Talk to a model in the terminal, or on a web page with --run.web=true."""

    model: ChatModel = Field(default_factory=lambda: ChatModel.model_validate({}))
    generation: Generation = Field(default_factory=lambda: Generation.model_validate({}))
    run: ChatRun = Field(default_factory=lambda: ChatRun.model_validate({}))

    def problems(self) -> Iterator[str]:
        """What contradicts itself."""
        remote = self.run.url is not None
        if not remote and self.model.path is None:
            yield "model.path: missing; name a folder with a model, or a server with run.url"
        if remote and self.generation.raw:
            yield "generation.raw: a server's chat API cannot continue plain text; leave out run.url"
        if not remote and self.run.api_key is not None:
            yield "run.api_key: is for the server at run.url, which is not given"
        if not remote and self.run.model_name is not None:
            yield "run.model_name: is for the server at run.url, which is not given"


def chat_folder(path: Path, **run_keys: Any) -> dict[str, Any]:
    """Talks to the model in a folder with the default recipe; `run_keys` are those of the run section."""
    return run(build_recipe(ChatRecipe, {"model": {"path": str(path)}, "run": run_keys}, str(path)))


def run(recipe: ChatRecipe) -> dict[str, Any]:
    """Chats until the person leaves.

    Raises: InputError when the model cannot be loaded, or the server or the port not be reached.
    """
    if recipe.run.url is None:
        check_inputs(recipe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_file(recipe.run.dir))
        if recipe.run.web:
            listener = stack.enter_context(contextlib.closing(listen(recipe.run.host, recipe.run.port)))
        backend = stack.enter_context(open_backend(recipe))
        if not recipe.run.web:
            _terminal(recipe, backend)
            return {"model": backend.name}

        from ingot.serving.chat_page import PageOptions, create_page

        options = PageOptions(recipe.generation.system_prompt, ANSWERS_AT_ONCE)
        page = create_page(backend, _settings(recipe), options)
        if recipe.run.host not in LOOPBACK:
            logger.warning("anyone who reaches %s can use this page; it asks for no password", recipe.run.host)
        logger.info("chat with %s at %s; Ctrl-C stops", backend.name, url_of(listener))
        serve_app(page, listener)
        return {"model": backend.name}


def _settings(recipe: ChatRecipe) -> Settings:
    return Settings(**{name: getattr(recipe.generation, name) for name in Settings.model_fields})


@contextlib.contextmanager
def open_backend(recipe: ChatRecipe) -> Iterator[Backend]:
    """The server at `run.url`, or the model in this process.

    Raises: InputError.
    """
    section, options = recipe.model, recipe.run
    if options.url is not None:
        if section.path is not None:
            logger.info("talking to %s; model.path (%s) is not loaded", options.url, section.path)
        yield RemoteBackend(options.url, options.api_key or os.environ.get(KEY_VARIABLE), options.model_name)
        return
    assert section.path is not None
    from ingot.serving.engine import EmbeddedEngine
    from ingot.serving.loading import load_model

    loaded = load_model(section.path, section.dtype, section.device, section.trust_remote_code)
    engine = EmbeddedEngine(loaded, max_active=ANSWERS_AT_ONCE)
    try:
        yield LocalBackend(loaded, engine, recipe.generation.raw)
    finally:
        engine.close()


def _terminal(recipe: ChatRecipe, backend: Backend) -> None:
    from ingot.serving.terminal import Terminal

    for stream in (sys.stdin, sys.stdout):
        _tolerate(stream)
    Terminal(backend, _settings(recipe), recipe.generation.system_prompt, sys.stdin, sys.stdout).run()


def _tolerate(stream: TextIO) -> None:
    """Lets a pipe or a terminal with another encoding show replacement characters instead of stopping the chat."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
