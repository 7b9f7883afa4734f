"""How units become tasks: as before for few files, stable groups for many."""

import random

import pytest

from ingot.data.sources import Source, Unit
from ingot.data.tasks import TASK_BYTES, make_tasks

SOURCE = Source(path="x")


def units(count: int, size: int = 1000, suffix: str = ".jsonl") -> list[Unit]:
    return [Unit(SOURCE, f"/corpus/{i:05d}{suffix}", f"0/{i:05d}{suffix}", size=size) for i in range(count)]


def test_up_to_64_units_are_a_task_each_in_their_order() -> None:
    found = units(64)
    assert [task.units for task in make_tasks(found)] == [(unit,) for unit in found]


def test_an_added_file_touches_one_task() -> None:
    for seed in range(20):
        drawn = random.Random(seed)
        before = drawn.sample(units(5000), 800)
        added = next(u for u in units(6000)[5000:] if drawn.random() < 0.01)
        old = {tuple(u.name for u in task.units) for task in make_tasks(before)}
        new = {tuple(u.name for u in task.units) for task in make_tasks([*before, added])}
        assert len(new - old) == 1
        (touched,) = new - old
        assert added.name in touched
        assert len(old - new) == 1


def test_every_unit_is_in_one_task_and_the_order_of_listing_changes_no_group() -> None:
    found = units(1000)
    tasks = make_tasks(found)
    assert sorted(unit.name for task in tasks for unit in task.units) == [unit.name for unit in found]
    mixed = make_tasks(random.Random(0).sample(found, 1000))
    assert [sorted(u.name for u in task.units) for task in mixed] == [[u.name for u in t.units] for t in tasks]


@pytest.mark.parametrize(("suffix", "factor"), [(".jsonl", 1), (".jsonl.zst", 3), (".parquet", 3)])
def test_large_corpora_are_cut_into_tasks_of_about_a_gigabyte_of_text(suffix: str, factor: int) -> None:
    size = TASK_BYTES // 10
    tasks = make_tasks(units(5000, size, suffix))
    texts = [len(task.units) * size * factor for task in tasks]
    assert max(texts) <= TASK_BYTES
    assert sum(texts) / len(texts) > 0.3 * TASK_BYTES


def test_parts_of_a_file_count_by_their_share_and_go_to_several_tasks() -> None:
    step, size = 1 << 28, 100 << 28
    parts = [Unit(SOURCE, "/a.jsonl", "0/a.jsonl", i * step, (i + 1) * step, size) for i in range(100)]
    groups = [unit for i, unit in enumerate(make_tasks(parts)) for unit in [len(unit.units)]]
    assert sum(groups) == 100
    assert max(groups) <= 4
    row_groups = [Unit(SOURCE, "/a.parquet", "0/a.parquet", i, i + 1, size) for i in range(100)]
    assert max(len(task.units) for task in make_tasks(row_groups)) == 1  # about 750 MB of text each
