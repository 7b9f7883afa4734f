"""A file, or a part of it, as blocks of decompressed bytes, and those as lines or other pieces.

Memory is bounded by the size of a block and of the longest piece that is wanted, whatever the file holds.
"""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from ingot.data.listing import compression_of, open_file
from ingot.data.sources import Unit
from ingot.recipe import InputError

BLOCK = 4 << 20  # bytes
FINER = (2048, 1)  # bytes; of a block in which damage is met, the library gives nothing
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CODECS = {".gz": "gzip", ".zst": "zstd"}
# first bytes -> what the file is, whatever its name says
MAGIC = {
    b"\x1f\x8b": "gzip-compressed (.gz)", b"\x28\xb5\x2f\xfd": "zstd-compressed (.zst)", b"PAR1": "a parquet file",
    b"PK\x03\x04": "a zip file", b"BZh": "bzip2-compressed", b"\xfd7zXZ": "xz-compressed", b"%PDF-": "a PDF file",
    b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip


class DamagedFile(Exception):
    """The rest of a file cannot be read; the message says why."""


@dataclass(frozen=True)
class TooLong:
    """What stands for a piece that is longer than wanted: its bytes and the line ends in it."""

    num_bytes: int
    num_lines: int


Piece = bytes | TooLong


def read_blocks(unit: Unit, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The decompressed bytes of a unit's file; of an uncompressed one also a range of bytes.

    Raises: DamagedFile when it cannot be decompressed to its end; OSError when it cannot be read.
    """
    assert unit.path is not None
    codec = compression_of(unit.path)
    if end is not None:
        yield from _range(unit, begin, end)
        return
    blocks = _plain(unit.path) if codec is None else _decompressed(unit.path, CODECS[codec])
    for i, block in enumerate(blocks):
        if i == 0:
            _check_kind(block)
        yield block


def _plain(path: str) -> Iterator[bytes]:
    with open_file(path) as file:
        while block := file.read(BLOCK):
            yield block


def _check_kind(block: bytes) -> None:
    kind = next((kind for magic, kind in MAGIC.items() if block.startswith(magic)), None)
    if kind is not None:
        raise DamagedFile(f"its first bytes say that it is {kind}, not what its name says")


def _decompressed(path: str, codec: str) -> Iterator[bytes]:
    """Raises: DamagedFile after the last byte that can be had."""
    done = 0
    for size in (BLOCK, *FINER):
        try:
            for block in _stream(path, codec, size, done):
                done += len(block)
                yield block
            return
        except DamagedFile:
            if size == FINER[-1]:
                raise


def _stream(path: str, codec: str, size: int, skip: int = 0) -> Iterator[bytes]:
    """What comes out of a compressed file after the first `skip` bytes, `size` bytes at a time."""
    import pyarrow

    with ExitStack() as stack:
        file = stack.enter_context(open_file(path))
        source = stack.enter_context(pyarrow.PythonFile(file, "r"))
        stream = stack.enter_context(pyarrow.CompressedInputStream(source, codec))
        while block := _next_block(stream, min(BLOCK, skip) if skip else size):
            if not skip:
                yield block
            skip = max(0, skip - len(block))


def _next_block(stream: Any, size: int) -> bytes:
    try:
        return bytes(stream.read(size))
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the contents
            raise
        raise DamagedFile(f"truncated or damaged: {error}") from None


def _range(unit: Unit, begin: int, end: int) -> Iterator[bytes]:
    assert unit.path is not None
    with open_file(unit.path) as file:
        file.seek(begin)
        while begin < end:
            block = file.read(min(BLOCK, end - begin))
            if not block:
                raise InputError(f"{unit.path}: ends before its {unit.size} bytes; it changed while it was read")
            begin += len(block)
            yield block


def range_of(unit: Unit, separator: bytes) -> tuple[int, int]:
    """The bytes of the pieces that begin in a part of a file.

    Raises: InputError when the file is not as long as it was.
    """
    assert unit.path is not None and unit.stop is not None
    with open_file(unit.path) as file:
        size = file.seek(0, io.SEEK_END)
        if size != unit.size:
            raise InputError(f"{unit.path}: has {size} bytes and had {unit.size}; it changed while it was read")
        return first_piece(file, unit.start, separator), first_piece(file, unit.stop, separator)


def first_piece(file: BinaryIO, offset: int, separator: bytes) -> int:
    """The first byte at or after `offset` where a piece begins, or the end of the file."""
    if offset == 0:
        return 0
    place = file.seek(max(0, offset - len(separator)))
    tail = b""
    while block := file.read(BLOCK):
        window = tail + block
        found = window.find(separator)
        if found >= 0:
            return place - len(tail) + found + len(separator)
        place += len(block)
        tail = window[len(window) - len(separator) + 1 :] if len(separator) > 1 else b""
    return place


def split_pieces(blocks: Iterator[bytes], separator: bytes, limit: int) -> Iterator[list[Piece]]:
    """The pieces between separators, some at a time; an end without a separator is a piece unless it is empty."""
    keep = len(separator) - 1  # so many last bytes may begin a separator
    held, tail = _Held(limit), b""
    for block in blocks:
        *pieces, rest = (tail + block).split(separator)
        if pieces:
            first, held = held.end(pieces[0]), _Held(limit)
            yield [first, *_shortened(pieces[1:], limit)]
        cut = max(0, len(rest) - keep)
        held.add(rest[:cut])
        tail = rest[cut:]
    if held.num_bytes or tail:
        yield [held.end(tail)]


def _shortened(pieces: list[bytes], limit: int) -> list[Piece]:
    if not pieces or max(map(len, pieces)) <= limit:
        return list(pieces)
    return [piece if len(piece) <= limit else TooLong(len(piece), piece.count(b"\n")) for piece in pieces]


class _Held:
    """The beginning of a piece whose end has not come; once it is too long, only its length is kept."""

    def __init__(self, limit: int) -> None:
        self.limit, self.parts = limit, list[bytes]()
        self.num_bytes = self.num_lines = 0

    def add(self, part: bytes) -> None:
        self.num_bytes += len(part)
        self.parts.append(part)
        if self.num_bytes > self.limit:
            self.num_lines += sum(p.count(b"\n") for p in self.parts)
            self.parts.clear()

    def end(self, part: bytes) -> Piece:
        if not self.num_bytes:
            return _shortened([part], self.limit)[0]
        self.add(part)
        if self.num_bytes > self.limit:
            return TooLong(self.num_bytes, self.num_lines)
        return b"".join(self.parts)


def numbered_pieces(unit: Unit, separator: bytes = b"\n") -> Iterator[tuple[int, Piece]]:
    """The pieces of a unit, each with the line that it begins on or, in a part of a file, with its first byte.

    Raises: as read_blocks.
    """
    position, blocks = 1, read_blocks(unit)
    if unit.is_part:
        position, end = range_of(unit, separator)
        blocks = read_blocks(unit, position, end)
    first, counts_lines, lines = unit.start == 0, not unit.is_part, separator.count(b"\n")
    for pieces in split_pieces(blocks, separator, unit.source.max_line_bytes):
        for piece in pieces:
            shown = piece
            if first and isinstance(piece, bytes):
                shown, first = piece.removeprefix(BYTE_ORDER_MARK), False
            yield position, shown
            if counts_lines:
                position += lines + (0 if separator == b"\n" else _num_lines(piece))
            else:
                position += len(separator) + (len(piece) if isinstance(piece, bytes) else piece.num_bytes)


def _num_lines(piece: Piece) -> int:
    return piece.count(b"\n") if isinstance(piece, bytes) else piece.num_lines
