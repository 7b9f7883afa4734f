"""config.json and generation_config.json, looked at before transformers acts on them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ingot.files import read_json
from ingot.recipe_errors import nearest
from ingot.recipe_yaml import InputError

MOST_LAYERS = 10_000  # more is a damaged number: building the list of them alone takes the machine down
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# keys of config.json that are no fields of IngotConfig: written by transformers, or for older readers
BESIDE = {
    "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "model_type",
    "name_or_path", "num_labels", "output_attentions", "partial_rotary_factor", "per_layer_config",
    "quantization_config", "rope_scaling", "rope_theta", "tie_last_hidden_states", "torch_dtype",
    "transformers_version",
}  # fmt: skip
TRUST = "read it, then allow it with --model.trust_remote_code=true (serve and chat; other stages take none)"


def check_config_file(folder: Path, trusted: bool) -> None:
    """Looks at a folder's config.json and generation_config.json; nothing of what they name is loaded.

    Raises: InputError when one is no mapping, a number cannot be meant, a key is unknown to Ingot's own architecture,
    or it names code that is not trusted.
    """
    file = folder / "config.json"
    config = read_mapping(file)
    code = [] if trusted else _code(config)
    for problem in (*_numbers(config), *code, *_other_class(config), *_unknown_keys(config)):
        raise InputError(f"{file}: {problem}")
    generation = folder / "generation_config.json"
    if generation.is_file():
        for problem in _token_ids(read_mapping(generation), config):
            raise InputError(f"{generation}: {problem}")


def read_mapping(file: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises: InputError that names it when it does not.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a mapping of keys, got {type(found).__name__}; restore it")
    return found


def _numbers(config: Mapping[str, Any]) -> Iterator[str]:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for key in LAYERS:
            value = section.get(key, 1)
            if type(value) is not int or not 0 < value <= MOST_LAYERS:
                yield f"{key}: expected a whole number from 1 to {MOST_LAYERS}, got {value!r}"
    yield from _token_ids(config, config)


def _other_class(config: Mapping[str, Any]) -> Iterator[str]:
    """A model type that is not that of the class, where one of them is Ingot's."""
    from transformers import CONFIG_MAPPING

    listed, kind = config.get("architectures"), config.get("model_type")
    for name in listed[:1] if isinstance(listed, list) and kind in CONFIG_MAPPING else ():
        if str(name).startswith("Ingot") != (kind == "ingot"):
            yield f"model_type: '{kind}' does not go with architectures: {name}; restore it"


def _token_ids(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Special token ids that the embedding has no row for."""
    rows = config.get("vocab_size")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = values.get(key)
        for number in given if isinstance(given, list) else [given]:
            wrong = type(number) is not int or number < 0 or type(rows) is int and number >= rows
            if number is not None and wrong:
                yield f"{key}: {number!r} is no token id of a vocabulary of {rows} rows"


def _code(config: Mapping[str, Any]) -> Iterator[str]:
    """Code that loading the folder would run."""
    from transformers import CONFIG_MAPPING

    import modeling  # noqa: F401 - registers the Ingot classes

    named = config.get("auto_map") or {}
    if named and (not isinstance(named, dict) or config.get("model_type") not in CONFIG_MAPPING):
        yield f"comes with its own Python code, which would run on this machine; {TRUST}"
    outside = [v for v in (named.values() if isinstance(named, dict) else ()) if "--" in str(v) or "/" in str(v)]
    if outside:
        yield f"auto_map: '{outside[0]}' names Python code outside of the folder; take it out, or {TRUST}"
    for key in KERNELS:
        if "/" in str(config.get(key, "")):
            yield f"{key}: '{config[key]}' is a kernel from the Hub, which is code; take it out, or {TRUST}"


def _unknown_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys of an Ingot model that nothing reads: transformers keeps them without a word.

    One that is like no key of ours may come from a later transformers, where that wrote the file.
    """
    if config.get("model_type") != "ingot":
        return
    from transformers import __version__

    from modeling import IngotConfig

    known = {*IngotConfig.__dataclass_fields__, *BESIDE}
    for key in (key for key in config if key not in known and not key.startswith("_")):
        near = nearest(key, known)
        if near is not None:
            yield f"{key}: no such key; did you mean '{near}'?"
        elif config.get("transformers_version") == __version__:
            yield f"{key}: no such key; take it out"
