"""Building a byte-level BPE tokenizer and saving it as a folder that AutoTokenizer loads."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ingot.recipe import InputError
from ingot.runs import write_json, write_text
from ingot.tokenization.chat_template import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL_TOKENS, TURN_END, TURN_START

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PreTokenizerName = Literal["qwen2", "gpt-2", "llama-bpe"]  # as llama.cpp calls them

# How text is cut into words before merging. The expressions must equal llama.cpp's, letter for letter, or an exported
# model would see other ids there than in training.
PATTERNS: dict[PreTokenizerName, str] = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
}
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

    # llama.cpp takes a word that is an entry as it is, without merging, for its "llama-bpe"
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre_tokenizer == "llama-bpe"))
    cut = pre_tokenizers.Split(Regex(PATTERNS[pre_tokenizer]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (reached := tokenizer.get_vocab_size()) < vocab_size:
        raise InputError(
            f"tokenizer.vocab_size: the training text is enough for only {reached} entries, not {vocab_size}; "
            "give more text or a smaller vocabulary"
        )
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: Path, pre_tokenizer: PreTokenizerName) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja.

    The config is written for old and new readers alike: transformers 4 knows the class by the name
    PreTrainedTokenizerFast and the further special tokens as `additional_special_tokens`, and servers that predate
    chat_template.jinja look for the template inside.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pre_tokenizer": pre_tokenizer,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START, TURN_END],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", config)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files byte for byte: saving it anew would drop what old readers need."""
    for file in source.iterdir():
        if file.name.startswith(TOKENIZER_FILES) and file.is_dir():
            shutil.copytree(file, target / file.name, dirs_exist_ok=True)
        elif file.name.startswith(TOKENIZER_FILES):
            shutil.copy2(file, target / file.name)
