"""A checkpoint whose pickle would call a function is refused before anything of it runs, also with right checksums."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.export.convert import checkpoint_to_hub, read_weights
from ingot.files import write_checksums
from ingot.pickles import FORCED, check_pickles, pickles_forbidden
from ingot.recipe import InputError
from ingot.training.checkpoint_folders import newest_checkpoint


class Bomb:
    """Creates a file when it is unpickled by anyone who trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that shows that foreign code ran."""
    return tmp_path / "ran"


def checkpoint(folder: Path) -> Path:
    """A checkpoint with the state files of a trainer and no weights of its own."""
    folder.mkdir(parents=True)
    torch.save({"state": {0: torch.ones(2)}, "step": 3}, folder / "optimizer.pt")
    torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    write_checksums(folder)
    return folder


def test_the_bomb_works_on_those_who_trust_it(marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCED, raising=False)  # which a run of training sets for its process
    torch.save({"optimizer": Bomb(marker)}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "global_step3/mp_rank_00_model_states.pt", "x.bin"])
def test_resuming_refuses_a_pickle_that_calls_a_function(name: str, marker: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run/checkpoint-3")
    assert newest_checkpoint(tmp_path / "run") == folder
    (folder / name).parent.mkdir(exist_ok=True)
    torch.save({"state": Bomb(marker)}, folder / name)
    write_checksums(folder)
    with pytest.raises(InputError, match=rf"{name}: would run \w+\.system when it is read") as caught:
        newest_checkpoint(tmp_path / "run")
    assert "\n" not in str(caught.value) and not marker.exists()


def test_export_refuses_it_in_the_parts_of_zero(marker: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run/checkpoint-3")
    (folder / "latest").write_text("global_step3")
    (folder / "global_step3").mkdir()
    torch.save({"module": Bomb(marker)}, folder / "global_step3/mp_rank_00_model_states.pt")
    write_checksums(folder)
    with pytest.raises(InputError, match=r"mp_rank_00_model_states\.pt: would run"):
        checkpoint_to_hub(folder, tmp_path / "hub")
    (folder / "latest").write_text("../../elsewhere")
    write_checksums(folder)
    with pytest.raises(InputError, match=r"latest: '\.\./\.\./elsewhere' is no folder of the checkpoint"):
        checkpoint_to_hub(folder, tmp_path / "hub")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp.bin"])
def test_export_refuses_it_in_the_parts_of_fsdp(place: str, marker: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run/checkpoint-3")
    (folder / place).parent.mkdir(exist_ok=True)
    if place.endswith(".bin"):
        torch.save(Bomb(marker), folder / place)
    else:
        (folder / place).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError, match="would run"):
        read_weights(folder)
    assert not marker.exists()


def test_torch_refuses_it_too_while_pickles_are_forbidden(marker: Path, tmp_path: Path) -> None:
    torch.save(Bomb(marker), tmp_path / "x.pt")
    before = os.environ.get(FORCED)
    with pickles_forbidden(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert not marker.exists() and os.environ.get(FORCED) == before


def test_what_is_no_file_of_torch_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint-3")
    for content in (b"", b"text", pickle.dumps([1])):
        (folder / "optimizer.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"optimizer\.pt: not a file as torch writes it"):
            check_pickles(folder)


def test_a_name_with_dots_reaches_no_further(tmp_path: Path) -> None:
    # `builtins.set` is data; `set.__class__.__base__` must not be reached through it
    code = b"\x80\x04\x8c\x08builtins\x8c\x11set.__class__.mro\x93."
    (tmp_path / ".metadata").write_bytes(code)
    with pytest.raises(InputError, match=r"would run builtins\.set\.__class__\.mro"):
        check_pickles(tmp_path / ".metadata")
