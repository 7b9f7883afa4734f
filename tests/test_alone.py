"""One command at a time in a run folder."""

import os
import signal
from pathlib import Path

import pytest

from ingot.alone import WORKING, alone, check_alone
from ingot.recipe import InputError


def hold(folder: Path) -> int:
    """Starts a process that works in a folder until it is killed."""
    ready, told = os.pipe()
    if (process := os.fork()) == 0:
        with alone(folder):
            os.write(told, b".")
            signal.pause()
    os.read(ready, 1)
    return process


def test_a_second_command_is_refused_until_the_first_ends_or_dies(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(InputError, match=f"process {process} on .* works in .*--run.dir"):
            check_alone(tmp_path)
        with pytest.raises(InputError, match="works in"), alone(tmp_path):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert (tmp_path / WORKING).is_file()  # left behind, and no hindrance
    check_alone(tmp_path)
    with alone(tmp_path):
        pass
    assert not (tmp_path / WORKING).exists()


def test_a_folder_that_cannot_be_written_is_for_others_to_tell(tmp_path: Path) -> None:
    with alone(tmp_path / "absent"):
        assert not (tmp_path / "absent").exists()
