"""The command that holds the estimate against measurements."""

import json
from pathlib import Path
from threading import Thread

import pytest

from ingot.benchmark.memory import Room, main, table
from ingot.recipe_yaml import InputError


def test_simulated_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "memory.json"
    assert main(["--cases", "tiny, 32x512", "--simulate", "--json", "--out", str(out)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads(out.read_text(encoding="utf-8"))
    assert results["device"] == "simulated"
    assert results["largest_miss"] < 0.01
    row = results["cases"][0]
    assert sum(row["by_part"].values()) == pytest.approx(row["estimated_bytes"], rel=0.02)
    assert "| simulated GiB |" in table(results)


def test_unknown_case_is_refused() -> None:
    with pytest.raises(InputError, match=r"--cases: none of the \d+ cases has 900b"):
        main(["--cases", "900b"])


def test_cases_wait_for_room() -> None:
    room = Room(100)
    first = room.take(80)
    taken: list[int] = []
    other = Thread(target=lambda: taken.append(room.take(500)))  # more than there is: all of it
    other.start()
    assert not taken
    room.give(first)
    other.join(10)
    assert taken == [100]


def test_failed_case_is_a_row_of_its_own() -> None:
    results = {"device": "H200", "torch": "2.11", "seconds": 1, "cases": [{"case": "a", "error": "out of memory"}]}
    assert "| a | out of memory |" in table(results)
