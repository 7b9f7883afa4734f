"""Byte-level BPE, and how a tokenizer is saved as a folder that AutoTokenizer loads."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ingot.recipe import InputError
from ingot.runs import write_json, write_text
from ingot.tokenization.chat_template import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL_TOKENS, TURN_END, TURN_START

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PreTokenizerName = Literal["gpt2", "gpt4", "qwen2", "llama3"]

# How text is cut into words before merging. The expressions must equal llama.cpp's, letter for letter, or an exported
# model would see other ids there than in training. GPT-4's (cl100k) is also Llama-3's: those two differ in LLAMA_CPP.
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS: dict[PreTokenizerName, str] = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": _GPT4,
    "qwen2": _GPT4.replace(r"\p{N}{1,3}", r"\p{N}"),  # every digit alone
    "llama3": _GPT4,
}
# What llama.cpp calls them (`tokenizer.ggml.pre`). Its "dbrx" is GPT-4's expression with plain merging; its
# "llama-bpe" first looks whether a whole word is an entry, and takes that without merging.
LLAMA_CPP: dict[PreTokenizerName, str] = {"gpt2": "gpt-2", "gpt4": "dbrx", "qwen2": "qwen2", "llama3": "llama-bpe"}
# beginnings of the names of a tokenizer's files
TOKENIZER_FILES = (
    "tokenizer", "chat_template", "special_tokens_map", "added_tokens", "vocab.", "merges.", "spiece.",
    "sentencepiece.",
)  # fmt: skip
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte and the special tokens


def train_bpe(texts: Iterator[str], vocab_size: int, pre_tokenizer: PreTokenizerName) -> "Tokenizer":
    """Trains a byte-level BPE of exactly `vocab_size` entries; the special tokens have the first ids.

    Every text can be encoded and decodes to itself: all bytes are in the vocabulary and nothing is normalised.

    Raises: InputError when the texts are too few for so many entries.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=pre_tokenizer == "llama3"))
    cut = pre_tokenizers.Split(Regex(PATTERNS[pre_tokenizer]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    check_reached(tokenizer.get_vocab_size(), vocab_size)
    return tokenizer


def check_reached(reached: int, vocab_size: int) -> None:
    """Raises: InputError when training ended before the vocabulary was full."""
    if reached < vocab_size:
        raise InputError(
            f"tokenizer.vocab_size: the training text is enough for only {reached} entries, not {vocab_size}; "
            "give more text or a smaller vocabulary"
        )


@dataclass(frozen=True)
class Roles:
    """What a tokenizer's tokens are for: the content of its tokenizer_config.json."""

    eos_token: str = END_OF_TEXT
    pad_token: str = PAD
    bos_token: str | None = None
    unk_token: str | None = None
    further: tuple[str, ...] = (TURN_START, TURN_END)  # special tokens without a name of their own
    chat_template: str = CHAT_TEMPLATE
    llama_cpp: str | None = None  # llama.cpp's name of the pre-tokenizer, where it has one


def save_tokenizer(tokenizer: "Tokenizer", folder: Path, pre_tokenizer: PreTokenizerName) -> None:
    """Writes the folder of a byte-level BPE tokenizer with our special tokens and chat template."""
    write_folder(tokenizer, folder, Roles(llama_cpp=LLAMA_CPP[pre_tokenizer]))


def write_folder(tokenizer: "Tokenizer", folder: Path, roles: Roles) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    The config is written for old and new readers alike: transformers 4 knows the class by the name
    PreTrainedTokenizerFast and the further special tokens as `additional_special_tokens`, and servers that predate
    chat_template.jinja look for the template inside.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    write_text(folder / "chat_template.jinja", roles.chat_template)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pre_tokenizer": roles.llama_cpp,
        "bos_token": roles.bos_token,
        "eos_token": roles.eos_token,
        "pad_token": roles.pad_token,
        "unk_token": roles.unk_token,
        "additional_special_tokens": list(roles.further),
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": roles.chat_template,
    }
    write_json(folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files byte for byte: saving it anew would drop what old readers need."""
    for file in source.iterdir():
        if file.name.startswith(TOKENIZER_FILES) and file.is_dir():
            shutil.copytree(file, target / file.name, dirs_exist_ok=True)
        elif file.name.startswith(TOKENIZER_FILES):
            shutil.copy2(file, target / file.name)
