"""Files on S3 (a real server on this machine), web servers and other fsspec systems, with their faults."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem

from ingot.data import blocks, listing, remote
from ingot.data.documents import read_documents
from ingot.data.sources import Source, list_units, remote_stamps, source_files
from ingot.recipe import InputError

from .helpers import make_rows

ROWS = make_rows(30)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def texts_of(path: str, **keys: Any) -> list[str]:
    return [d.text for unit in list_units([Source(path=path, **keys)]) for d in read_documents(unit)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The s3fs file system with an empty bucket named `corpus`; credentials come from the environment alone."""
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("corpus")
    yield system
    system.rm("corpus", recursive=True)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_s3_files_of_every_kind(bucket: Any, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    contents = {
        "a.jsonl": JSONL, "a.jsonl.gz": gzip.compress(JSONL), "a.jsonl.zst": zstandard.compress(JSONL),
        "a.parquet": (tmp_path / "a.parquet").read_bytes(),
    }  # fmt: skip
    for name, content in contents.items():
        bucket.pipe_file(f"corpus/{name}", content)
        assert texts_of(f"s3://corpus/{name}") == [row["text"] for row in ROWS], name


def test_s3_globs_folders_and_ids(bucket: Any, tmp_path: Path) -> None:
    for chunk in (1, 2):
        content = "".join(f'{{"text": "{chunk}-{i}"}}\n' for i in range(2)).encode()
        bucket.pipe_file(f"corpus/train/chunk{chunk}/a.jsonl.zst", zstandard.compress(content))
        (tmp_path / f"chunk{chunk}").mkdir()
        (tmp_path / f"chunk{chunk}" / "a.jsonl.zst").write_bytes(zstandard.compress(content))
    found = []
    for path in ("s3://corpus/train/chunk*/*.jsonl.zst", "s3://corpus/train", f"{tmp_path}/chunk*/*.jsonl.zst"):
        units = list_units([Source(path=path)])
        found.append([(d.id, d.text) for unit in units for d in read_documents(unit)])
    assert found[0] == found[1] == found[2]
    assert found[0][0] == ("0/chunk1/a.jsonl.zst:1", "1-0") and len(found[0]) == 4
    assert source_files(Source(path="s3://corpus/train"), "data.sources.0") == []
    with pytest.raises(InputError, match=r"data\.sources\.0\.path: no file matches s3://corpus/none/\*"):
        list_units([Source(path="s3://corpus/none/*")])


def test_s3_large_files_in_parts(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "UNIT_BYTES", 500)
    monkeypatch.setattr(blocks, "BLOCK", 100)
    bucket.pipe_file("corpus/a.jsonl", JSONL)
    units = list_units([Source(path="s3://corpus/a.jsonl")])
    assert len(units) > 3
    assert [d.text for unit in units for d in read_documents(unit)] == [row["text"] for row in ROWS]


def test_s3_files_that_vanish_or_are_cut_short(bucket: Any) -> None:
    bucket.pipe_file("corpus/a.jsonl.zst", zstandard.compress(JSONL)[:-20])
    (unit,) = list_units([Source(path="s3://corpus/a.jsonl.zst")])
    with pytest.raises(InputError, match=r"s3://corpus/a\.jsonl\.zst: truncated or damaged"):
        list(read_documents(unit))
    bucket.rm("corpus/a.jsonl.zst")
    with pytest.raises(InputError, match=r"s3://corpus/a\.jsonl\.zst: no such file; it never was there or has"):
        list(read_documents(unit))


def test_s3_files_that_change_have_another_stamp(bucket: Any) -> None:
    source, found = Source(path="s3://corpus/*.jsonl"), []
    for content in (b"one", b"one", b"two"):
        bucket.pipe_file("corpus/a.jsonl", content)
        (stamp,) = remote_stamps(source, "data.sources.0").values()
        found.append(stamp.partition("; LastModified")[0])
    assert found[0] == found[1] != found[2]
    assert remote_stamps(Source(path="a.jsonl"), "data.sources.0") == {}


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, bucket: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(type(bucket), "retries", 1)
    monkeypatch.setattr(remote, "WAITS", ())
    type(bucket).clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://corpus/\*\.jsonl: cannot be read: \w+: .*127\.0\.0\.1:9") as error:
        list_units([Source(path="s3://corpus/*.jsonl")])
    assert "\n" not in str(error.value)


def test_passing_faults_are_tried_again(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.jsonl", JSONL)
    left = [2]

    def cat_file(self: Any, path: str, start: int, end: int) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise TimeoutError("slow down")
        return bytes(self.store[path].getvalue()[start:end])

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert len(texts_of("memory://a.jsonl")) == 30
    left[0] = 3
    with pytest.raises(InputError, match=r"memory:/+a\.jsonl: cannot be read: TimeoutError: slow down"):
        texts_of("memory://a.jsonl")


def test_no_permission_is_not_tried_again(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.jsonl", JSONL)
    asked = []

    def cat_file(self: Any, path: str, **_: Any) -> bytes:
        asked.append(path)
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(InputError, match=r"a\.jsonl: no permission \(Forbidden\); credentials come from"):
        texts_of("memory://a.jsonl")
    assert len(asked) == 1


def test_a_file_that_shrinks(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.jsonl", JSONL)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start, end: JSONL[start : end - 5])
    with pytest.raises(InputError, match="changed while it was read"):
        texts_of("memory://a.jsonl")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for path, way_out in (("s3://b/*.jsonl", r"pip install -e '\.\[s3\]'"), ("gs://b/a.jsonl", "pip install gcsfs")):
        with pytest.raises(InputError, match=f"needs a package that is not installed: {way_out}"):
            list_units([Source(path=path)])


@pytest.mark.parametrize(
    ("path", "message"),
    [("s4://b/a.jsonl", "unknown protocol s4://"), ("zip://a.jsonl::s3://b/a.zip", r"chained URLs \(::\) are not")],
)
def test_urls_that_are_none(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_units([Source(path=path)])


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A web server that gives parts of files when `ranges` says so, as big ones do."""

    ranges = True

    def send_head(self) -> Any:
        asked = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if not self.ranges or not file.is_file():
            return super().send_head()
        data, status = file.read_bytes(), 200
        if asked is not None:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            size, status = len(data), 206
            data = data[int(start) : int(stop) + 1]
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "whole files"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a web server that serves tmp_path."""
    handler = type("Handler", (_Ranges,), {"ranges": request.param})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_web_servers(web: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL))
    (tmp_path / "b.jsonl").write_bytes(JSONL)
    expected = [row["text"] for row in ROWS]
    assert texts_of(f"{web}/a.jsonl.gz") == texts_of(f"{web}/b.jsonl?download=true") == expected
    assert texts_of(f"{web}/*.jsonl*") == expected * 2
    with pytest.raises(InputError, match=r"no file matches http://.*/none\.jsonl"):
        texts_of(f"{web}/none.jsonl")


def test_a_web_server_that_cannot_be_reached_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", ())
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/a\.jsonl: cannot be read: Client\w+: .*:9"):
        list_units([Source(path="http://127.0.0.1:9/a.jsonl")])


def test_a_file_system_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no such host")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(InputError, match=r"ftp://x/a\.jsonl: cannot be opened: RuntimeError: no such host"):
        list_units([Source(path="ftp://x/a.jsonl")])
