"""Weight files are judged by their headers before a number is read, and only safetensors are weights."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ingot.recipe import InputError
from ingot.weights import read_header, read_headers, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with their index."""
    for number, name in ((1, "a"), (2, "b")):
        save_file({name: torch.ones(3, 2)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return tmp_path


def test_the_headers_of_all_parts_are_read(folder: Path) -> None:
    found = read_headers(folder)
    assert {name: (t.dtype, t.shape, t.file.name[:11]) for name, t in found.items()} == {
        "a": ("F32", (3, 2), "model-00001"),
        "b": ("F32", (3, 2), "model-00002"),
    }


def index(folder: Path, weights: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "part_gone": (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), r"model-00002.*: missing, though"),
    "no_map": (lambda f: index(f, []), r"index\.json: no weight_map"),
    "outside": (lambda f: index(f, {"a": "../other.safetensors"}), r"index\.json: names '\.\./other\.safetensors'"),
    "pickle": (lambda f: index(f, {"a": "model.bin"}), r"index\.json: names 'model\.bin'"),
    "other_place": (
        lambda f: index(f, {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}),
        r"index\.json: says otherwise than the files where 'a' is",
    ),
    "spare": (lambda f: save_file({"c": torch.ones(1)}, f / "model-3.safetensors"), r"model-3\.safetensors: no part"),
    "two_sets": (lambda f: save_file({"c": torch.ones(1)}, f / "model.safetensors"), "two sets of weights"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), r"adapter_config\.json: an adapter beside"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_clear_is_refused(name: str, folder: Path) -> None:
    change, message = BROKEN[name]
    change(folder)
    with pytest.raises(InputError, match=rf"^{folder}.*{message}") as caught:
        read_headers(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused_by_name_with_the_way_to_convert_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights here"):
        weight_files(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{name}: weights as a pickle, .*use_safetensors=False"):
        weight_files(tmp_path)


def damaged(content: bytes, header: dict[str, object] | None = None) -> bytes:
    text = json.dumps(header or {}).encode()
    return struct.pack("<Q", len(text)) + text + content if header is not None else content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cut off \(0 bytes\)"),
        (b"\xff" * 40, "not a safetensors file"),
        (damaged(b"", {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "0 bytes of numbers, but .* 8"),
        (damaged(b"1" * 9, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "9 bytes of numbers"),
        (damaged(b"1" * 8, {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "header is damaged"),
        (damaged(b"1" * 8, {"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}), "header is damaged"),
        (damaged(b"1" * 8, {"a": 3}), "header is damaged"),
        (struct.pack("<Q", 3) + b"{{{", "header is damaged"),
    ],
)
def test_a_damaged_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{file}: .*{message}"):
        read_header(file)
