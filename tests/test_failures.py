"""How a command ends: one line for what the user can mend."""

import errno
import os

import pytest

from ingot.failures import exit_code_of


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    assert exit_code_of(write) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: runs/x: {os.strerror(number)}; ") and said.count("\n") == 1


def test_other_errors_of_the_system_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error", "runs/x")

    assert exit_code_of(fail) == 3 and "Traceback" in capsys.readouterr().err
