"""The held-out documents that prepare_data wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.recipe import InputError


@dataclass(frozen=True)
class Document:
    """One held-out document, whole."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The length of the text in UTF-8."""
        return len(self.text.encode())


def read_documents(folder: Path, split: str) -> list[Document]:
    """The documents of `<folder>/<split>.jsonl`, one JSON object with `id` and `text` a line.

    Raises: InputError that names the file and line.
    """
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise InputError(f"data.split: {path} does not exist; hold a {split} split out when preparing the data")
    with open(path, encoding="utf-8") as lines:
        documents = [_document(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    if not documents:
        raise InputError(f"{path}: 0 documents in the file; hold more documents out when preparing the data")
    return documents


def _document(line: str, place: str) -> Document:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"]:
        raise InputError(f"{place}: expected an object with a non-empty `text`")
    return Document(str(row.get("id", "")), row["text"], row.get("metadata") or {})
