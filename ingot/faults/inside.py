"""What a warm process does: the command, with what goes wrong in it and what is noted of it."""

import gc
import hashlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypedDict


class Hooks(TypedDict, total=False):
    """What is done to a run from inside."""

    rows: str  # file that gets a hash of every row of every step
    poison: dict[str, Any]  # {"step": k, "what": weights | gradient | loss | spike}: what goes wrong in step k


def command_in_child(words: list[str], log: str, environment: dict[str, str], hooks: Hooks) -> None:
    """`ingot WORDS` with its exit code, in a session of its own; both streams go to the log."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # that of a process which nothing has forked
    gc.freeze()  # a trainer collects garbage, and what the server imported is much to look through
    from ingot.cli import command
    from ingot.runs import exit_code_of

    if hooks:
        install(hooks)
    sys.exit(exit_code_of(lambda: command(words)))


def call_in_child(sending: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Sends back whether a function came to its end, and its value or its traceback."""
    try:
        sending.send((True, function(*arguments)))
    except Exception:
        sending.send((False, traceback.format_exc()))


def install(hooks: Hooks) -> None:
    """Puts the hooks around every micro-batch of any of the trainers."""
    from transformers import Trainer

    original = Trainer.training_step

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        step = self.state.global_step + 1
        if "rows" in hooks:
            note_rows(hooks["rows"], step, inputs)
        poison = hooks.get("poison", {}) if hooks.get("poison", {}).get("step") == step else {}
        if poison:
            spoil_weights(model, poison["what"])
            if poison["what"] == "spike":  # a run that goes back does not meet it again
                del hooks["poison"]
        loss = original(self, model, inputs, *args, **kwargs)
        if poison.get("what") == "gradient":
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss * float("nan") if poison.get("what") == "loss" else loss

    Trainer.training_step = training_step  # type: ignore[method-assign]


def spoil_weights(model: Any, what: str) -> None:
    """Makes one weight no number, or all of them noise."""
    import torch

    with torch.no_grad():
        if what == "weights":
            next(model.parameters()).view(-1)[7] = float("nan")
        elif what == "spike":
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=3.0)


def note_rows(path: str, step: int, inputs: dict[str, Any]) -> None:
    """Appends {"step", "rows"}: one short hash for every row of a micro-batch, from its token ids and labels."""
    keys = [key for key in sorted(inputs) if key in ("input_ids", "labels")]
    stacked = zip(*(inputs[key] for key in keys), strict=True)
    rows = [hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in row)).hexdigest()[:16] for row in stacked]
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")
