"""How a command ends: its exit code, its one line, and what the line says to install."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingot import failures
from ingot.recipe import InputError
from ingot.runs import RunFailed, exit_code_of


def raiser(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("data.x: wrong; do this"), 2, "error: data.x: wrong; do this\n"),
        (ModuleNotFoundError("No module named 'trl'", name="trl.trainer"), 2, r"pip install -e '\.\[train\]'"),
        (ModuleNotFoundError("No module named 'gradio'", name="gradio"), 2, r"gradio is not .* '\.\[serve\]'"),
        (ModuleNotFoundError("No module named 'ours'", name="ours"), 3, "Traceback(.|\n)*No module named 'ours'"),
        (RuntimeError("broken"), 3, "Traceback(.|\n)*RuntimeError: broken"),
        (RunFailed("the run stops; do this"), 3, r"\Aerror: the run stops; do this\n\Z"),
        (
            OSError(28, "No space left on device", "/runs/x"),
            3,
            r"\Aerror: /runs/x: No space left on device; free some",
        ),
        (OSError(5, "Input/output error"), 3, "Traceback(.|\n)*Input/output error"),
        (ValueError("a bug"), 3, "Traceback(.|\n)*ValueError: a bug"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to continue"),
        (KeyboardInterrupt("interrupted; what ended is in x"), 130, "interrupted; what ended is in x"),
    ],
)
def test_exit_codes(error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raiser(error)) == code
    assert re.search(message, capsys.readouterr().err)


def test_exit_code_of_success_and_of_an_own_exit() -> None:
    assert exit_code_of(lambda: {"loss": 1.0}) == 0
    with pytest.raises(SystemExit):
        exit_code_of(raiser(SystemExit(7)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_stage_as_ctrl_c_does(number: signal.Signals) -> None:
    assert signal.getsignal(number) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt), failures.interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_every_extra_that_an_error_names_is_in_setup_cfg(root: Path) -> None:
    text = (root / "setup.cfg").read_text()
    for module, extra in failures.EXTRAS.items():
        section = text.split(f"\n{extra} =\n")[1].split("\n[")[0]
        assert re.search(rf"^    {module.replace('_', '[-_]')}\b", section, re.M), f"{module} is not in {extra}"


# torch's destructors may abort one of several processes after everything is done; what runs at exit still has to
ENDING = """
import atexit, ctypes, sys
from ingot.failures import end_with

def act():
    atexit.register(print, "at exit")
    libc = ctypes.CDLL(None)
    libc.on_exit(libc.abort, None)
    if sys.argv[1] == "help":
        sys.exit(0)
    if sys.argv[1] == "error":
        raise FileNotFoundError(2, "No such file", "x")

end_with(act)
"""


@pytest.mark.parametrize(("word", "code"), [("done", 0), ("help", 0), ("error", 3)])
def test_one_of_several_processes_ends_without_the_destructors_of_libraries(word: str, code: int) -> None:
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    words = [sys.executable, "-c", ENDING, word]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "at exit\n"), done.stderr
    alone = subprocess.run(words, env={**environment, "WORLD_SIZE": "1"}, capture_output=True, check=False)
    assert alone.returncode == -6  # the destructors do run where there is one process
