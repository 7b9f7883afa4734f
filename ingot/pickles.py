"""Pickle files of checkpoints: read only after it is shown, without running them, that they hold plain data alone.

Optimizers, schedules and random states are saved by torch, DeepSpeed and torch.distributed.checkpoint as pickles, and
a pickle can name any function to call. `check_pickles` reads the instructions with every name replaced by a dummy;
`forbid_pickles` has torch refuse the same when it loads the file for good.
"""

import contextlib
import importlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ingot.recipe_yaml import InputError

ANOTHER = "move the checkpoint's folder away to continue from an earlier one"
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
# what DeepSpeed saves beside tensors; torch is told that these are data
DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address",
)  # fmt: skip
# moments of torchao's optimizers; torchao tells torch itself
TORCHAO = tuple(f"torchao.optim.subclass_{bits}bit.OptimState{bits}bit" for bits in (4, 8))
_METADATA = (
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
_BUILTINS = ("set", "bytearray", "complex", "int", "float", "bool", "list", "dict", "tuple")
PLAIN = frozenset(
    (
        *DEEPSPEED, *(f"torch.distributed.checkpoint.metadata.{name}" for name in _METADATA),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        "torch.distributed.checkpoint.filesystem._StorageInfo", "torch.serialization._get_layout",
        *TORCHAO, "torch._utils._rebuild_wrapper_subclass",
        "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2",
        "torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "collections.OrderedDict",
        "collections.defaultdict", "collections.Counter", "numpy.ndarray", "numpy.dtype",
        "numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "_codecs.encode", "pathlib.PosixPath",
        "pathlib._local.PosixPath",
    )
)  # fmt: skip
PLAIN_TYPES = re.compile(r"torch\.(\w+Storage|storage\.\w+Storage|b?float\w+|u?int\d+|complex\d+|bool)")


class _Dummy:
    """Stands for every allowed name: takes whatever a pickle does to it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0

    def append(self, _: Any) -> None:
        """As a list."""

    def extend(self, _: Any) -> None:
        """As a list."""

    def add(self, _: Any) -> None:
        """As a set."""


class _NameFound(pickle.UnpicklingError):
    """A pickle names something that is no plain data."""


class _Reader(pickle.Unpickler):
    """Runs a pickle's instructions on dummies."""

    def find_class(self, module: str, name: str) -> Any:
        """A dummy for a name that stands for plain data; nothing is imported."""
        full = f"{module}.{name}"
        if full in PLAIN or PLAIN_TYPES.fullmatch(full):
            return _Dummy
        raise _NameFound(full)

    def persistent_load(self, pid: Any) -> Any:
        """A storage of tensors, which lies outside the pickle."""
        return _Dummy()


def check_pickles(place: Path) -> None:
    """Looks through a pickle, or every one of a checkpoint, without running it.

    Raises: InputError that names the first file that holds more than plain data, or is none that torch wrote.
    """
    for path in sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]:
        if path.suffix in PICKLES or path.name == ".metadata":
            _check(path)


def _check(path: Path) -> None:
    try:
        if path.name == ".metadata":
            with open(path, "rb") as file:
                _Reader(file).load()
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as member:
                        _run_on_dummies(member)
    except _NameFound as error:
        raise InputError(
            f"{path}: would run {error} when it is read, which no checkpoint of Ingot does; nothing was run; "
            "move its folder away to use an earlier checkpoint, and ask where this one comes from"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a file as torch writes it ({reason}); {ANOTHER}") from None


def _run_on_dummies(file: IO[bytes]) -> None:
    _Reader(file).load()


def forbid_pickles(deepspeed: bool = False) -> None:
    """From now on torch refuses, in this process and those it starts, to load a pickle that is more than plain data.

    deepspeed: what DeepSpeed saves beside tensors is data too; this imports it.
    """
    import torch

    os.environ[FORCED] = "1"
    if deepspeed:
        torch.serialization.add_safe_globals([_named(name) for name in DEEPSPEED])


@contextlib.contextmanager
def pickles_forbidden(deepspeed: bool = False) -> Iterator[None]:
    """`forbid_pickles` for a while."""
    before = os.environ.get(FORCED)
    forbid_pickles(deepspeed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
