"""The chat in a terminal, and through pipes: questions from standard input, answers to standard output."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TextIO

from pydantic import ValidationError

from ingot.recipe import InputError, nearest
from ingot.recipe_yaml import apply_overrides
from ingot.serving.backends import Backend, ChatError, Piece, Pieces, Settings
from ingot.serving.text import Message

HELP = """\
/help                    this list
/clear                   forget the conversation
/system TEXT             set the system prompt (without TEXT: remove it) and forget the conversation
/set temperature=0.7 ... change temperature, top_p, top_k, max_tokens or seed (seed=none: a new one each time)
/status                  the model, the settings and the length of the conversation
/exit                    leave (also Ctrl-D)
Ctrl-C stops an answer. A line that begins with a space is sent as it is, also when a slash follows."""

# Control characters move the cursor, change colours or retitle a terminal; a model's text must not.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal:
    """One conversation on a pair of streams."""

    def __init__(self, backend: Backend, settings: Settings, system: str | None, read: TextIO, write: TextIO) -> None:
        self.backend, self.settings, self.system = backend, settings, system
        self._read, self._write = read, write
        self._interactive = read.isatty()
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() a history and line editing
        self._turns: list[Message] = []

    def run(self) -> None:
        """Answers every line until the input ends."""
        self._note(f"{self.backend.name}: /help lists the commands, /exit leaves")
        if self.backend.raw:
            self._note("this is a base model: it continues your text and does not answer questions")
        for line in self._lines():
            if line.startswith("/"):
                if line.split()[0] in ("/exit", "/quit"):
                    return
                self._command(line)
            elif line.strip():
                self._answer(line.strip())

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("\nyou> ") if self._interactive else self._read.readline()
            except KeyboardInterrupt:
                self._note("\n/exit or Ctrl-D leaves")
                continue
            except EOFError:
                self._write.write("\n")
                return
            if not self._interactive and not line:
                return
            yield line.rstrip("\n")

    def _note(self, text: str) -> None:
        """A line for the person, kept apart from the answers."""
        print(text, file=sys.stderr, flush=True)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        try:
            if name == "/help":
                self._note(HELP)
            elif name == "/clear":
                self._turns.clear()
            elif name == "/system":
                self.system = rest.strip() or None
                self._turns.clear()
            elif name == "/set":
                self.settings = changed(self.settings, rest)
            elif name == "/status":
                self._note(f"{self.backend.name}; {self.settings}; {len(self._turns)} messages; system: {self.system}")
            else:
                self._note(f"{name}: no such command; /help lists them")
        except InputError as error:
            self._note(f"error: {error}")

    def _answer(self, text: str) -> None:
        question: Message = {"role": "user", "content": text}
        pieces = self.backend.complete(text, self.settings) if self.backend.raw else self._reply(question)
        if self.backend.raw:
            self._write.write(text)
        answer = ""
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    self._warn_left_out(piece)
                    answer += piece.text
                    self._write.write(CONTROL.sub("", piece.text))
                    self._write.flush()
        except KeyboardInterrupt:
            self._note(" (stopped)")
        except ChatError as error:
            self._note(f"error: {error}")
        self._write.write("\n")
        self._write.flush()
        if answer:
            self._turns += [question, {"role": "assistant", "content": answer}]

    def _reply(self, question: Message) -> Pieces:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return self.backend.reply([*system, *self._turns, question], self.settings)

    def _warn_left_out(self, piece: Piece) -> None:
        if piece.left_out:
            self._note(f"(the conversation is longer than the model can read: {piece.left_out} messages left out)")


def changed(settings: Settings, text: str) -> Settings:
    """Settings after `temperature=0.7 top_k=none ...`.

    Raises: InputError that names the setting, the value and what is possible.
    """
    words = [f"--{word.removesuffix('none') + 'null' if word.endswith('=none') else word}" for word in text.split()]
    if not words or not all("=" in word for word in words):
        raise InputError("/set takes name=value pairs, such as /set temperature=0.7 max_tokens=100")
    try:
        return Settings.model_validate(apply_overrides(settings.model_dump(), words))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            match = nearest(name, set(Settings.model_fields))
            hint = f"did you mean '{match}'?" if match else f"there are {', '.join(Settings.model_fields)}"
            raise InputError(f"{name}: no such setting; {hint}") from None
        raise InputError(f"{name}: {first['msg'].lower()}, got {first['input']!r}") from None
