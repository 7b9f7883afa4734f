"""Rows for SFT and DPO: columns are mapped, held-out documents stay held out, and mistakes are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from ingot.data.conversations import ConversationData, load_rows
from ingot.recipe import InputError

from .helpers import write_jsonl

SHARED = Path(__file__).parents[3] / "shared/data"


def load(kind: Any, rows: list[dict[str, Any]], tmp_path: Path, **keys: Any) -> tuple[list[Any], list[Any]]:
    """Loads rows from a file; `columns` and `where` belong to the source, the other keys to the section."""
    source = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}
    source |= {key: keys.pop(key) for key in ("columns", "where") if key in keys}
    return load_rows(ConversationData.model_validate({"train": [source], **keys}), kind)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        ({"prompt": "Q", "response": "A"}, {}, [user("Q"), assistant("A")]),
        (
            {"instruction": "Do", "input": "this", "output": "A"},
            {"prompt": ["instruction", "input"], "response": "output"},
            [user("Do\n\nthis"), assistant("A")],
        ),
        (
            {"instruction": "Do", "input": "", "output": "A", "rule": "Be kind"},
            {"prompt": ["instruction", "input"], "response": "output", "system": "rule"},
            [{"role": "system", "content": "Be kind"}, user("Do"), assistant("A")],
        ),
        ({"messages": [user("Q"), assistant("A"), user("R"), assistant("B")]}, {}, None),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            {"messages": "conversations"},
            [user("Q"), assistant("A")],
        ),
    ],
)
def test_instructions(tmp_path: Path, row: dict[str, Any], columns: dict[str, Any], messages: Any) -> None:
    train, validation = load("sft", [row], tmp_path, columns=columns)
    assert train == [{"messages": messages or row["messages"], "document": None}]
    assert validation == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
        {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
        {"prompt": "Q", "chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ],
)
def test_pairs_in_every_usual_form(tmp_path: Path, row: dict[str, Any]) -> None:
    train, _ = load("preference", [row], tmp_path)
    assert train == [
        {"prompt": [user("Q")], "chosen": [assistant("A")], "rejected": [assistant("B")], "document": None}
    ]


def test_rows_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": " "}, {"prompt": None, "response": "A"}]
    assert len(load("sft", rows, tmp_path)[0]) == 1
    pairs = [{"prompt": "Q", "chosen": "A", "rejected": r} for r in ("B", "A", "")]
    assert len(load("preference", pairs, tmp_path)[0]) == 1


def test_where_keeps_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "response": str(i), "task": "ab"[i % 2]} for i in range(6)]
    train, _ = load("sft", rows, tmp_path, where={"task": "b"})
    assert [row["messages"][1]["content"] for row in train] == ["1", "3", "5"]


def test_rows_are_drawn_to_measure_with(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{i}", "response": "A"} for i in range(20)] + [{"prompt": "Q3", "response": "A"}] * 20
    train, validation = load("sft", rows, tmp_path, validation_rows=15)
    assert len(validation) == 15
    assert load("sft", rows, tmp_path, validation_rows=15) == (train, validation)
    assert load("sft", rows, tmp_path, validation_rows=15, seed=1)[1] != validation
    measured = [row["messages"] for row in validation]
    assert all(row["messages"] not in measured for row in train)  # nor a copy of one


def test_rows_of_held_out_documents_measure(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    write_jsonl(tmp_path / "held" / "validation.jsonl", [{"id": "7", "text": "x", "metadata": {}}])
    write_jsonl(tmp_path / "held" / "test.jsonl", [{"id": "9", "text": "x", "metadata": {}}])
    rows = [{"prompt": f"Q{i}", "response": "A", "page": i} for i in range(12)]
    keys = {"heldout": str(tmp_path / "held"), "columns": {"document": "page"}}
    train, validation = load("sft", rows, tmp_path, **keys)
    assert [row["document"] for row in validation] == ["7", "9"]
    assert len(train) == 10
    with pytest.raises(InputError, match=r"data\.heldout: no row comes from a document that .* held out"):
        load("sft", rows[:5], tmp_path, **keys)


@pytest.mark.parametrize(
    ("kind", "row", "keys", "message"),
    [
        (
            "sft",
            {"question": "Q"},
            {},
            r"rows\.jsonl:1: no column 'prompt'; the columns are question; map messages, or",
        ),
        ("sft", {"prompt": "Q", "answer": "A"}, {}, "no column 'response'; the columns are prompt, answer"),
        (
            "sft",
            {"prompt": "Q", "response": "A"},
            {"columns": {"promt": "prompt"}},
            "columns maps 'promt'; sft rows have",
        ),
        ("sft", {"prompt": "Q", "response": "A"}, {"where": {"lang": "en"}}, "no column 'lang'"),
        ("sft", {"prompt": 3, "response": "A"}, {}, r"rows\.jsonl:1: prompt must be text or a list of messages"),
        (
            "sft",
            {"messages": [{"role": "robot", "content": "x"}]},
            {},
            r"a message needs a role \(system, user, assis",
        ),
        ("sft", {"messages": [user("Q")]}, {}, "no row is left to train on"),
        ("sft", {"prompt": "Q", "response": "A"}, {"validation_rows": 1}, "1 of 1 rows; nothing is left to train on"),
        ("preference", {"prompt": "Q", "chosen": "A"}, {}, "no column 'rejected'"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, kind: str, row: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load(kind, [row], tmp_path, **keys)


def test_contradictions_in_the_recipe_are_named() -> None:
    def problems(**keys: Any) -> list[str]:
        return list(ConversationData.model_validate(keys).problems())

    source = {"path": "a.jsonl"}
    assert problems(train=[source], validation_rows=3) == []
    assert "validation_rows" in problems(train=[source], validation_rows=3, validation=[source])[0]
    assert "data.train.0: needs exactly one of" in problems(train=[{}])[0]
    assert "data.train.0.separator" in problems(train=[{**source, "separator": "x"}])[0]


@pytest.fixture(scope="session")
def held_out_speeches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """What the quick start holds out: 16 speeches from all eras."""
    folder = tmp_path_factory.mktemp("held")
    years = {"validation": (1829, 1886, 1943, 1998), "test": (1798, 1818, 1838, 1852, 1874, 1899, 1917, 1923, 1961)}
    names = {1829: "Jackson", 1886: "Cleveland", 1943: "Roosevelt", 1998: "Clinton", 1798: "Adams", 1818: "Monroe"}
    names |= {1838: "VanBuren", 1852: "Fillmore", 1874: "Grant", 1899: "McKinley", 1917: "Wilson", 1923: "Coolidge"}
    names |= {1961: "Kennedy", 1968: "Johnson", 1992: "Bush", 2022: "Biden"}
    years["test"] += (1968, 1992, 2022)
    for split, chosen in years.items():
        write_jsonl(folder / f"{split}.jsonl", [{"id": f"{year}-{names[year]}-1"} for year in chosen])
    return folder, {f"{year}-{name}-1" for year, name in names.items()}


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_rows_from_the_speeches(kind: Any, held_out_speeches: tuple[Path, set[str]]) -> None:
    folder, held_out = held_out_speeches
    data = ConversationData.model_validate({"train": [{"builtin": "sotu"}], "heldout": str(folder)})
    train, validation = load_rows(data, kind)
    assert len(validation) >= 80
    assert len(train) > 1200
    assert {row["document"] for row in validation} == held_out
    assert not held_out & {row["document"] for row in train}
    assert load_rows(data, kind) == (train, validation)
    if kind == "preference":  # the rejected answers of one side never come from the other
        sides = [{row["rejected"][0]["content"] for row in rows} for rows in (train, validation)]
        assert not sides[0] & sides[1]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "file", "columns", "num_rows"),
    [
        ("sft", "sft/dolly_short/train.jsonl.gz", {"prompt": "instruction"}, 1865),
        (
            "sft",
            "sft/llms_from_scratch/train.jsonl.gz",
            {"prompt": ["instruction", "input"], "response": "output"},
            935,
        ),
        ("sft", "sft/flan_cot/test.jsonl.gz", {}, 500),
        ("preference", "preference/llms_from_scratch/train.jsonl.gz", {"prompt": ["instruction", "input"]}, 929),
        ("preference", "preference/ultrafeedback_1k/test.jsonl.gz", {}, 200),
        ("preference", "preference/oasst_en_100/pairs-train.jsonl.gz", {}, 162),
        ("preference", "preference/hh_rlhf_harmless/test.jsonl.gz", {}, 312),
    ],
)
def test_published_sets_are_expressible(kind: Any, file: str, columns: dict[str, Any], num_rows: int) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"{SHARED / file} is not there")
    source = {"path": str(SHARED / file), "columns": columns}
    rows, _ = load_rows(ConversationData.model_validate({"train": [source]}), kind)
    assert num_rows - 5 <= len(rows) <= num_rows
    assert json.dumps(rows[0])
