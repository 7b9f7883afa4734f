"""Near-duplicates by MinHash: one pass notes a few keys of every document, then equal keys are looked for.

The method is Broder's (1997) with banding, and its numbers mean what they mean in datatrove. The hashes are our own,
so that numpy can take a whole document at once; datatrove's step hashes every run of words with SHA-1 in Python.
"""

import io
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingot.data.cleaning.section import Minhash
from ingot.data.cleaning.shingles import Hashes, mixed, words_of
from ingot.data.shard_writer import PartialFile
from ingot.files import naming_full_disk

Ids = NDArray[np.int64]  # task << 32 | number of the document in its task: sorted, they are in reading order
Edges = tuple[Ids, Ids]  # pairs of documents, the earlier one first

CHUNK = 1024  # runs of words hashed at once: the table of hashes stays in the cache
AT_ONCE = 1 << 20  # keys compared at once, about 150 MB
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


class Signer:
    """Turns texts into the keys by which near-duplicates are found."""

    def __init__(self, section: Minhash) -> None:
        self.section = section

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Factor (odd) and summand of every hash, shapes (hashes, 1)."""
        count = self.section.num_buckets * self.section.hashes_per_bucket
        start = np.uint64(2 * count * self.section.seed)
        values = (mixed(np.arange(2 * count, dtype=np.uint64) + start) >> np.uint64(32)).astype(np.uint32)
        return (values[:count] | np.uint32(1))[:, None], values[count:, None]

    def keys(self, text: str) -> Hashes | None:
        """One key for every bucket; None for a text with fewer words than a run has."""
        runs = words_of(text, same_numbers=True).runs(self.section.ngram)
        if not len(runs):
            return None
        return self._keys(self.signature(runs))

    def signature(self, runs: Hashes) -> NDArray[np.uint32]:
        """The smallest value of every hash over all runs, shape (hashes,)."""
        factors, summands = self._hashes
        values = (runs >> np.uint64(32)).astype(np.uint32)
        smallest = np.full(len(factors), np.iinfo(np.uint32).max, np.uint32)
        for begin in range(0, len(values), CHUNK):
            table = factors * values[begin : begin + CHUNK]
            table += summands
            np.minimum(smallest, table.min(axis=1), out=smallest)
        return smallest

    def _keys(self, signature: NDArray[np.uint32]) -> Hashes:
        """The hashes of each bucket as one number."""
        places = np.arange(len(signature), dtype=np.uint64) * _FACTOR
        return mixed(mixed(signature + places).reshape(self.section.num_buckets, -1).sum(axis=1, dtype=np.uint64))


class SignatureWriter:
    """Writes the keys of one task's documents; the files appear when the task is closed.

    Raises: InputError that names the file when the disk is full.
    """

    def __init__(self, folder: Path, rank: int, section: Minhash) -> None:
        self.folder, self.rank = folder, rank
        self.signer = Signer(section)
        self.row = np.dtype([("document", "<u4"), ("keys", "<u8", section.num_buckets)])
        self.rows = PartialFile(folder / f"near-{rank:05d}.rows")

    def add(self, number: int, text: str) -> None:
        """Notes a document; `number` counts the documents of this task and only grows."""
        keys = self.signer.keys(text)
        if keys is not None:
            self.rows.write(np.array((number, keys), self.row).tobytes())

    def close(self) -> None:
        """Sorts what was noted, bucket by bucket."""
        with naming_full_disk(self.rows.path):
            self.rows.file.flush()
        shape = (self.signer.section.num_buckets, self.rows.size // self.row.itemsize)
        rows = np.memmap(self.rows.partial, self.row, "r") if shape[1] else np.empty(0, self.row)
        files = [PartialFile(path) for path in files_of(self.folder, self.rank)]
        for file, dtype in zip(files, ("<u4", "<u8"), strict=True):
            file.write(_npy_header(dtype, shape))
        for bucket in range(shape[0]):
            keys = np.ascontiguousarray(rows["keys"][:, bucket])
            order = np.argsort(keys, kind="stable")
            files[0].write(rows["document"][order].tobytes())
            files[1].write(keys[order].tobytes())
        for file in files:
            file.close()
        del rows
        self.rows.close(keep=False)


def _npy_header(dtype: str, shape: tuple[int, int]) -> bytes:
    """The first bytes of a .npy file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()


def files_of(folder: Path, rank: int) -> tuple[Path, Path]:
    """The two files of a task, documents and keys; when both are there the task is done."""
    return folder / f"near-{rank:05d}-documents.npy", folder / f"near-{rank:05d}-keys.npy"


def near_duplicates(folder: Path, num_tasks: int, at_once: int = AT_ONCE) -> list[NDArray[np.int64]]:
    """For every task the sorted numbers of the documents that are nearly the same as one before in reading order.

    Documents that are linked by a chain of pairs are one cluster; its first document stays.
    Memory: about 150 MB beside the mapped files, and 32 bytes for every document that is found.
    """
    tasks = [(np.load(documents, "r"), np.load(keys, "r")) for documents, keys in _all_files(folder, num_tasks)]
    size = sum(keys.shape[1] for _, keys in tasks)
    limits = _limits(-(-size // at_once))
    found: Edges = (np.empty(0, np.int64), np.empty(0, np.int64))
    for bucket in range(tasks[0][1].shape[0]):
        for low, high in zip(limits[:-1], limits[1:], strict=True):
            found = _linked(found, _pairs(tasks, bucket, low, high))
    ranks = found[1] >> 32
    return [found[1][ranks == rank] & 0xFFFFFFFF for rank in range(num_tasks)]


def _all_files(folder: Path, num_tasks: int) -> Iterator[tuple[Path, Path]]:
    for rank in range(num_tasks):
        yield files_of(folder, rank)


def _limits(parts: int) -> list[int]:
    """Cuts the numbers below 2**64 into equal parts."""
    parts = max(parts, 1)
    return [i * 2**64 // parts for i in range(parts + 1)]


Task = tuple[NDArray[np.uint32], Hashes]


def _pairs(tasks: list[Task], bucket: int, low: int, high: int) -> Edges:
    """Every document with a key in [low, high) that an earlier document has, behind the first one that has it."""
    ids, keys = [], []
    for rank, (documents, all_keys) in enumerate(tasks):
        row = all_keys[bucket]
        begin = int(np.searchsorted(row, np.uint64(low)))
        end = len(row) if high == 2**64 else int(np.searchsorted(row, np.uint64(high)))
        ids.append(documents[bucket, begin:end].astype(np.int64) | (rank << 32))
        keys.append(row[begin:end])
    together = np.concatenate(keys)
    order = np.argsort(together, kind="stable")  # tasks come in order, so equal keys stay in reading order
    together, names = together[order], np.concatenate(ids)[order]
    fresh = np.ones(len(together), bool)
    fresh[1:] = together[1:] != together[:-1]
    firsts = names[fresh][np.cumsum(fresh) - 1]
    return firsts[~fresh], names[~fresh]


def _linked(found: Edges, pairs: Edges) -> Edges:
    """Clusters of everything linked so far: each member but the first, behind the first one."""
    if not len(pairs[0]):
        return found
    nodes, places = np.unique(np.concatenate([found[0], pairs[0], found[1], pairs[1]]), return_inverse=True)
    first, second = np.split(places, 2)
    root = np.arange(len(nodes))
    while True:
        lowest = np.minimum(root[first], root[second])
        before = root.copy()
        for side in (first, second):
            np.minimum.at(root, root[side], lowest)
        root = root[root]
        if (root == before).all():
            break
    members = root != np.arange(len(nodes))
    return nodes[root[members]], nodes[members]
