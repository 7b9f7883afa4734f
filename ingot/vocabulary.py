"""Whether a tokenizer and a model belong together: the one check of every stage that takes both."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.files import sha256_file
from ingot.recipe_yaml import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROW_MULTIPLE = 128  # embedding rows are a multiple of this: matrix products of other sizes are slow
ROLES = ("eos", "pad", "bos", "unk")
MARK = re.compile(r"<\|[^|<>\s]+\|>")  # how chat templates write turns
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@dataclass(frozen=True)
class Shards:
    """Tokens that the model will read, and the sha256 of the tokenizer.json that made them."""

    key: str  # of the recipe
    folder: Path
    tokenizer_sha256: str


def rows_for(num_tokens: int) -> int:
    """The least number of embedding rows for so many tokens."""
    return -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def embedding_rows(model: "PreTrainedModel") -> int:
    """The rows of a loaded model's token table."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def check_pair(
    tokenizer: "PreTrainedTokenizerBase",
    rows: int,
    place: str,
    needs: tuple[str, ...] = (),
    new: bool = False,
    shards: Sequence[Shards] = (),
) -> None:
    """Checks that a model with `rows` embedding rows can work with a tokenizer.

    Every id has a row; the end, padding and chat tokens are single ids; those of the roles in `needs` (`eos`, `pad`)
    are there. A `new` model has a multiple of 128 rows. The tokens of `shards` were made with this very tokenizer.
    place: what messages begin with, such as `run.from: runs/x/model`.
    Raises: InputError with the first thing that is wrong and the way out.
    """
    for problem in (
        _rows_problem(tokenizer, rows, new),
        next(_role_problems(tokenizer, needs), None),
        next(_split_tokens(tokenizer), None),
    ):
        if problem is not None:
            raise InputError(f"{place}: {problem}")
    for entry in shards:
        _check_shards(tokenizer, entry)


def _rows_problem(tokenizer: "PreTrainedTokenizerBase", rows: int, new: bool) -> str | None:
    needed = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    if rows < needed and new:
        return f"{rows} rows are too few for the tokenizer's {needed} tokens; set it to {rows_for(needed)} or more"
    if rows < needed:
        return (
            f"the tokenizer has ids up to {needed - 1} and the model {rows} embedding rows (ids up to {rows - 1}); "
            "use the tokenizer that the model was trained with"
        )
    if new and rows % ROW_MULTIPLE:
        return (
            f"{rows} is not a multiple of {ROW_MULTIPLE}; for the tokenizer's {needed} tokens set it to "
            f"{rows_for(rows)}"
        )
    return None


def _role_problems(tokenizer: "PreTrainedTokenizerBase", needs: tuple[str, ...]) -> Iterator[str]:
    for role in needs:
        if getattr(tokenizer, f"{role}_token_id") is None:
            yield f"the tokenizer has no {role}_token; name one in tokenizer_config.json"


def _split_tokens(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Special tokens and marks of the chat template that the tokenizer would cut into several."""
    named = [str(name) for role in ROLES if (name := getattr(tokenizer, f"{role}_token")) is not None]
    for name in dict.fromkeys([*named, *_chat_marks(tokenizer)]):
        ids = tokenizer.encode(name, add_special_tokens=False)
        if len(ids) != 1 or ids[0] != tokenizer.get_vocab().get(name):
            yield (
                f"the tokenizer cuts {name} into {len(ids)} tokens, which the model would have to spell; make it a "
                "special token of tokenizer.json"
            )


def _chat_marks(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The marks that the chat template writes around a question and an answer; none where it wants other turns."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return []
    try:
        text: Any = tokenizer.apply_chat_template(TURNS, tokenize=False)
    except (TemplateError, ValueError, TypeError, LookupError):
        return []
    return MARK.findall(text)


def _check_shards(tokenizer: "PreTrainedTokenizerBase", shards: Shards) -> None:
    file = Path(tokenizer.name_or_path) / "tokenizer.json"
    if file.is_file() and sha256_file(file) != shards.tokenizer_sha256:
        raise InputError(
            f"{shards.key}: {shards.folder} holds tokens of another tokenizer than model.tokenizer "
            f"({file.parent}): name the one of its recipe.yaml, or run prepare_data with this one"
        )
