"""An S3 server, a web server, and a proxy that breaks what passes through it; all on loopback."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

EXPIRED = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code>"
    b"<Message>The provided token has expired.</Message><RequestId>1</RequestId></Error>"
)


class Proxy:
    """Passes requests on, remembers them, and breaks the next ones that read an object.

    Attributes:
        faults: kinds of fault for the next GETs of objects: "500", "cut", "stall", "slow",
            "expired", or "" for none.
        always: a fault for every request from now on.
        strip_ranges: behave as a server that knows no ranges.
        delay: seconds that a read takes longer.
    """

    def __init__(self, upstream: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: deque[str] = deque()
        self.always = ""
        self.delay = 0.0
        self.strip_ranges = False
        self._together: threading.Barrier | None = None
        self._stopped = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self, upstream)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}"

    def barrier(self, reads: int) -> None:
        """From now on answers reads only when so many have come."""
        self._together = threading.Barrier(reads, timeout=30)

    def gets(self, part: str = "") -> list[tuple[str, str | None]]:
        """Path and range of every GET of an object whose path has this part."""
        return [
            (path, span)
            for method, path, span in list(self.requests)
            if method == "GET" and part in path and span is not None
        ]

    def _handle(self, request: BaseHTTPRequestHandler, upstream: tuple[str, int]) -> None:
        body = _body(request)
        span = request.headers.get("Range")
        self.requests.append((request.command, unquote(request.path), span))
        reads = request.command == "GET" and span is not None
        fault = self.always or (self.faults.popleft() if reads and self.faults else "")
        if fault in ("500", "expired"):
            content = EXPIRED if fault == "expired" else b""
            return _answer(request, 403 if content else 500, {}, content)
        hop = ("transfer-encoding", "expect", "content-length")  # http.client says its own
        headers = {k: v for k, v in request.headers.items() if k.lower() not in hop}
        if self.strip_ranges:
            headers.pop("Range", None)
        server = http.client.HTTPConnection(*upstream, timeout=30)
        server.request(request.command, request.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if reads:
            time.sleep(self.delay)
            if self._together:
                self._together.wait()
        _answer(request, answer.status, dict(answer.getheaders()), content, fault, self._stopped)

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        with serving(self._server):
            yield self
            self._stopped.set()


def _body(request: BaseHTTPRequestHandler) -> bytes | None:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        length = int(request.headers.get("Content-Length") or 0)
        return request.rfile.read(length) if length else None
    parts = []
    while size := int(request.rfile.readline().partition(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():  # trailers
        pass
    return b"".join(parts)


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    content: bytes,
    fault: str = "",
    stopped: threading.Event | None = None,
) -> None:
    skipped = ("transfer-encoding", "connection", "content-length", "date", "server")
    length = headers.get("Content-Length") or headers.get("content-length") or str(len(content))
    request.send_response(status)
    for name, value in headers.items():
        if name.lower() not in skipped:
            request.send_header(name, value)
    request.send_header(
        "Content-Length", length if request.command == "HEAD" else str(len(content))
    )
    request.end_headers()
    if request.command == "HEAD":
        return
    step = -(-len(content) // 8) if fault else len(content)
    for at in range(0, len(content), step or 1):
        if fault in ("cut", "stall") and at >= len(content) // 2:
            request.close_connection = True
            if fault == "stall" and stopped:
                stopped.wait(60)  # longer than any client waits for a byte
            return
        request.wfile.write(content[at : at + step])
        if fault == "slow":
            request.wfile.flush()
            time.sleep(0.1)


class Files(BaseHTTPRequestHandler):
    """Serves the files of a directory with ranges and ETags, as most web servers do."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        path = self.root / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            return _answer(self, 404, {}, b"")
        size = path.stat().st_size
        first, last, status, headers = 0, size - 1, 200, {"ETag": f'"{path.stat().st_mtime_ns}"'}
        if span := self.headers.get("Range"):
            first, last = (int(end) for end in span.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            status = 206
        with open(path, "rb") as file:
            file.seek(first)
            _answer(self, status, headers, file.read(last + 1 - first))

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def web(root: Path) -> Iterator[tuple[str, int]]:
    """A web server of a directory."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Files,), {"root": root}))
    with serving(server):
        yield "127.0.0.1", server.server_port


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
