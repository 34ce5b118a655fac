"""Fixtures of object storage: an S3 server behind a proxy that counts and breaks requests."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raycl.data import cache, storage
from tests.data.servers import Proxy

SECRET = "a-secret-that-nobody-may-see"


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own; what goes in does not pass through the proxy, what is read does."""

    proxy: Proxy
    name: str
    endpoint: str

    def uri(self, path: str) -> str:
        return f"s3://{self.name}/{path}"

    def put(self, path: str, content: bytes) -> None:
        from pyarrow import fs

        s3 = fs.S3FileSystem(endpoint_override=self.endpoint, allow_bucket_creation=True)
        s3.create_dir(self.name)
        with s3.open_output_stream(f"{self.name}/{path}") as file:
            file.write(content)

    def upload(self, folder: Path, prefix: str = "set") -> str:
        """Puts the files of a directory into the bucket; returns its URI."""
        for path in sorted(folder.iterdir()):
            self.put(f"{prefix}/{path.name}", path.read_bytes())
        return self.uri(prefix)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(
    s3_server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    with Proxy(s3_server).running() as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": proxy.url,
            "RAYCL_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
        storage._store.cache_clear()
        cache.page_cache.cache_clear()
        host, port = s3_server
        yield Bucket(proxy, f"bucket-{secrets.token_hex(4)}", f"http://{host}:{port}")
        storage._store.cache_clear()
        cache.page_cache.cache_clear()
