"""The chat as a web page: Gradio over a backend, loading nothing from the network and sending nothing to it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from starlette.types import ASGIApp, Message, Receive, Scope, Send  # noqa: E402

from ingot.serving.backends import Backend, ChatError, Pieces, Settings  # noqa: E402

# The page may use what this server sends and nothing else: an answer that holds a script, or an image at another
# address, cannot carry anything away.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
MOST_WAITING = 64  # visitors' requests; more are told that the page is busy
THEME = gr.themes.Soft(
    font=["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
)


@dataclass(frozen=True)
class PageOptions:
    """What the page offers beside the settings of an answer."""

    system_prompt: str | None = None
    answers_at_once: int = 4  # written at the same time, over all visitors


def create_page(backend: Backend, settings: Settings, options: PageOptions) -> FastAPI:
    """The page as an application to serve."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(AddPolicy)
    return gr.mount_gradio_app(
        app, build_page(backend, settings, options), path="/", ssr_mode=False, show_error=True,
        enable_monitoring=False, footer_links=["settings"], max_file_size=0, theme=THEME,
    )  # fmt: skip


def build_page(backend: Backend, settings: Settings, options: PageOptions) -> gr.Blocks:
    """Tabs for conversation and for raw completion, as far as the backend offers them."""
    with gr.Blocks(title=f"Ingot: {backend.name}", analytics_enabled=False, fill_height=True) as page:
        gr.Markdown(f"### {backend.name}")
        if not backend.raw:
            with gr.Tab("Chat"):
                _chat_tab(backend, settings, options)
        if backend.completes:
            with gr.Tab("Raw completion"):
                _completion_tab(backend, settings, options)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=options.answers_at_once)
    return page


def _sliders(backend: Backend, settings: Settings) -> list[gr.Slider]:
    """Sliders that are shown where they are used."""
    most = backend.most_tokens
    ranges = [
        ("Temperature (0: always the likeliest)", 0, max(2.0, settings.temperature), settings.temperature, 0.05),
        ("Top-p", 0.01, 1, settings.top_p, 0.01),
        ("Most tokens in an answer", 1, most, min(settings.max_tokens, most), 1),
    ]
    return [
        gr.Slider(low, high, value, label=name, step=step, render=False) for name, low, high, value, step in ranges
    ]


def _chat_tab(backend: Backend, settings: Settings, options: PageOptions) -> None:
    def answer(
        message: str,
        history: list[dict[str, Any]],
        system_prompt: str,
        temperature: float,
        top_p: float,
        max_tokens: float,
    ) -> Iterator[str]:
        messages = [{"role": m["role"], "content": _text(m["content"])} for m in history]
        messages.append({"role": "user", "content": message})
        if system_prompt.strip():
            messages.insert(0, {"role": "system", "content": system_prompt})
        yield from _growing(backend.reply(messages, _changed(settings, temperature, top_p, max_tokens)))

    prompt = gr.Textbox(options.system_prompt or "", label="System prompt", lines=2, render=False)
    chatbot = gr.Chatbot(
        sanitize_html=True, allow_tags=False, allow_file_downloads=False, buttons=["copy", "copy_all"], scale=1,
        show_label=False, placeholder="Ask something.", height="55vh", render=False,
    )  # fmt: skip
    gr.ChatInterface(
        answer, chatbot=chatbot, additional_inputs=[prompt, *_sliders(backend, settings)],
        additional_inputs_accordion=gr.Accordion("System prompt and sampling", open=False, render=False),
        editable=True, flagging_mode="never", save_history=False, cache_examples=False,
        concurrency_limit=options.answers_at_once, analytics_enabled=False, api_name="chat",
    )  # fmt: skip


def _completion_tab(backend: Backend, settings: Settings, options: PageOptions) -> None:
    def complete(text: str, temperature: float, top_p: float, max_tokens: float) -> Iterator[str]:
        for continuation in _growing(backend.complete(text, _changed(settings, temperature, top_p, max_tokens))):
            yield text + continuation

    if backend.raw:
        gr.Markdown("This is a base model: it continues a text and does not answer questions.")
    text = gr.Textbox(label="Text", lines=12, placeholder="Once upon a time", max_length=100_000)
    with gr.Row():
        go, stop = gr.Button("Continue", variant="primary"), gr.Button("Stop")
    sliders = _sliders(backend, settings)
    with gr.Accordion("Sampling", open=False):
        for slider in sliders:
            slider.render()
    writing = go.click(
        complete, [text, *sliders], text, concurrency_limit=options.answers_at_once, api_name="complete"
    )
    stop.click(None, cancels=[writing], api_visibility="private")


def _growing(pieces: Pieces) -> Iterator[str]:
    """The answer so far, each time it grows; what goes wrong becomes a message on the page."""
    text = ""
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                if piece.left_out:
                    gr.Info(f"The conversation is longer than the model can read: {piece.left_out} messages left out.")
                text += piece.text
                if piece.text:
                    yield text
    except ChatError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _changed(settings: Settings, temperature: float, top_p: float, max_tokens: float) -> Settings:
    """Settings with the values of the sliders, whose bounds Gradio has checked."""
    return settings.model_copy(update={"temperature": temperature, "top_p": top_p, "max_tokens": int(max_tokens)})


def _text(content: Any) -> str:
    """The text of a message in Gradio's form: a string, or parts of which only text can be here."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class AddPolicy:
    """Adds the content policy to every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and its reply back with the policy."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)
