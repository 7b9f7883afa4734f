"""The measure of blocks reads every kind of dataset, and its shards are what they say."""

from pathlib import Path

from ingot.benchmark import blocks
from ingot.benchmark.blocks import blocks_table, measure_blocks
from ingot.data.shards import TokenShards


def test_every_kind_is_measured() -> None:
    measured = measure_blocks(60_000, 64, (100, 300), (300, 70_000), processes=(1,), repeats=1, num_blocks=40)
    datasets = ("concatenate", "best_fit", "mixture", "curriculum")
    kinds = {"copy", *(f"{how}_{name}" for how in ("item", "loader") for name in datasets)}
    found = {(r["dtype"], r["mean_length"], r["what"]) for r in measured["rates"]}
    assert found == {(d, m, k) for d in ("uint16", "uint32") for m in (100, 300) for k in kinds}
    assert all(r["blocks_per_second"] > 0 for r in measured["rates"] + measured["scaling"])
    assert [(r["packing"], r["mean_length"]) for r in measured["packing"]] == [
        ("concatenate", 100), ("best_fit", 100), ("concatenate", 300), ("best_fit", 300),
    ]  # fmt: skip
    table = blocks_table(measured)
    assert table.count("\n| ") == len(kinds) + 1 + 4 + 1 + 1 and "uint32, documents of 300" in table


def test_documents_have_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    shards = TokenShards(blocks._write(tmp_path / "run", 400_000, 200, 300), "train")
    assert 400_000 <= shards.num_tokens < 450_000
    assert 180 < shards.num_tokens / shards.num_documents < 220
    document = shards.document(5)
    assert document[-1] == 0 and (document[:-1] > 0).all()
