"""The measure of reading counts what it read, in every format."""

from ingot.benchmark.reading import FORMATS, measure_reading, reading_table


def test_every_format_reads_the_same_rows_and_text() -> None:
    measured = measure_reading(num_megabytes=1, repeats=1)
    assert [entry["format"] for entry in measured] == list(FORMATS)
    assert len({(entry["rows"], entry["megabytes"]) for entry in measured}) == 1 and measured[0]["rows"] == 250
    assert [entry["decompression"] is not None for entry in measured] == [f.endswith(("gz", "zst")) for f in FORMATS]
    assert reading_table(measured).count("\n") == len(FORMATS) + 1
