"""The weight files of a Hub folder: which are read, what their headers say, and what must not be read.

Only safetensors are weights: a JSON header of names, types and shapes, and numbers. Nothing in them can run.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ingot.files import read_json
from ingot.recipe_yaml import InputError

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
LONGEST_HEADER = 100_000_000  # bytes; the format's own bound
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U8": 8, "U16": 16, "U32": 32, "U64": 64, "BOOL": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
    "C64": 64,
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor as a file holds it."""

    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make the model, in order.

    Raises: InputError when there are none, a part is missing, or it is not clear which are meant.
    """
    one, index = folder / ONE, folder / INDEX
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder / 'adapter_config.json'}: an adapter beside the weights, which would be put onto them; move it "
            "away, or name the model/ folder of the run that merged it"
        )
    if one.is_file() and index.is_file():
        raise InputError(f"{folder}: two sets of weights, {ONE} and {INDEX}; delete the one that is not meant")
    if not one.is_file() and not index.is_file():
        raise InputError(_no_weights(folder))
    files = [one] if one.is_file() else _parts(index)
    spare = sorted(p for p in folder.glob("model*.safetensors") if p not in files)
    if spare:
        raise InputError(f"{spare[0]}: no part of the model ({files[0].name} is read); move it elsewhere")
    return files


def _no_weights(folder: Path) -> str:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED and p.name != "training_args.bin")
    if pickled:
        return (
            f"{folder / pickled[0]}: weights as a pickle, which can run code and is never loaded; convert them where "
            "you trust them: AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW)"
        )
    return f"{folder}: no weights here ({ONE} or {INDEX})"


def _parts(index: Path) -> list[Path]:
    """The files that an index names."""
    found = read_json(index)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise InputError(f"{index}: no weight_map of tensor names to files; restore it")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for file, name in zip(files, sorted(set(names.values())), strict=True):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index}: names '{name}', which is no safetensors file of this folder; restore it")
        if not file.is_file():
            raise InputError(f"{file}: missing, though {index.name} names it; restore it")
    return files


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model by its name, from the headers alone.

    Raises: InputError that names the file that is damaged, or holds other tensors than its index says.
    """
    files = weight_files(folder)
    tensors: dict[str, Stored] = {}
    for file in files:
        tensors.update(read_header(file))
    if files != [folder / ONE]:
        listed = read_json(folder / INDEX)["weight_map"]
        wrong = sorted(n for n in {*listed, *tensors} if n not in tensors or tensors[n].file.name != listed.get(n))
        if wrong:
            raise InputError(f"{folder / INDEX}: says otherwise than the files where '{wrong[0]}' is; restore it")
    return tensors


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    Raises: InputError when it is cut off, longer than it says, or not such a file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            raise InputError(f"{path}: not a safetensors file, or cut off ({size:,} bytes); restore it")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = dict(_stored(path, header))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f"{path}: its header is damaged; restore it") from None
    held = sum(prod(t.shape) * BITS[t.dtype] // 8 for t in tensors.values())
    if held != size - 8 - length:
        raise InputError(f"{path}: {size - 8 - length:,} bytes of numbers, but its header says {held:,}; restore it")
    return tensors


def _stored(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    """Raises: ValueError, TypeError or KeyError for an entry that is none."""
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        stored = Stored(path, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
        if prod(stored.shape) * BITS[stored.dtype] // 8 != end - begin:
            raise ValueError(name)
        yield name, stored
