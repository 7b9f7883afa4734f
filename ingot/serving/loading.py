"""Any Hub-format folder as a model that is ready to answer, checked before it serves anyone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import modeling  # noqa: F401  registers Ingot's classes, so that its folders need no remote code
from ingot import loading
from ingot.recipe import InputError
from ingot.runs import MANIFEST, get_logger, model_folder, read_json
from ingot.serving.text import TextCodec
from ingot.vocabulary import check_pair, embedding_rows

logger = get_logger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
TURN_END = "<|im_end|>"


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that a server needs to know about it."""

    name: str
    model: PreTrainedModel
    codec: TextCodec
    eos_token_ids: frozenset[int]
    context_length: int  # prompt and answer together, in tokens
    chats: bool  # whether it was made to answer messages; a base model continues text

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device


def load_model(
    path: Path,
    dtype: DType = "auto",
    device: Device = "auto",
    trust_remote_code: bool = False,
    name: str | None = None,
    max_total_tokens: int | None = None,
) -> LoadedModel:
    """Loads a run folder or Hub folder for serving.

    Raises: InputError when it cannot be read, lacks weights, needs code that is not trusted, does not go with its
    tokenizer, or gives no numbers.
    """
    folder = model_folder(path)
    place = _device(device)
    tokenizer = loading.load_tokenizer(path, trust_remote_code)
    model = _place(loading.load_model(path, _dtype(dtype, place), trust_remote_code), place, folder)
    check_pair(tokenizer, embedding_rows(model), str(folder))
    _check_numbers(model, folder)
    eos = _eos_token_ids(model, tokenizer)
    codec = TextCodec(tokenizer, eos)
    limit = _context_length(model, folder, max_total_tokens)
    chats = codec.has_chat_template and _stage(path) != "pretrain"
    loaded = LoadedModel(name or model_name(path), model, codec, eos, limit, chats)
    logger.info(
        "%s: %s parameters, %s on %s, context %d tokens",
        loaded.name, f"{model.num_parameters():,}", str(model.dtype).removeprefix("torch."), place, limit,
    )  # fmt: skip
    return loaded


def model_name(path: Path) -> str:
    """The name that a folder is served under: `quickstart-export` for a run folder, else the folder's own."""
    folder = path.resolve()
    if folder.name == "model":
        folder = folder.parent
    return f"{folder.parent.name}-{folder.name}" if (folder / MANIFEST).is_file() else folder.name


def _stage(path: Path) -> str | None:
    """The stage that wrote a run folder."""
    folder = path.resolve()
    record = (folder.parent if folder.name == "model" else folder) / MANIFEST
    return str(read_json(record).get("stage")) if record.is_file() else None


def _device(device: Device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: DType, device: torch.device) -> torch.dtype | str:
    """float32 on a CPU, where half precision is slow or missing; elsewhere as saved."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    chosen = getattr(torch, dtype)
    assert isinstance(chosen, torch.dtype)
    return chosen


def _place(model: PreTrainedModel, device: torch.device, folder: Path) -> PreTrainedModel:
    try:
        return model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder}: the model cannot be put on {device.type} (model.device): {reason}") from None


def _check_numbers(model: PreTrainedModel, folder: Path) -> None:
    """One token through the model: what is broken shows now and not in the first request."""
    with torch.inference_mode():
        output = model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=True)
    if not torch.isfinite(output.logits).all():
        raise InputError(f"{folder}: the model gives NaN or infinite logits; its weights are damaged")
    if output.get("past_key_values") is None:
        raise InputError(f"{folder}: {type(model).__name__} keeps no key-value cache, which serving needs")


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: those of generation_config and of the tokenizer, and the end of a turn."""
    configured: Any = model.generation_config.eos_token_id if model.generation_config else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    ids.add(tokenizer.get_vocab().get(TURN_END))
    return frozenset(i for i in ids if i is not None)


def _context_length(model: PreTrainedModel, folder: Path, wanted: int | None) -> int:
    trained: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limit = wanted or trained
    if limit is None:
        raise InputError(f"{folder}: config.json has no max_position_embeddings; give --run.max_total_tokens=N")
    if trained is not None and limit > trained:
        raise InputError(f"run.max_total_tokens: {limit} is more than the model's context of {trained} tokens")
    return limit
