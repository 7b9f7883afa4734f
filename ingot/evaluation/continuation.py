"""A multiple-choice task made from the held-out documents: which of four passages really comes next?

The three wrong passages have the same number of words and come from other held-out documents. The same documents and
seed give the same rows. Chance level is one in four.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ingot.evaluation.documents import Document
from ingot.recipe import InputError
from ingot.recipe_yaml import dump_yaml
from ingot.runs import write_text

TASK = "continuation"
PASSAGE_WORDS, CONTINUATION_WORDS, NUM_CHOICES = 48, 16, 4


def continuation_rows(documents: Sequence[Document], num_rows: int, seed: int = 0) -> list[dict[str, object]]:
    """Rows with `passage`, `choices`, `label`, and the `document` they come from.

    Raises: InputError when fewer than two documents are long enough.
    """
    words = {str(i): d.text.split() for i, d in enumerate(documents)}
    length = PASSAGE_WORDS + CONTINUATION_WORDS
    usable = {key: row for key, row in words.items() if len(row) >= length}
    if len(usable) < 2:
        raise InputError(
            f"data.continuation_rows: needs two held-out documents of {length} words or more, found {len(usable)}; "
            "hold more documents out, or set it to 0"
        )
    generator = random.Random(seed)
    return [_row(usable, documents, generator) for _ in range(num_rows)]


def _row(words: dict[str, list[str]], documents: Sequence[Document], generator: random.Random) -> dict[str, object]:
    key = _draw_document(words, generator)
    row = words[key]
    start = generator.randrange(len(row) - PASSAGE_WORDS - CONTINUATION_WORDS + 1)
    split = start + PASSAGE_WORDS
    choices = [" ".join(row[split : split + CONTINUATION_WORDS])]
    while len(choices) < NUM_CHOICES:
        other = words[_draw_document({k: v for k, v in words.items() if k != key}, generator)]
        place = generator.randrange(len(other) - CONTINUATION_WORDS + 1)
        choices.append(" ".join(other[place : place + CONTINUATION_WORDS]))
    label = generator.randrange(NUM_CHOICES)
    choices[0], choices[label] = choices[label], choices[0]
    return {
        "document": documents[int(key)].id,
        "passage": " ".join(row[start:split]),
        "choices": choices,
        "label": label,
    }


def _draw_document(words: dict[str, list[str]], generator: random.Random) -> str:
    """Longer documents are drawn more often, so that every passage is about as likely as any other."""
    return generator.choices(list(words), weights=[len(row) for row in words.values()])[0]


def write_task(documents: Sequence[Document], num_rows: int, folder: Path) -> Path:
    """Writes the rows and the lm-eval task that reads them into a folder; returns the task's YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = continuation_rows(documents, num_rows)
    data = folder / f"{TASK}.jsonl"
    write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{passage}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    write_text(folder / f"{TASK}.yaml", dump_yaml(task))
    return folder / f"{TASK}.yaml"
