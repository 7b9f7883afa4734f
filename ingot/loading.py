"""Loads the model and the tokenizer of any run folder or Hub folder, and refuses what transformers would let through.

transformers fills a missing tensor with random numbers and loads NaN or a flipped byte without a word; here each is an
error that names the tensor or the file.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.recipe import InputError
from ingot.runs import MANIFEST, describe_file, model_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_files(path: Path) -> None:
    """Compares the model files of a finished run folder with its manifest; a Hub folder has none and passes.

    Raises: InputError that names the first file that is missing or changed.
    """
    folder = path.parent if path.name == "model" else path
    if not (folder / MANIFEST).is_file():
        return
    for name, record in read_json(folder / MANIFEST)["files"].items():
        if not name.startswith("model/"):
            continue
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: missing; the run wrote it, so restore it or run the stage again")
        if describe_file(file) != record:
            raise InputError(f"{file}: not as the run wrote it (sha256 differs); restore it or run the stage again")


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a run, Hub or tokenizer folder; code that comes with the folder runs only when it is trusted.

    Raises: InputError that names the folder when it has none or a broken one.
    """
    from transformers import AutoTokenizer

    import modeling  # noqa: F401 - registers the Ingot classes

    folder = path if (path / "tokenizer_config.json").is_file() else model_folder(path)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}") from None


def load_model(path: Path, dtype: Any = "auto", trust_remote_code: bool = False) -> "PreTrainedModel":
    """The causal language model of a run folder or Hub folder, on the CPU and in evaluation mode.

    dtype: a torch dtype, or "auto" for the dtype of the file. Code that comes with the folder runs only when trusted.
    Raises: InputError that names the file, or the tensors that are missing, misshapen, unknown, untied or not finite.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    import modeling  # noqa: F401 - registers the Ingot classes

    folder = model_folder(path)
    check_files(path)
    try:
        with silent():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from None
    model, found = loaded
    problems = [*_wrong_tensors(found), *_wrong_values(model)]
    if problems:
        raise InputError(f"{folder}: " + "; ".join(problems))
    return model.eval()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keeps transformers' load report and progress bar back; what they tell is told by our own errors."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _wrong_tensors(found: dict[str, Any]) -> Iterator[str]:
    """What does not fit between the file and the architecture that its config.json describes."""
    misshapen = {key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]}
    for keys, meaning in (
        (found["missing_keys"] - misshapen, "missing from the weights"),
        (misshapen, "not of the shape that config.json says"),
        (found["unexpected_keys"], "unknown to the architecture in config.json"),
    ):
        if keys:
            yield f"{_names(keys)} {meaning}"


def _wrong_values(model: "PreTrainedModel") -> Iterator[str]:
    """NaN or infinite tensors, and a head that config.json calls tied although it differs from the embedding."""
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        yield f"{_names(broken)} not finite (NaN or infinity)"
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and model.config.tie_word_embeddings and head.weight is not embedding.weight:
        yield "the weights hold a head of its own, but config.json says tie_word_embeddings: true; set it to false"


def _names(keys: Any) -> str:
    ordered = sorted(keys)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest + (" is" if len(ordered) == 1 else " are")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
