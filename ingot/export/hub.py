"""Writes a model and its tokenizer as a Hub folder that today's and older readers load."""

import json
from pathlib import Path
from typing import Any

from ingot.loading import silent
from ingot.runs import read_json, write_json
from ingot.vocabulary import check_pair, embedding_rows

# Tokens that end a turn or a text, in the order in which readers that take only one should see them.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")


def save_hub_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes weights (safetensors), code, configs, tokenizer and chat template.

    Raises: InputError when the tokenizer does not go with the model.
    """
    check_pair(tokenizer, embedding_rows(model), "run.from")
    set_special_tokens(model, tokenizer)
    model.config.use_cache = True  # training switches it off
    if model.config.model_type != "ingot":  # whose code is not copied: it would send readers to code elsewhere
        vars(model.config).pop("auto_map", None)
    folder.mkdir(parents=True, exist_ok=True)
    with silent():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_tokenizer_for_older_readers(folder)
    write_rope_for_older_readers(folder)


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Puts the stop tokens and the padding token into the generation config and the config."""
    known = tokenizer.get_vocab()
    configured = model.generation_config.eos_token_id
    stops = [known[token] for token in STOP_TOKENS if token in known]
    stops += [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    unique = list(dict.fromkeys(token for token in stops if token is not None))
    model.generation_config.eos_token_id = unique or None
    model.generation_config.use_cache = True
    model.generation_config._from_model_config = False  # what is set here counts, whatever config.json says
    for config in (model.generation_config, model.config):
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id


def write_tokenizer_for_older_readers(folder: Path) -> None:
    """Makes tokenizer_config.json readable by transformers 4 and by servers built on it.

    They know neither the class name `TokenizersBackend`, nor a list under `extra_special_tokens`, nor the file
    chat_template.jinja. transformers 5 reads the older names as well.
    """
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(path)
    config.pop("auto_map", None)  # the source's tokenizer code, which is not copied
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    write_json(path, config)


def write_rope_for_older_readers(folder: Path) -> None:
    """Writes rope_theta at the top of config.json too, where transformers 4 looks; it assumes 10,000 otherwise."""
    path = folder / "config.json"
    config = read_json(path)
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and "rope_theta" not in config:
        write_json(path, {**config, "rope_theta": theta})


def uses_remote_code(folder: Path) -> bool:
    """Whether the folder's architecture comes as code beside the weights."""
    return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
