"""What there is to know of a tokenizer: how well it packs text, what its entries are, what they are used for."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.recipe import InputError
from ingot.runs import sha256_file
from ingot.tokenization.sample_texts import CODE, LANGUAGES, WITHOUT_SPACES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is bread made of?"},
    {"role": "assistant", "content": "Flour, water, salt and yeast."},
]
LONGEST = 20  # entries that are listed
EXAMPLES = 20  # unused entries that are listed


def measure(tokenizer: "Tokenizer", texts: Iterable[str], max_texts: int = 500) -> dict[str, float]:
    """How it cuts the first `max_texts` texts: bytes per token, tokens per word, share of the entries used."""
    used: set[int] = set()
    num_bytes = num_words = num_tokens = 0
    for text in islice(texts, max_texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        used.update(ids)
        num_bytes, num_words, num_tokens = (
            num_bytes + len(text.encode()),
            num_words + len(text.split()),
            num_tokens + len(ids),
        )
    return {
        "bytes_per_token": round(num_bytes / num_tokens, 3),
        "tokens_per_word": round(num_tokens / max(1, num_words), 3),
        "share_of_entries_used": round(len(used) / tokenizer.get_vocab_size(), 3),
    }


@dataclass(frozen=True)
class Text:
    """A text to measure on; `kind` is language, code or file."""

    name: str
    kind: str
    parts: Sequence[str]

    @property
    def num_bytes(self) -> int:
        """Its size in UTF-8."""
        return sum(len(part.encode()) for part in self.parts)

    @property
    def num_words(self) -> int:
        """Its words between spaces; characters where the script writes none."""
        if self.name in WITHOUT_SPACES:
            return sum(len(part) for part in self.parts)
        return sum(len(part.split()) for part in self.parts)


def own_texts() -> list[Text]:
    """The sample that comes with Ingot."""
    languages = [Text(name, "language", [text]) for name, text in LANGUAGES.items()]
    return languages + [Text(name, "code", [text]) for name, text in CODE.items()]


class Subject:
    """A tokenizer as it is inspected: special tokens in a text are text, and nothing is put around it.

    Raises: InputError when the folder has none that the tokenizers library runs.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        from ingot.loading import load_tokenizer

        self.folder = folder
        self.loaded: Any = load_tokenizer(folder)
        if not self.loaded.is_fast:
            raise InputError(f"{folder}: {type(self.loaded).__name__} has no tokenizer.json; it cannot be inspected")
        self.tree = json.loads(self.loaded.backend_tokenizer.to_str())
        plain = {**self.tree, "padding": None, "truncation": None, "post_processor": None}
        self.tokenizer = Tokenizer.from_str(json.dumps(plain))
        self.tokenizer.encode_special_tokens = True

    @property
    def name(self) -> str:
        """What tables call it."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name in ("model", "train_tokenizer") else folder.name

    def ids(self, text: Text) -> list[int]:
        """The ids of all its parts."""
        return [
            i for part in self.tokenizer.encode_batch(list(text.parts), add_special_tokens=False) for i in part.ids
        ]

    def text_of(self, token_id: int) -> str:
        """The text of one entry alone; special tokens show their name."""
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False))


def describe(subject: Subject, others: Sequence[Subject], texts: Sequence[Text]) -> dict[str, Any]:
    """Everything about a tokenizer on some texts, beside other tokenizers; plain values for JSON and for pages."""
    file = subject.folder / "tokenizer.json"
    used: set[int] = set()
    rows = []
    for text in texts:
        ids = subject.ids(text)
        used.update(ids)
        counts = {other.name: len(other.ids(text)) for other in others}
        rows.append(_row(text, len(ids), counts))
    return {
        "tokenizer": str(subject.folder),
        "name": subject.name,
        "model": subject.tree["model"]["type"],
        "llama_cpp_pre_tokenizer": subject.loaded.init_kwargs.get("pre_tokenizer"),
        "sha256": sha256_file(file) if file.is_file() else None,
        "entries": len(subject.loaded),
        "against": [other.name for other in others],
        "texts": rows,
        "longest": list(_longest(subject)),
        "unused": _unused(subject, used),
        "special_tokens": _special_tokens(subject),
        "chat": _chat(subject),
        "samples": [{"name": text.name, "pieces": pieces(subject, text.parts[0])} for text in texts if text.parts],
    }


def _row(text: Text, num_tokens: int, others: dict[str, int]) -> dict[str, Any]:
    size, words = text.num_bytes, text.num_words

    def figures(tokens: int) -> dict[str, Any]:
        return {
            "tokens": tokens,
            "bytes_per_token": round(size / max(1, tokens), 3),
            "tokens_per_word": round(tokens / max(1, words), 3),
        }

    return {
        "name": text.name,
        "kind": text.kind,
        "bytes": size,
        "words": words,
        "words_are_characters": text.name in WITHOUT_SPACES,
        **figures(num_tokens),
        "against": {name: figures(tokens) for name, tokens in others.items()},
    }


def _longest(subject: Subject) -> Iterator[dict[str, Any]]:
    """The entries with the longest texts, special tokens left out."""
    special = set(subject.loaded.all_special_ids) | set(subject.tokenizer.get_added_tokens_decoder())
    entries = [(subject.text_of(i), i) for i in subject.tokenizer.get_vocab().values() if i not in special]
    for text, token_id in sorted(entries, key=lambda entry: (-len(entry[0]), entry[1]))[:LONGEST]:
        yield {"id": token_id, "text": text, "characters": len(text)}


def _unused(subject: Subject, used: set[int]) -> dict[str, Any]:
    """Entries that no token of the texts is: how many, and those with the highest ids, which training added last."""
    special = set(subject.tokenizer.get_added_tokens_decoder())
    unused = sorted(set(subject.tokenizer.get_vocab().values()) - used - special, reverse=True)
    return {
        "count": len(unused),
        "share": round(len(unused) / max(1, subject.tokenizer.get_vocab_size()), 4),
        "unreachable": _unreachable(subject),
        "examples": [{"id": i, "text": subject.text_of(i)} for i in unused[:EXAMPLES]],
    }


def _unreachable(subject: Subject) -> list[dict[str, Any]]:
    """Entries whose own text is cut otherwise: never produced, unless more text around them changes the cut.

    Parts of characters and entries that begin with the space which some models put first are not judged.
    """
    special = set(subject.tokenizer.get_added_tokens_decoder())
    texts = {i: subject.text_of(i) for i in subject.tokenizer.get_vocab().values() if i not in special}
    whole = {i: text for i, text in texts.items() if text and "\ufffd" not in text}
    encoded = subject.tokenizer.encode_batch_fast(list(whole.values()), add_special_tokens=False)
    found = [
        i
        for (i, text), e in zip(whole.items(), encoded, strict=True)
        if e.ids != [i] and _comes_back(subject, text, e.ids)
    ]
    return [{"id": i, "text": whole[i]} for i in sorted(found)]


def _comes_back(subject: Subject, text: str, ids: list[int]) -> bool:
    return str(subject.tokenizer.decode(ids, skip_special_tokens=False)) == text


def _special_tokens(subject: Subject) -> list[dict[str, Any]]:
    loaded = subject.loaded
    names = {
        str(t): role for role in ("unk", "bos", "pad", "eos") if (t := getattr(loaded, f"{role}_token")) is not None
    }
    added = subject.tokenizer.get_added_tokens_decoder()
    return [
        {"id": i, "token": token.content, "special": token.special, "role": names.get(token.content)}
        for i, token in sorted(added.items())
    ]


def _chat(subject: Subject) -> dict[str, Any] | None:
    """A short conversation as the chat template writes it, with its ids; the reason when it refuses."""
    from jinja2 import TemplateError

    if not subject.loaded.chat_template:
        return None
    try:
        text = subject.loaded.apply_chat_template(CHAT, tokenize=False)
        ids = list(subject.loaded.apply_chat_template(CHAT, return_dict=True)["input_ids"])
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        return {"refused": str(error)}
    return {"text": text, "ids": ids, "tokens": [subject.text_of(i) for i in ids]}


def pieces(subject: Subject, text: str) -> list[dict[str, Any]]:
    """The text cut where the tokenizer cuts it: pieces with their ids, several where a character is split in bytes."""
    encoding = subject.tokenizer.encode(text, add_special_tokens=False)
    found: list[dict[str, Any]] = []
    end = 0
    for token_id, (_, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        if found and stop <= end:  # a further byte of the same character
            found[-1]["ids"].append(token_id)
            continue
        found.append({"text": text[end:stop], "ids": [token_id]})
        end = max(end, stop)
    if text[end:]:
        found.append({"text": text[end:], "ids": []})
    return found
