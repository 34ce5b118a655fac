"""Both libraries behind the same face: pyarrow for S3, fsspec for what pyarrow lacks."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from raycl.data import storage
from raycl.data.stores import ArrowStore, FsspecStore, _path
from tests.data.conftest import Bucket
from tests.data.servers import web


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a/b", "bucket/a/b"),
        ("s3://bucket/a/b/?region=x", "bucket/a/b"),
        ("s3://bucket", "bucket"),
        ("gs://anonymous@bucket/a", "bucket/a"),
        ("abfs://container@account.dfs.core.windows.net/a", "container/a"),
        ("hdfs://host:9000/a/b", "/a/b"),
    ],
)
def test_what_pyarrow_calls_a_file(uri: str, path: str) -> None:
    assert _path(uri) == path


def test_s3(bucket: Bucket) -> None:
    bucket.put("set/a", b"0123456789")
    store = storage.store(bucket.uri("set/a"))
    assert isinstance(store, ArrowStore) and store is storage.store(bucket.uri("b"))
    assert store.stat(bucket.uri("set/a"))[0] == 10
    assert [(name, size) for name, size, _ in store.list(bucket.uri("set"))] == [("a", 10)]
    blob = store.open(bucket.uri("set/a"))
    assert (blob.size, blob.read(2, 3), blob.read(8, 2)) == (10, b"234", b"89")
    first = blob.version
    bucket.put("set/a", b"9876543210")
    assert first and store.open(bucket.uri("set/a")).version != first


def test_fsspec_lists_and_reads() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/set/a", b"0123456789")
    files.pipe("/set/deep/b", b"x")
    store = storage.store("memory://set/a")
    assert isinstance(store, FsspecStore)
    assert [(name, size) for name, size, _ in store.list("memory://set")] == [("a", 10)]
    assert store.stat("memory://set/a")[0] == 10
    assert store.open("memory://set/a").read(2, 3) == b"234"
    with pytest.raises(FileNotFoundError):
        store.stat("memory://set/nothing")


def test_the_web(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with web(tmp_path) as (host, port):
        uri = f"http://{host}:{port}/a"
        blob = storage.store(uri).open(uri)
        assert (blob.size, blob.read(2, 3)) == (10, b"234") and blob.version


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(storage.Unavailable, match=r"az://box/a: cannot be opened: .*adlfs"):
        storage.stat("az://box/a")
    with pytest.raises(storage.Unavailable, match="nonsense://box/a: cannot be opened"):
        storage.stat("nonsense://box/a")
