"""Files on S3, Google Cloud, the Hub, web servers and whatever else fsspec opens: listed, sized and read in blocks.

Nothing is copied to disk: a file is read by ranges, and a range that fails is asked for again.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from ingot.recipe import InputError

T = TypeVar("T")

# what servers say of a file that changes with it, in the words of their file systems
STAMPS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "mtime")

BLOCK = 8 << 20  # bytes asked for at once
WAITS = (0.5, 1.0, 2.0)  # seconds before each further attempt
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, InputError)  # not tried again
INSTALL = {"s3": "pip install -e '.[s3]'", "gs": "pip install gcsfs", "gcs": "pip install gcsfs"}


def is_remote(path: str) -> bool:
    """Whether a path is a URL and not a file of this machine."""
    return "://" in path


def protocol_of(path: str) -> str:
    """The part of a URL before ://."""
    return path.partition("://")[0]


def file_system(path: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises: InputError for a protocol that is unknown or whose package is missing.
    """
    import fsspec

    if "::" in path:
        raise InputError(f"{path}: chained URLs (::) are not read; name the file itself")
    protocol = protocol_of(path)
    try:
        found, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        way_out = INSTALL.get(protocol, f"pip install what fsspec needs for it ({error})")
        raise InputError(f"{path}: {protocol}:// needs a package that is not installed: {way_out}") from None
    except ValueError:
        raise InputError(f"{path}: unknown protocol {protocol}://; use s3, gs, hf, http(s) or a local path") from None
    except Exception as error:  # some connect at once, and every package has exceptions of its own
        raise InputError(f"{path}: cannot be opened: {type(error).__name__}: {_first_line(error)}") from None
    return found, str(inner)


@dataclass(frozen=True, order=True)
class RemoteEntry:
    """A remote file: its bytes (None where the server keeps quiet) and what changes when its content does."""

    path: str
    size: int | None
    stamp: str


def list_remote(pattern: str) -> list[RemoteEntry]:
    """The files that a URL, a glob or a folder names, sorted by name.

    Raises: InputError when the server cannot be asked; no match is an empty list.
    """
    found, inner = file_system(pattern)
    found.invalidate_cache()  # what it remembers may be gone
    return sorted(_attempts(pattern, lambda: _list(found, inner)))


def _list(found: Any, inner: str) -> list[RemoteEntry]:
    from fsspec.core import has_magic

    if has_magic(inner):
        entries = found.glob(inner, detail=True)
    elif found.protocol in ("http", "https", ("http", "https")):
        entries = _web_file(found, inner)
    elif found.isdir(inner):
        entries = found.find(inner, detail=True)
    else:
        entries = {inner: found.info(inner)} if found.exists(inner) else {}
    files = [(name, info) for name, info in entries.items() if info.get("type") != "directory"]
    return [RemoteEntry(found.unstrip_protocol(name), info.get("size"), _stamp(info)) for name, info in files]


def _web_file(found: Any, inner: str) -> dict[str, Any]:
    """A file of a web server, if it is there. Raises: what the server or the network said instead."""
    from aiohttp import ClientResponseError

    try:
        return {inner: found.info(inner)}
    except FileNotFoundError as error:  # said of everything that goes wrong
        cause = error.__cause__
        if cause is None or isinstance(cause, ClientResponseError) and cause.status in (404, 410):
            return {}
        raise cause from None


def _stamp(info: dict[str, Any]) -> str:
    known = [f"{key}={info[key]}" for key in STAMPS if info.get(key) is not None]
    return "; ".join([f"size={info.get('size')}", *known])


def open_remote(path: str) -> BinaryIO:
    """Opens a remote file for reading bytes: by ranges where the server gives them, else as one stream."""
    found, inner = file_system(path)
    info = _attempts(path, lambda: found.info(inner))
    if info.get("size") is None or info.get("partial") is False:
        return _attempts(path, lambda: found.open(inner, "rb", block_size=0))
    return io.BufferedReader(RemoteFile(path, found, inner, int(info["size"])), BLOCK)


class RemoteFile(io.RawIOBase):
    """A remote file of known size; every read is one request for a range."""

    def __init__(self, path: str, file_system: Any, inner: str, size: int) -> None:
        self.path, self.file_system, self.inner, self.size = path, file_system, inner, size
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        start, stop = self.position, min(self.position + len(buffer), self.size)
        if stop <= start:
            return 0
        data = _attempts(self.path, lambda: self.file_system.cat_file(self.inner, start=start, end=stop))
        if len(data) != stop - start:
            raise InputError(
                f"{self.path}: gave {len(data)} bytes of {stop - start}; the file changed while it was read"
            )
        buffer[: len(data)] = data
        self.position = stop
        return len(data)


def _attempts(path: str, action: Callable[[], T]) -> T:
    """Does something with a server; what may be a passing fault is tried again.

    Raises: InputError that names the path.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; it never was there or has vanished") from None
        except PermissionError as error:
            hint = "credentials come from the environment, see docs/data_sources.md"
            raise InputError(f"{path}: no permission ({_first_line(error)}); {hint}") from None
        except Exception as error:  # every package has exceptions of its own
            if wait is None or isinstance(error, FINAL):
                raise InputError(f"{path}: cannot be read: {type(error).__name__}: {_first_line(error)}") from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: BaseException) -> str:
    return (str(error) or "no message").split("\n")[0]
