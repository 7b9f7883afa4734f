"""`ingot inspect tokenizer`: from the words of the command line to a page."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ingot.planning.arguments import Parser
from ingot.recipe import InputError
from ingot.tokenization.build import TOKENIZER_FILES
from ingot.tokenization.inspect import Subject, Text, describe, own_texts
from ingot.tokenization.pages import html_page, present, text_page

KNOWN = ("gpt2", "qwen3")  # what a tokenizer is compared with when these folders are beside the project
BESIDE = Path("shared/data/tokenizers")
MAX_DOCUMENTS = 500  # of a file
MAX_CHARACTERS = 100_000  # of a document


def inspect_tokenizer_command(arguments: Sequence[str]) -> None:
    """Does what the words after `ingot inspect tokenizer` say.

    Raises: InputError in one line that names the word or file.
    """
    words = parse(arguments)
    _refuse_no_tokenizer(words.folder)
    texts = [*own_texts(), *(text_of_file(path) for path in words.text)]
    others = [Subject(folder) for folder in (known_folders() if words.against is None else words.against)]
    present(describe(Subject(words.folder), others, texts), words, html_page, text_page)


def _refuse_no_tokenizer(folder: Path) -> None:
    places = (folder, folder / "model")
    if not any(path.name.startswith(TOKENIZER_FILES) for place in places for path in place.glob("*")):
        what = "no tokenizer here (no tokenizer.json)" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{folder}: {what}; name a run of train_tokenizer, a model, or a folder with a tokenizer.json"
        )


def parse(arguments: Sequence[str]) -> Namespace:
    """The words, checked.

    Raises: InputError for a word that is not known.
    """
    parser = Parser(
        prog="ingot inspect tokenizer",
        description="How a tokenizer packs ten languages, code and your text, what its entries are, how it cuts.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="folder of a tokenizer, a run or a model")
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], help="files to measure on as well: text, jsonl, ..."
    )
    parser.add_argument(
        "--against", type=Path, nargs="*",
        help="folders of tokenizers to compare with; default: gpt2 and qwen3 where they lie beside the project",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, help="write a page with coloured tokens")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser.parse_all(arguments)


def known_folders() -> Iterator[Path]:
    """The folders of KNOWN that are there, beside the working directory or beside the project."""
    for name in KNOWN:
        places = [base / BESIDE / name for base in (Path.cwd().parent, Path(__file__).resolve().parents[3])]
        yield from [place for place in places if (place / "tokenizer.json").is_file()][:1]


def text_of_file(path: Path) -> Text:
    """The first documents of a file, read as prepare_data reads them.

    Raises: InputError when it cannot be read.
    """
    from ingot.data.documents import read_documents
    from ingot.data.sources import Source, list_units

    units = list_units([Source.model_validate({"path": str(path)})])
    documents = (document for unit in units for document in read_documents(unit))
    parts = [document.text[:MAX_CHARACTERS] for document in islice(documents, MAX_DOCUMENTS)]
    return Text(path.name, "file", parts)
