"""Conversations as the text of documents: with names before the messages, or through a chat template."""

from pathlib import Path
from typing import Any

from ingot.data.rows import BadRow
from ingot.data.sources import Conversations
from ingot.recipe import InputError

Messages = list[dict[str, str]]
ROLE_NAMES = {"human": "user", "gpt": "assistant"}  # other names for them in published datasets
TEMPLATE = "chat_template.jinja"


class Renderer:
    """Turns lists of {role, content} (or {from, value}) into text.

    Raises: InputError when the chat template is not there.
    """

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self.template = None if conversations.chat_template is None else _read(conversations.chat_template)

    def text(self, value: Any) -> str | BadRow:
        """The text of a conversation, or why it has none."""
        messages = self._messages(value)
        if isinstance(messages, BadRow):
            return messages
        if self.template is not None:
            return self._by_template(messages)
        names = self.conversations.names
        return self.conversations.between.join(names[m["role"]] + m["content"] for m in messages)

    def _messages(self, value: Any) -> Messages | BadRow:
        if not isinstance(value, list):
            return BadRow("not_text", f"column '{self.conversations.column}' holds no list of messages: {value!r:.60}")
        messages = []
        for message in value:
            known = message if isinstance(message, dict) else {}
            role, content = known.get("role", known.get("from")), known.get("content", known.get("value"))
            role = ROLE_NAMES.get(str(role), role)
            if not isinstance(content, str) or role not in self.conversations.names:
                roles = ", ".join(self.conversations.names)
                return BadRow("not_text", f"a message needs a role ({roles}) and text, got {message!r:.60}")
            messages.append({"role": role, "content": content})
        return messages

    def _by_template(self, messages: Messages) -> str | BadRow:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(conversations=[messages], chat_template=self.template)[0]
        except (TemplateError, ValueError, TypeError) as error:
            return BadRow("not_text", f"the chat template refuses this conversation: {error}")
        return str(rendered[0])


def _read(path: Path) -> str:
    file = path / TEMPLATE if path.is_dir() else path
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"data.sources: conversations.chat_template: {file} cannot be read: {error.strerror}"
        ) from None
