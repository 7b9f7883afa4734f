"""Loads the model and the tokenizer of any run folder or Hub folder, and refuses what transformers would let through.

transformers fills a missing tensor with random numbers, loads NaN or a flipped byte without a word, runs code that a
prompt was answered with "y" for, and reads pickles; here each is an error that names the file and says what to do.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.config_file import check_config_file
from ingot.files import read_json
from ingot.integrity import check_files as compare_with_record
from ingot.pickles import ANOTHER
from ingot.recipe import InputError
from ingot.runs import model_folder
from ingot.tokenizer_files import blame, check_roles, check_template, check_tokenizer_files
from ingot.weights import BITS, INDEX, ONE, Stored, read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BITS_OF = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}


def check_files(path: Path, weights: bool = True, unfinished: bool = False) -> None:
    """Compares a model or tokenizer folder with the record of its run or export; a folder without one passes.

    Raises: InputError that names the first file that is missing, changed or new.
    """
    compare_with_record(path if _has_tokenizer(path) else _folder(path), weights, unfinished)


def _folder(path: Path) -> Path:
    """The Hub-format folder at a path.

    Raises: InputError when there is none; of a run whose config.json is gone, one that says so.
    """
    if not (path / "config.json").is_file():
        inner = path / "model"
        compare_with_record(inner if inner.is_dir() else path, weights=False, unfinished=True)
    return model_folder(path)


def _has_tokenizer(path: Path) -> bool:
    return (path / "tokenizer_config.json").is_file()


def load_tokenizer(path: Path, trust_remote_code: bool = False, unfinished: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a run, Hub or tokenizer folder; code that comes with the folder runs only when it is trusted.

    unfinished: the folder belongs to the run of this process, which has no manifest yet.
    Raises: InputError that names the file that is missing, changed or broken.
    """
    from transformers import AutoTokenizer

    import modeling  # noqa: F401 - registers the Ingot classes

    folder = path if _has_tokenizer(path) or (path / "tokenizer.json").is_file() else _folder(path)
    compare_with_record(folder, weights=False, unfinished=unfinished)
    check_tokenizer_files(folder, trust_remote_code)
    if (folder / "config.json").is_file():
        check_config_file(folder, trust_remote_code)
    with naming(lambda: blame(folder), "the tokenizer cannot be loaded"), silent():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    check_roles(tokenizer, folder)
    check_template(tokenizer, folder)
    return tokenizer


def load_config(path: Path, trust_remote_code: bool = False, unfinished: bool = False) -> "PreTrainedConfig":
    """The config of a run folder or Hub folder.

    Raises: InputError that names the file and what is wrong with it.
    """
    from transformers import AutoConfig

    import modeling  # noqa: F401 - registers the Ingot classes

    folder = _folder(path)
    compare_with_record(folder, weights=False, unfinished=unfinished)
    check_config_file(folder, trust_remote_code)
    with naming(folder / "config.json", "cannot be used"), silent():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    return config


def check_model(path: Path, trust_remote_code: bool = False, unfinished: bool = False) -> "PreTrainedConfig":
    """Everything about a model folder that shows before its numbers are read. Returns the config.

    Raises: InputError that names the file, or the tensors that are misshapen or of another type than config.json says.
    """
    folder = _folder(path)
    compare_with_record(folder, unfinished=unfinished)
    config = load_config(folder, trust_remote_code, unfinished)
    stored = read_headers(folder)
    with naming(folder / "config.json", "cannot be used"):
        layers = int(getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0))
    if layers > len(stored):
        raise InputError(f"{folder / 'config.json'}: {layers} layers, but the weights are {len(stored)} tensors")
    if getattr(config, "quantization_config", None) is None:
        problems = list(_wrong_headers(config, stored, folder, trust_remote_code))
        if problems:
            raise InputError(f"{_weights_name(folder)}: " + "; ".join(problems))
    return config


def load_model(
    path: Path, dtype: Any = "auto", trust_remote_code: bool = False, unfinished: bool = False
) -> "PreTrainedModel":
    """The causal language model of a run folder or Hub folder, on the CPU and in evaluation mode.

    dtype: a torch dtype, or "auto" for the dtype of the file. Code that comes with the folder runs only when trusted.
    unfinished: the folder belongs to the run of this process, which has no manifest yet.
    Raises: InputError that names the file, or the tensors that are missing, misshapen, unknown, untied or not finite.
    """
    from transformers import AutoModelForCausalLM

    folder = _folder(path)
    check_model(folder, trust_remote_code, unfinished)
    with naming(folder, "the model cannot be loaded"), silent():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, found = loaded
    problems = [*_wrong_tensors(found), *_wrong_values(model)]
    if problems:
        raise InputError(f"{_weights_name(folder)}: " + "; ".join(problems))
    return model.eval()


def check_checkpoint(folder: Path) -> None:
    """What a checkpoint's files say of themselves: its JSON, and names, shapes and values of weights that lie whole.

    A trainer would fill what is missing with random numbers. Sharded weights are checked when they are put together.
    Raises: InputError that names the file and the tensors.
    """
    from safetensors import safe_open

    for file in sorted(folder.glob("*.json")):
        read_json(file)
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "config.json").is_file() and files:
        check_model(folder)
    for file in files:
        with naming(file, "cannot be read"), safe_open(file, "pt") as tensors:
            broken = [name for name in tensors.keys() if not tensors.get_tensor(name).isfinite().all()]  # noqa: SIM118
        if broken:
            raise InputError(f"{file}: {_names(broken)} not finite (NaN or infinity); {ANOTHER}")


def _weights_name(folder: Path) -> Path:
    """The file that a message about tensors begins with."""
    return folder / (ONE if (folder / ONE).is_file() else INDEX)


@contextlib.contextmanager
def naming(file: Any, what: str) -> Iterator[None]:
    """Turns whatever upstream raises on a broken file into one line that names the file.

    file: its path, or a function that finds out which it is.
    Raises: InputError.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # the tokenizers library panics on some broken files, with a class that no `except Exception` catches
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        place = file() if callable(file) else file
        raise InputError(f"{place}: {what}: {_line(error)}") from None


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


def _wrong_headers(
    config: "PreTrainedConfig", stored: Mapping[str, Stored], folder: Path, trusted: bool
) -> Iterator[str]:
    """Tensors of another shape or type than the architecture in config.json has."""
    with naming(folder / "config.json", "makes no model"), silent():
        model = _empty_model(config, trusted)
    both = {name: (tensor, stored[name]) for name, tensor in model.state_dict().items() if name in stored}
    misshapen = [name for name, (tensor, file) in both.items() if tuple(tensor.shape) != file.shape]
    ours = config.model_type == "ingot"  # upstream renames and joins tensors of other architectures as it loads them
    missing = {*model.state_dict()} - {*stored} - {*(model._tied_weights_keys or ())} if ours else set()
    unknown = {*stored} - {*model.state_dict()} if ours else set()
    for names, meaning in (
        (misshapen, "not of the shape that config.json says"),
        (missing, "missing from the weights"),
        (unknown, "unknown to the architecture in config.json"),
    ):
        if names:
            yield f"{_names(names)} {meaning}"
    numbers = [name for name, (tensor, file) in both.items() if tensor.is_floating_point() and not file.is_float]
    said = BITS_OF.get(str(config.dtype).removeprefix("torch."), 0) if ours else 0
    narrow = [name for name, (_, file) in both.items() if file.is_float and BITS[file.dtype] < said]
    # a checkpoint of a bf16 run may be narrower as a whole; one tensor among others is an edit
    for names in (numbers, narrow if len(narrow) < len(both) else []):
        if names:
            stored_as = both[names[0]][1].dtype
            yield f"{_names(names)} stored as {stored_as}, but config.json says {config.dtype or 'float'}"


def _empty_model(config: "PreTrainedConfig", trusted: bool) -> "PreTrainedModel":
    """The architecture without numbers.

    Not by from_config where that can be helped: under ZeRO-3 it would have all processes share out the weights, and
    often only one of them is here.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model: PreTrainedModel = model_class(config)
        return model


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
