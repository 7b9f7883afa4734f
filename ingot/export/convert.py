"""A checkpoint of any sharding strategy as a Hub folder: whole float32 weights, tied ones once."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.loading import load_config, load_model, load_tokenizer
from ingot.pickles import check_pickles, pickles_forbidden
from ingot.recipe import InputError
from ingot.runs import damage, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

# what each strategy leaves in a checkpoint
ZERO = "latest"
FSDP_SHARDED = "pytorch_model_fsdp_0"
FSDP_WHOLE = "pytorch_model_fsdp.bin"
WHOLE = ("model.safetensors", "model.safetensors.index.json")


def is_checkpoint(path: Path) -> bool:
    """Whether a path is named as a run's checkpoint."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def checkpoint_to_hub(checkpoint: Path, target: Path) -> Path:
    """Writes a checkpoint's weights, config and tokenizer as a Hub folder, and loads it once. Returns the folder.

    The checkpoint's checksums are compared first: nothing is read of a file that is not as the run wrote it.
    Raises: InputError that names the file or the tensors.
    """
    problem = damage(checkpoint)
    if problem is not None:
        raise InputError(f"run.from: {problem}; name another checkpoint of the run")
    tensors = read_weights(checkpoint)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if tensors is None:
        for file in checkpoint.glob("model*.safetensors*"):
            shutil.copyfile(file, target / file.name)
        write_json(target / "config.json", read_json(checkpoint / "config.json"))
    else:
        _write_weights(tensors, checkpoint, target)
    load_tokenizer(checkpoint).save_pretrained(target)
    if (checkpoint / "generation_config.json").is_file():
        shutil.copyfile(checkpoint / "generation_config.json", target / "generation_config.json")
    load_model(target)  # names what is missing, unknown, misshapen, untied or not finite
    return target


def read_weights(checkpoint: Path) -> "dict[str, Tensor] | None":
    """The whole weights of a sharded checkpoint, on the CPU; None where they lie whole in safetensors files.

    Raises: InputError when there are none, or not all of their parts.
    """
    if (checkpoint / ZERO).is_file():
        return _read_zero(checkpoint)
    if (checkpoint / FSDP_SHARDED).is_dir():
        check_pickles(checkpoint / FSDP_SHARDED)
        return _read_fsdp(checkpoint / FSDP_SHARDED)
    if any((checkpoint / name).is_file() for name in WHOLE):
        return None
    if (checkpoint / FSDP_WHOLE).is_file():
        import torch

        check_pickles(checkpoint / FSDP_WHOLE)
        return dict(torch.load(checkpoint / FSDP_WHOLE, map_location="cpu", weights_only=True, mmap=True))
    raise InputError(f"run.from: {checkpoint}: no weights here ({', '.join((*WHOLE, ZERO, FSDP_SHARDED))})")


def _read_zero(checkpoint: Path) -> "dict[str, Tensor]":
    """DeepSpeed's float32 weights, which in a bf16 run are finer than those that the model computes with."""
    import contextlib
    import io

    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    step = (checkpoint / ZERO).read_text(encoding="utf-8").strip()
    if Path(step).name != step:
        raise InputError(f"run.from: {checkpoint / ZERO}: '{step[:80]}' is no folder of the checkpoint; restore it")
    if (checkpoint / step).is_dir():
        check_pickles(checkpoint / step)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pickles_forbidden(deepspeed=True):
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint)))
    except (ValueError, FileNotFoundError, RuntimeError, AssertionError, KeyError) as error:
        raise InputError(f"run.from: {checkpoint}: DeepSpeed cannot put it together: {_line(error)}") from None


def _read_fsdp(folder: Path) -> "dict[str, Tensor]":
    """The tensors that torch.distributed.checkpoint finds, in one process and without a group."""
    import warnings

    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        reader = dcp.FileSystemReader(folder)
        found = reader.read_metadata().state_dict_metadata
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in found.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what we want
            with pickles_forbidden():
                dcp.load(state, storage_reader=reader, no_dist=True)
    except (dcp.api.CheckpointException, OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"run.from: {folder}: torch cannot put it together: {_line(error)}") from None
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _write_weights(tensors: "Mapping[str, Tensor]", checkpoint: Path, target: Path) -> None:
    """Safetensors files of at most 5 GB, and a config.json of their type."""
    from huggingface_hub import save_torch_state_dict

    config = read_json(checkpoint / "config.json")
    kept = {name: _own(tensor) for name, tensor in tensors.items()}
    _drop_tied(kept, checkpoint, config)
    save_torch_state_dict(kept, target)
    types = {str(t.dtype).removeprefix("torch.") for t in kept.values() if t.is_floating_point()}
    write_json(target / "config.json", {**config, "dtype": types.pop() if len(types) == 1 else "float32"})


def _own(tensor: "Tensor") -> "Tensor":
    """The tensor in a storage of its own, which safetensors asks for; ZeRO-1/2 gives views of one long row."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone().contiguous()


def _drop_tied(tensors: "dict[str, Tensor]", checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Leaves out the copies of tied weights that a strategy keeps.

    Raises: InputError when one is no copy any more.
    """
    import torch

    for copy, kept in _tied_names(checkpoint).items() if config.get("tie_word_embeddings") else ():
        if copy in tensors and kept not in tensors:
            tensors[kept] = tensors.pop(copy)
        elif copy in tensors:
            if not torch.equal(tensors[copy], tensors[kept]):
                raise InputError(f"run.from: {checkpoint}: {copy} is tied to {kept} but differs from it")
            del tensors[copy]


def _tied_names(checkpoint: Path) -> dict[str, str]:
    """Name of a tied weight -> name of the one that it is tied to."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(model._tied_weights_keys or {})


def _line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:300]
