"""The files of a tokenizer, looked at before and after transformers loads them, and its chat template, tried once."""

import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.config_file import TRUST, read_mapping
from ingot.files import read_json
from ingot.recipe_yaml import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# beginnings or ends of the files that a vocabulary can lie in
VOCABULARY = ("tokenizer.json", "vocab.", "merges.", "tokenizer.model", "spiece.", "sentencepiece.", "tekken.")
ROLES = ("eos_token", "pad_token", "bos_token", "unk_token")
TEMPLATE_SECONDS = 5.0
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def check_tokenizer_files(folder: Path, trusted: bool) -> None:
    """Looks at what lies there.

    Raises: InputError that names the file that is missing, no JSON, contradicts another, or names untrusted code.
    """
    config = read_mapping(_present(folder / CONFIG))
    if not any(p.name.startswith(VOCABULARY) for p in folder.iterdir()):
        raise InputError(f"{folder / 'tokenizer.json'}: missing, and no other vocabulary is here; restore it")
    named = config.get("auto_map")
    if named is not None and not trusted and not (isinstance(named, dict) and "AutoTokenizer" not in named):
        raise InputError(f"{folder / CONFIG}: names Python code of its own for the tokenizer; {TRUST}")
    inside, beside = config.get("chat_template"), folder / TEMPLATE
    if inside is not None and beside.is_file() and read_text(beside) != inside:
        raise InputError(f"{beside}: another chat template than the one in {CONFIG}; make them equal, or take one out")


def _present(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{file}: missing, so nothing says which tokens end and pad a text; restore it")
    return file


def read_text(file: Path) -> str:
    """A text file.

    Raises: InputError that names it when it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}; restore it") from None


def blame(folder: Path) -> Path:
    """The file that a tokenizer which does not load is broken in.

    Raises: InputError that names a file that is not even JSON.
    """
    from tokenizers import Tokenizer

    for file in sorted(folder.glob("*.json")):
        read_json(file)
    if not (folder / "tokenizer.json").is_file():
        return folder
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except BaseException:  # the library raises plain Exception, and panics
        return folder / "tokenizer.json"
    return folder / CONFIG


def check_roles(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Raises: InputError for an end, padding or other special token that tokenizer.json does not hold.

    transformers would add it with an id that the model never saw.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    tree, config = read_json(file), read_mapping(folder / CONFIG)
    vocabulary: Any = tree["model"].get("vocab") or {}
    held = set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
    held |= {token["content"] for token in tree.get("added_tokens") or ()}
    held |= {token["content"] for token in (config.get("added_tokens_decoder") or {}).values()}
    if (folder / "added_tokens.json").is_file():
        held |= set(read_json(folder / "added_tokens.json"))
    for role in ROLES:
        token = getattr(tokenizer, role)
        if token is not None and str(token) not in held:
            raise InputError(f"{folder / CONFIG}: {role}: '{token}' is no token of tokenizer.json; correct it")
    for token in tokenizer.all_special_tokens:
        if str(token) not in held:
            raise InputError(f"{folder / CONFIG}: the special token '{token}' is none of tokenizer.json; take it out")


def check_template(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Renders a question and an answer through the chat template, in transformers' sandbox and within five seconds.

    A template may refuse these turns. Raises: InputError when it is no template, reaches out of the sandbox or does
    not end.
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    if not tokenizer.chat_template:
        return
    file = folder / (TEMPLATE if (folder / TEMPLATE).is_file() else CONFIG)
    failures: list[BaseException] = []

    def render() -> None:
        try:
            tokenizer.apply_chat_template(TURNS, tokenize=False)
        except BaseException as error:  # kept for the thread that waits
            failures.append(error)

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(TEMPLATE_SECONDS)
    if thread.is_alive():
        _stop(thread)
        raise InputError(f"{file}: the chat template does not end within {TEMPLATE_SECONDS:.0f} s; restore it")
    for error in failures:
        if isinstance(error, TemplateSyntaxError):
            raise InputError(f"{file}, line {error.lineno} of the chat template: {error.message}; restore it")
        refusal = isinstance(error, TemplateError | ValueError | TypeError | LookupError)
        if isinstance(error, SecurityError) or not refusal:
            raise InputError(f"{file}: the chat template was stopped: {' '.join(str(error).split())}; restore it")


def _stop(thread: threading.Thread) -> None:
    """Raises an error in a thread that runs Python code, so that it does not go on for ever."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeoutError))
