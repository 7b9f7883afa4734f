"""A tokenizer from elsewhere as an Ingot tokenizer folder: what is missing is added, what is lost is refused."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from ingot.recipe import InputError
from ingot.tokenization.build import Roles, write_folder
from ingot.tokenization.chat_template import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    GENERATION_MARK,
    PAD,
    TURN_END,
    TURN_START,
)
from ingot.tokenization.sample_texts import NASTY, SPACE_SIGN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHOWN = 3  # losses that are told one by one
ROUNDING = 1e-5  # of a score; SentencePiece adds up in 32 bits
NO_LIMIT = 1 << 40  # tokens; the length that a source warns of is that of its own model


@dataclass
class Foreign:
    """A tokenizer from elsewhere on its way to a folder of ours."""

    tokenizer: "Tokenizer"
    names: dict[str, str]  # role (bos, eos, pad, unk) -> token
    template: str | None
    encode: Callable[[str], list[int]]  # the source library's own ids
    spells_special: bool = False  # whether the source takes a spelt special token for text
    score: Callable[[list[int]], float] | None = None  # how likely a way to cut a text is, where that decides
    added: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_tokenizer(source: Path, target: Path, texts: Iterable[str], allow_lossy: bool) -> dict[str, Any]:
    """Writes the tokenizer in a SentencePiece `.model` file or an AutoTokenizer folder as a folder of ours.

    texts: what the ids are compared on, beside a list of awkward ones.
    Returns what was added (`added`), what is worth knowing (`notes`), the size and the number of texts compared.
    Raises: InputError when it cannot be read, changes texts (unless `allow_lossy`), or would give other ids.
    """
    foreign = read_foreign(source)
    losses = list(find_losses(foreign.tokenizer))
    if losses and not allow_lossy:
        raise InputError(
            f"tokenizer.from: {source} does not give every text back: {losses[0]}; models cannot write what their "
            "tokenizer loses; choose another, or accept it with tokenizer.allow_lossy: true"
        )
    foreign.notes += [*losses[:SHOWN], *small_losses(foreign.tokenizer)]
    if len(losses) > SHOWN:
        foreign.notes.append(f"and {len(losses) - SHOWN} more of {len(NASTY)} awkward texts do not come back")
    roles = complete(foreign)
    write_folder(foreign.tokenizer, target, roles)
    compared = compare(foreign, target, [*NASTY, *texts], source)
    return {
        "vocab_size": foreign.tokenizer.get_vocab_size(),
        "added": foreign.added,
        "notes": foreign.notes,
        "texts_compared": compared,
    }


def read_foreign(source: Path) -> Foreign:
    """Reads the file or folder.

    Raises: InputError when it cannot be read, or has no form in the tokenizers library.
    """
    if source.is_file():
        from ingot.tokenization.sentencepiece_model import read_sentencepiece

        model = read_sentencepiece(source)
        return Foreign(model.tokenizer, model.names, None, model.encode, True, model.score)
    from ingot.loading import load_tokenizer

    loaded: Any = load_tokenizer(source)
    if not loaded.is_fast:
        raise InputError(
            f"tokenizer.from: {source}: {type(loaded).__name__} is written in Python and has no tokenizer.json; "
            "choose a tokenizer that the tokenizers library runs"
        )
    loaded.model_max_length = NO_LIMIT
    roles = ("bos", "eos", "pad", "unk")
    names = {role: str(name) for role in roles if (name := getattr(loaded, f"{role}_token")) is not None}
    foreign = Foreign(_backend(loaded), names, None, _plain_encoder(loaded))
    foreign.template = _template(loaded, foreign)
    if loaded.num_special_tokens_to_add():
        foreign.notes.append("nothing is put around texts any more: token shards hold no such tokens")
    return foreign


def _backend(loaded: Any) -> "Tokenizer":
    """A copy of the tokenizer that puts nothing around texts and neither pads nor cuts them."""
    from tokenizers import Tokenizer

    tree = json.loads(loaded.backend_tokenizer.to_str())
    tree |= {"padding": None, "truncation": None}
    if (tree["post_processor"] or {}).get("type") != "ByteLevel":  # that one only sets offsets
        tree["post_processor"] = None
    return Tokenizer.from_str(json.dumps(tree))


def _plain_encoder(loaded: Any) -> Callable[[str], list[int]]:
    return lambda text: list(loaded(text, add_special_tokens=False)["input_ids"])


def _template(loaded: Any, foreign: Foreign) -> str | None:
    """The source's chat template; of several the default one."""
    template = loaded.chat_template
    if isinstance(template, dict):
        foreign.notes.append(f"of the chat templates {', '.join(template)} only 'default' is kept")
        template = template.get("default")
    if template and not GENERATION_MARK.search(template):
        foreign.notes.append("the chat template has no generation marks: sft finds answers turn by turn")
    return template or None


def find_losses(tokenizer: "Tokenizer") -> Iterator[str]:
    """What does not come back from ids as it was: a line for each awkward text that is another one afterwards.

    Composed and decomposed letters (é as one character or two) count as the same: Unicode says that they are, and
    Qwen3 composes them.
    """
    for text in NASTY:
        back = decode(tokenizer, spelt_ids(tokenizer, text))
        if normalize("NFC", back) != normalize("NFC", text):
            yield f"{text!r} comes back as {back!r}"


def small_losses(tokenizer: "Tokenizer") -> Iterator[str]:
    """What is changed in texts without being refused."""
    if decode(tokenizer, spelt_ids(tokenizer, "e\u0301")) == "\u00e9":
        yield "decomposed letters come back composed (Unicode NFC)"
    if decode(tokenizer, spelt_ids(tokenizer, f"a{SPACE_SIGN}b")) == "a b":
        yield f"the character U+2581 ({SPACE_SIGN}) comes back as a space, as in SentencePiece itself"


def spelt_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The ids of a text in which special tokens are spelt out and mean nothing, as in a document."""
    tokenizer.encode_special_tokens = True
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    tokenizer.encode_special_tokens = False
    return ids


def decode(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """The text of ids, special tokens included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def complete(foreign: Foreign) -> Roles:
    """Adds the end, padding and chat tokens that are missing, and the chat template; `added` says what."""
    names, tokenizer = foreign.names, foreign.tokenizer
    if "eos" not in names:
        names["eos"] = _add(foreign, END_OF_TEXT, "eos_token")
    ends = {names["eos"], names.get("bos"), names.get("unk"), END_OF_TEXT}
    if names.get("pad") in {None, *ends}:
        names["pad"] = _add(foreign, PAD, "pad_token")
    if foreign.template is None:
        for token in (TURN_START, TURN_END):
            _add(foreign, token, "chat")
        foreign.template = CHAT_TEMPLATE
        foreign.added.append("chat template (ChatML)")
    special = [t.content for _, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special]
    return Roles(
        eos_token=names["eos"],
        pad_token=names["pad"],
        bos_token=names.get("bos"),
        unk_token=names.get("unk"),
        further=tuple(token for token in special if token not in names.values()),
        chat_template=foreign.template,
    )


def _add(foreign: Foreign, token: str, purpose: str) -> str:
    """Makes a token special; says so when it is new."""
    from tokenizers import AddedToken

    if foreign.tokenizer.token_to_id(token) is None:
        foreign.added.append(f"{token} ({purpose}, id {foreign.tokenizer.get_vocab_size()})")
    foreign.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return token


def compare(foreign: Foreign, folder: Path, texts: Iterable[str], source: Path) -> int:
    """Compares the ids of the written folder with the source library's. Returns the number of texts.

    Raises: InputError that shows the first text with other ids. Of two cuts that are equally likely within the
    source's rounding either will do; `notes` counts them.
    """
    from transformers import AutoTokenizer

    ours: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    number = ties = 0
    for number, text in enumerate(texts, 1):
        found = ours(text, add_special_tokens=False, split_special_tokens=foreign.spells_special)["input_ids"]
        expected = foreign.encode(text)
        if list(found) == expected:
            continue
        if not _as_likely(foreign, found, expected):
            place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
            raise InputError(
                f"tokenizer.from: {source} cannot be taken over: text {number} ({text[:40]!r}) gets other ids than "
                f"from its own library, the first at token {place}"
            )
        ties += 1
    if ties:
        foreign.notes.append(f"{ties} of {number} texts have two equally likely cuts; SentencePiece takes the other")
    return number


def _as_likely(foreign: Foreign, found: list[int], expected: list[int]) -> bool:
    """Whether two ways to cut a text differ by no more than the rounding of the source."""
    if foreign.score is None:
        return False
    wanted = foreign.score(expected)
    return abs(foreign.score(found) - wanted) <= ROUNDING * abs(wanted)
