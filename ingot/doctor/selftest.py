"""A model's whole life in two minutes, in a folder that is removed: every stage as a user's recipe runs it.

It runs in a process of its own (`python -m ingot.doctor.selftest FOLDER`), which prints a JSON line for every step.
"""

import json
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ingot.cli import STAGES, recipe_class, run_stage
from ingot.doctor.findings import Finding, fail, ok, warn
from ingot.doctor.kill_and_resume import kill_in_a_save, proof_of_continuation
from ingot.doctor.packages import in_checkout, pip_command
from ingot.doctor.probing import Probe, ended
from ingot.doctor.toy_recipes import STEPS, recipe_trees, write_corpus
from ingot.recipe import build_recipe

SECONDS = 120.0  # without a word from a step
SILENT = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
WAY = "run `ingot doctor` again with a quiet machine; if it stays, report it with the line above"
LEFT = "left out: {} needs {}, which is not installed"


def selftest_findings() -> Iterator[Finding]:
    """What every step of the self-test gave, as it ends; nothing of it is left on the disk."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ingot-doctor-") as name:
        folder, done = Path(name), 0
        probe = Probe(["-m", "ingot.doctor.selftest", str(folder)], folder / "log.txt", SILENT)
        problem = None
        try:
            for value in probe.values(SECONDS):
                yield Finding(**value)
                done += 1
        except TimeoutError as error:
            problem = str(error)
        finally:
            code = probe.end()
        if problem is not None or code and done < len(STEPS_IN_ORDER):
            step = list(STEPS_IN_ORDER)[min(done, len(STEPS_IN_ORDER) - 1)]
            yield fail(f"self-test: {step}", f"{problem or ended(code)}: {probe.complaint()}", WAY)
    yield ok("self-test", f"{time.monotonic() - began:.0f} s in all; its folder is removed")


def tokenizer(folder: Path) -> str:
    """Trains a tokenizer on a few hundred sentences."""
    write_corpus(folder)
    results = _run(folder, "train_tokenizer")
    return f"{results['vocab_size']} entries, {results['bytes_per_token']:.2f} bytes per token"


def shards(folder: Path) -> str:
    """Writes token shards."""
    train = _run(folder, "prepare_data")["splits"]["train"]
    return f"{train['tokens']:,} tokens of {train['documents']} documents"


def pretraining(folder: Path) -> str:
    """Trains a toy model without a break; what the interrupted run is held against."""
    results = _run(folder, "pretrain", dir=str(folder / "unbroken"))
    rate = results["tokens_per_second"]
    return f"{results['parameters']:,} parameters, {STEPS} steps on {_device()}, {rate or 0:,.0f} tokens/s"


def kill(folder: Path) -> str:
    """Kills the same run in the middle of a save."""
    return kill_in_a_save(_write_recipe(folder, "pretrain"), folder / "pretrain", folder / "kill.log")


def resume(folder: Path) -> str:
    """Runs the same command again, and holds the result against the unbroken run."""
    _run(folder, "pretrain")
    return proof_of_continuation(folder / "pretrain", folder / "unbroken", exact=_device() == "the CPU")


def sft(folder: Path) -> str:
    """Fine-tunes the model on a few rows."""
    results = _run(folder, "sft")
    return f"{results['steps']} steps, held-out loss {results['loss_before']:.3f} -> {results['loss_after']:.3f}"


def export(folder: Path) -> str:
    """Exports it; the stage itself refuses a folder that is not equal."""
    results = _run(folder, "export")
    return f"loads in a process without Ingot, largest difference of logits {results['max_logit_difference']}"


def chat(folder: Path) -> str:
    """Asks the served model a question over HTTP on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer: list[str] = []
    client = threading.Thread(target=_ask, args=(port, answer), daemon=True)
    client.start()
    _run(folder, "serve", port=port)  # until the client interrupts it
    client.join()
    if not answer[0].startswith("answered"):
        raise RuntimeError(answer[0])
    return answer[0]


def _ask(port: int, answer: list[str]) -> None:
    """Waits for the server, asks it, and ends it as Ctrl-C does."""
    began, url = time.monotonic(), f"http://127.0.0.1:{port}/v1/chat/completions"
    body = {"model": "x", "messages": [{"role": "user", "content": "What happens at last?"}], "max_tokens": 8}
    said = "no answer"
    while time.monotonic() - began < SECONDS / 2:
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as reply:
                usage = json.load(reply)["usage"]
            said = f"answered {usage['prompt_tokens']} tokens with {usage['completion_tokens']} over HTTP"
            break
        except (OSError, KeyError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            time.sleep(0.2)
    answer.append(said)
    os.kill(os.getpid(), 2)  # SIGINT


# step -> (what it does, the module without which it is left out, and the extra that brings it)
STEPS_IN_ORDER: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "tokenizer": (tokenizer, "", ""), "shards": (shards, "", ""), "pretraining": (pretraining, "", ""),
    "kill -9 in a save": (kill, "", ""), "resume": (resume, "", ""), "sft": (sft, "trl", "train"),
    "export": (export, "trl", "train"), "chat over HTTP": (chat, "uvicorn", "serve"),
}  # fmt: skip


def _run(folder: Path, stage: str, **run_keys: Any) -> dict[str, Any]:
    """Runs a stage's recipe, with other keys of its `run` section where given; returns its results."""
    tree = recipe_trees(folder)[stage]
    return run_stage(build_recipe(recipe_class(stage), {**tree, "run": {**tree["run"], **run_keys}}, stage))


def _write_recipe(folder: Path, stage: str) -> Path:
    """The recipe as a file, for a process of its own; YAML reads JSON."""
    path = folder / f"{stage}.yaml"
    path.write_text(json.dumps(recipe_trees(folder)[stage]), encoding="utf-8")
    return path


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"


def run_steps(folder: Path) -> Iterator[Finding]:
    """Every step with its time; after one that failed the rest is left out, for each needs those before."""
    for name, (step, module, extra) in STEPS_IN_ORDER.items():
        began, what = time.monotonic(), f"self-test: {name}"
        if module and not _installed(module):
            yield warn(what, LEFT.format(name, module), pip_command(extra))
            return
        try:
            text = step(folder)
        except ModuleNotFoundError as error:
            yield fail(what, str(error), "pip install -e ." if in_checkout() else "pip install ingot")
            return
        except Exception as error:
            yield fail(what, f"{type(error).__name__}: {str(error).strip()[:600]}", WAY)
            return
        yield ok(what, f"{time.monotonic() - began:.1f} s: {text}")


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def main(folder: Path) -> None:
    """The process of the self-test: a JSON line for every step on what was the standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the stages print is the log
    assert set(recipe_trees(folder)) <= set(STAGES)
    for finding in run_steps(folder):
        print(json.dumps(finding.__dict__), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
