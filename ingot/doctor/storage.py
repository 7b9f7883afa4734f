"""The file systems that Ingot writes: free space, permission, how fast a write becomes durable."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from ingot.doctor.findings import Finding, fail, gigabytes, ok, warn
from ingot.files import sync

SLOW_SYNC = 0.25  # seconds
SKEW = 2.0  # seconds between this machine's clock and the file system's
LEAST_FREE, LITTLE_FREE = 1 << 30, 10 << 30  # bytes
LEAST_FILES = 10_000
PROBE_BYTES = 32 << 20
VOLATILE = ("tmpfs", "ramfs")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "gpfs", "beegfs", "9p", "virtiofs")


def storage_findings(folder: Path) -> Iterator[Finding]:
    """The folder that runs go to, and the Hub's cache."""
    yield from folder_findings(folder)
    yield _hub_cache()


def folder_findings(folder: Path) -> Iterator[Finding]:
    """Free space, kind of file system, permission and speed of a folder, or of the nearest one above it."""
    place = folder.resolve()
    while not place.is_dir():
        place = place.parent
    name = f"folder {folder}"
    yield _space(name, place)
    try:
        yield _written(name, place)
    except OSError as error:
        way = f"choose a folder of your own with --run.dir, or: chown -R $USER {place}"
        yield fail(name, f"{place} cannot be written: {error.strerror}", way)


def _space(name: str, place: Path) -> Finding:
    usage, status = shutil.disk_usage(place), os.statvfs(place)
    kind = filesystem(place)
    text = f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free on {place} ({kind})"
    if usage.free < LEAST_FREE:
        return fail(name, text, "free some space, or write elsewhere: --run.dir DIR on a larger disk")
    if status.f_files and status.f_favail < LEAST_FILES:
        return fail(name, f"{text}, but only {status.f_favail:,} more files", "delete small files, such as old caches")
    if usage.free < LITTLE_FREE:
        return warn(name, text, "a checkpoint needs 12 to 16 bytes a parameter, times training.save_total_limit + 1")
    if kind in VOLATILE:
        return warn(name, f"{text}: in memory, gone after a restart", "write to a disk: --run.dir DIR")
    return ok(name, text)


def filesystem(place: Path) -> str:
    """The kind of file system that a folder is on, such as ext4."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").split("\n"):
        words = line.split()
        if (
            len(words) > 2
            and place.is_relative_to(mount := words[1].replace("\\040", " "))
            and len(mount) >= len(best)
        ):
            best, kind = mount, words[2]
    return kind


def _written(name: str, place: Path) -> Finding:
    """Writes as a checkpoint is written: content, fsync, rename, fsync of the folder; then takes it away."""
    probe = place / f".ingot-doctor-{os.getpid()}"
    final = probe.with_suffix(".renamed")
    try:
        rate = PROBE_BYTES / _seconds_to_write(probe, PROBE_BYTES)
        pause = median(_seconds_to_write(probe, 4096) for _ in range(5))
        skew = probe.stat().st_mtime - time.time()
        os.replace(probe, final)
        sync(place)
    finally:
        probe.unlink(missing_ok=True)
        final.unlink(missing_ok=True)
    text = f"written, synced and renamed: {rate / 1e6:,.0f} MB/s, an fsync takes {1000 * pause:.1f} ms"
    if abs(skew) > SKEW:
        way = "synchronise the clocks of this machine and of the file server (chrony, ntp)"
        return warn(name, f"{text}; its clock differs from this machine's by {skew:.0f} s", way)
    if pause > SLOW_SYNC:
        way = "save less often (training.save_steps), or write to a local disk and copy"
        return warn(name, f"{text}: every save waits for some of them", way)
    shared = " (shared by machines: a run folder here does for several)" if filesystem(place) in NETWORK else ""
    return ok(name, text + shared)


def _seconds_to_write(path: Path, size: int) -> float:
    content = os.urandom(size)
    began = time.monotonic()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


def _hub_cache() -> Finding:
    from huggingface_hub import constants

    cache = Path(constants.HF_HOME)
    place = cache
    while not place.is_dir():
        place = place.parent
    way = "export HF_HOME=/a/folder/of/yours"
    try:
        probe = place / f".ingot-doctor-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return warn("Hub cache", f"{cache} cannot be written: {error.strerror}", way)
    return ok("Hub cache", f"{cache}, writable, {gigabytes(shutil.disk_usage(place).free)} free")
