"""Parquet and arrow files and datasets of the Hub to rows."""

import io
from collections.abc import Iterator
from typing import Any

from ingot.data.blocks import DamagedFile
from ingot.data.listing import open_file
from ingot.data.rows import BadRow, Choose, Record, Row
from ingot.data.sources import Unit
from ingot.recipe import InputError

BATCH_BYTES = 4 << 20  # decompressed, by the file's own account
BATCH_ROWS = 1024
BUFFER = 4 << 20  # bytes read at once from each column
MOST_LOST = 1 << 24  # rows; a damaged file's own account beyond this is not believed
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(unit: Unit, choose: Choose | None = None) -> Iterator[Record]:
    """The rows of a parquet file or of a part's row groups, numbered through the whole file.

    Raises: DamagedFile when its footer cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    assert unit.path is not None
    with open_file(unit.path) as raw:
        try:
            file = pyarrow.parquet.ParquetFile(raw, buffer_size=BUFFER)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            names = file.schema_arrow.names
        except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            raise _damaged(error, "parquet") from None
        with file:
            if sum(group.num_rows for group in groups) != file.metadata.num_rows:
                raise DamagedFile("not a readable parquet file: its footer contradicts itself on the number of rows")
            columns = _chosen(names, choose)
            number = sum(group.num_rows for group in groups[: unit.start])
            for i in range(unit.start, len(groups) if unit.stop is None else unit.stop):
                for row in _row_group(file, i, groups[i], columns):
                    number += 1
                    yield number, row


def _damaged(error: Exception, format: str) -> Exception:
    """What to raise: the error itself when the disk or the network failed, else that the file is damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DamagedFile(f"not a readable {format} file: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    return (str(error) or type(error).__name__).split("\n")[0]


def _chosen(names: list[str], choose: Choose | None) -> list[str] | None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DamagedFile(f"two of its columns are named '{twice}'; give every column a name of its own")
    chosen = choose(names) if choose is not None else None
    return None if chosen is None or any("." in name for name in chosen) else chosen  # a dot means a nested column


def _row_group(file: Any, index: int, group: Any, columns: list[str] | None) -> Iterator[Row | BadRow]:
    """As many rows as the file says that the group has, those that cannot be read as BadRows."""
    import pyarrow

    size = max(1, group.total_byte_size // max(1, group.num_rows))
    batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES // size))
    done, reason = 0, "the row group is shorter than the file says"
    try:
        for batch in file.iter_batches(batch_rows, row_groups=[index], columns=columns):
            for row in _rows(batch):
                done += 1
                yield row
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"damaged row group: {_first_line(error)}"
    if group.num_rows - done > MOST_LOST:
        raise DamagedFile(f"not a readable parquet file: {reason}")
    for _ in range(group.num_rows - done):
        yield BadRow("bad_row", f"not readable: {reason}")


def _rows(batch: Any) -> Iterator[Row | BadRow]:
    import pyarrow

    names = batch.schema.names
    try:
        columns = [column.to_pylist() for column in batch.columns]
    except (ValueError, ArithmeticError, pyarrow.ArrowException):
        yield from (_row(names, batch.columns, i) for i in range(batch.num_rows))
        return
    if not columns:
        yield from ({} for _ in range(batch.num_rows))
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _row(names: list[str], columns: list[Any], index: int) -> Row | BadRow:
    """One row of a batch that holds a value which Python cannot take."""
    import pyarrow

    row = {}
    for name, column in zip(names, columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return BadRow("bad_encoding", f"column '{name}' is not UTF-8 text ({error.reason})")
        except (ValueError, ArithmeticError, pyarrow.ArrowException) as error:
            return BadRow("bad_row", f"column '{name}' cannot be read: {_first_line(error)}")
    return row


def read_arrow(unit: Unit, choose: Choose | None = None) -> Iterator[Record]:
    """The rows of an arrow file or stream, such as those of a saved Hugging Face dataset.

    Raises: DamagedFile from where it cannot be read on.
    """
    import pyarrow

    assert unit.path is not None
    number = 0
    with open_file(unit.path) as raw:
        try:
            for batch in _batches(raw):
                columns = _chosen(batch.schema.names, choose)
                for row in _checked_rows(batch if columns is None else batch.select(columns)):
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
            raise _damaged(error, "arrow") from None


def _checked_rows(batch: Any) -> Iterator[Row | BadRow]:
    """The rows of a batch that was read as it lay on disk: wrong offsets in it would end the process."""
    import pyarrow

    if batch.num_rows > MOST_LOST:
        raise DamagedFile("not a readable arrow file: a batch without end")
    try:
        batch.validate(full=True)
    except pyarrow.ArrowException as error:
        yield from (BadRow("bad_row", f"not readable: {_first_line(error)}") for _ in range(batch.num_rows))
        return
    yield from _rows(batch)


def _batches(raw: Any) -> Iterator[Any]:
    import pyarrow

    is_file = raw.read(6) == b"ARROW1"
    raw.seek(0)
    if is_file:
        with pyarrow.ipc.open_file(raw) as file:
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        return
    with pyarrow.ipc.open_stream(raw) as stream:
        for batch in stream:
            yield from (batch.slice(i, BATCH_ROWS) for i in range(0, batch.num_rows, BATCH_ROWS))
    raw.seek(-len(END_OF_STREAM), io.SEEK_END)
    if raw.read() != END_OF_STREAM:  # the library takes the end of the file for the end of the stream
        raise DamagedFile("not a readable arrow file: its end is missing")


def read_hub(unit: Unit) -> Iterator[Record]:
    """A dataset of the Hugging Face Hub, streamed, or from the cache after a download.

    Raises: InputError when it is not there, or the Hub cannot be reached.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    source, number = unit.source, 0
    assert source.hub is not None
    try:
        keys: dict[str, Any] = {"split": source.dataset_split, "revision": source.revision}
        keys["streaming"] = source.streaming
        rows = load_dataset(source.hub, source.subset, **keys)
        for number, row in enumerate(rows, 1):
            yield number, dict(row)
    except (OSError, ValueError, DatasetsError) as error:
        where = f" after row {number}" if number else ""
        what = f"cannot be {'read' if number else 'opened'}{where}: {_first_line(error)}"
        raise InputError(f"{unit.place}: {what}; check its name and the network") from None
