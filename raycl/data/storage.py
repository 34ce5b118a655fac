"""Files behind a URI: listing, sizes and ranged reads, with retries and without credentials.

S3, Google Cloud Storage and ABFS go through pyarrow, everything else through fsspec. Credentials
come from the environment of each process, as the cloud's own tools find them. A URI may carry none:
it stands in recipes, reports and logs.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

from raycl.errors import RayclError

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds
PATIENCE = 120.0  # seconds that a run which has begun waits for storage to come back

_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_SECRET = re.compile(r"sig|token|credential|key|secret|password|auth", re.IGNORECASE)
_DENIED = re.compile(
    r"access.?denied|expired|forbidden|unauthorized|unauthenticated|credential|signature|"
    r"invalid.?access.?key|invalid.?client.?token|permission|http status 40[013]\b",
    re.IGNORECASE,
)
_MISSING = re.compile(r"no.?such.?(key|bucket)|not.?found|http status 404", re.IGNORECASE)
_REMEDIES = {
    "s3": "renew the session of AWS_PROFILE or of the role (`aws sso login`, a new "
    "AWS_SESSION_TOKEN), and check that it may read and list the bucket",
    "gs": "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS, "
    "and check that the account may read and list the bucket",
    "az": "run `az login` or set AZURE_STORAGE_ACCOUNT_NAME with a key or SAS token, and check "
    "that it may read and list the container",
}
_REMEDIES |= {"gcs": _REMEDIES["gs"], "abfs": _REMEDIES["az"], "abfss": _REMEDIES["az"]}


class Unavailable(RayclError):
    """There is no such file, or it may not be read; asking again does not help."""


@dataclass(frozen=True)
class Entry:
    """A file of a listing.

    Attributes:
        version: what tells it from a file of the same name and size before it; may be empty.
    """

    uri: str
    size: int
    version: str


class Store(Protocol):
    """One file system; paths are as in its own listings, sizes in bytes."""

    def stat(self, uri: str) -> tuple[int, str]:
        """Size and version of a file."""

    def list(self, uri: str) -> list[tuple[str, int, str]]:
        """Name, size and version of the files in a directory."""

    def open(self, uri: str) -> Blob:
        """A file for ranged reads from many threads."""

    def arrow(self, uri: str) -> tuple[Any, str]:
        """pyarrow's file system for it, and the path that it goes by there."""


class Blob(Protocol):
    """A file that is open: its size and version as the server last told them."""

    size: int
    version: str

    def read(self, start: int, size: int) -> bytes:
        """A part of the file; what is shorter than `size` was cut off on its way."""


def is_uri(spec: object) -> bool:
    return "://" in str(spec)


def redacted(uri: str) -> str:
    """A URI for messages: without user, password and query."""
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    # The container of abfs://container@account stands where others have a user.
    container = f"{user}@" if parts.scheme in ("abfs", "abfss") and ":" not in user else ""
    return f"{parts.scheme}://{container if user else ''}{host}{parts.path}"


def shown(path: str) -> str:
    """A path or URI for messages."""
    return redacted(path) if is_uri(path) else path


def checked(uri: str) -> str:
    """The URI, if it carries no credentials.

    Raises:
        RayclError: it has a password, a user, or a query that looks like a signature or a key.
    """
    parts = urlsplit(uri)
    user = parts.netloc.rpartition("@")[0]
    harmless = user in ("", "anonymous") or parts.scheme in ("abfs", "abfss")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if ":" in user or not harmless or any(_SECRET.search(k) or "@" in v for k, v in query):
        raise RayclError(
            f"{redacted(uri)}: the URI carries credentials, which would end up in recipes and "
            f"reports; give them through the environment instead: a role, AWS_PROFILE, "
            f"GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY"
        )
    return uri


def stat(uri: str) -> Entry:
    """Size and version of a file.

    Raises:
        Unavailable: there is none, or it may not be read.
        RayclError: the server cannot be reached.
    """
    return Entry(uri, *retried(uri, lambda: store(uri).stat(uri)))


def listed(uri: str) -> list[Entry]:
    """The files of a directory, sorted by name; see `stat` for errors."""
    base, _, query = uri.partition("?")
    tail = f"?{query}" if query else ""
    found = retried(uri, lambda: store(uri).list(uri))
    return [Entry(f"{base.rstrip('/')}/{n}{tail}", s, v) for n, s, v in sorted(found)]


def retried(uri: str, work: Callable[[], T], patience: float = 0.0) -> T:
    """Runs a request until it succeeds or its failure will not pass; pauses grow, with jitter.

    Args:
        patience: seconds that it goes on for at least, however often it has failed.

    Raises:
        Unavailable: there is no such file, or it may not be used.
        RayclError: it failed too often.
    """
    begin = time.monotonic()
    for attempt in itertools.count(1):
        try:
            return work()
        except RayclError:
            raise
        except Exception as error:
            failure = _failure(uri, error, attempt)
            often = attempt >= ATTEMPTS and time.monotonic() - begin >= patience
            if isinstance(failure, Unavailable) or often:
                # Not chained: what the libraries say may hold URLs with signatures.
                raise failure from None
        time.sleep(random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)))
    raise AssertionError


def _failure(uri: str, error: Exception, attempt: int) -> RayclError:
    """What a library's error means to the user."""
    name, reason = redacted(uri), scrubbed(str(error)) or type(error).__name__
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(error, FileNotFoundError) or status == 404 or _MISSING.search(reason):
        return Unavailable(f"{name}: there is no such file, directory or bucket")
    if isinstance(error, PermissionError) or status in (401, 403) or _DENIED.search(reason):
        return Unavailable(
            f"{name}: access denied, or the credentials have expired ({reason}); "
            f"{_remedy(uri, 'check that the server lets this machine read it')}"
        )
    if isinstance(error, ImportError | ValueError | TypeError):
        return Unavailable(f"{name}: cannot be opened: {reason}")
    return RayclError(
        f"{name}: cannot be reached after {attempt} attempts: {reason}; check the network and the "
        f"server, then resume"
    )


def _remedy(uri: str, otherwise: str) -> str:
    return _REMEDIES.get(urlsplit(uri).scheme, otherwise)


def scrubbed(text: str) -> str:
    """A library's message without queries, users and keys."""
    text = re.sub(r"(\w+://)[^\s/@]*@", r"\1", text)
    text = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}\b", "***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            text = text.replace(value, "***") if _SECRET.search(name) else text
    return " ".join(text.split())


def store(uri: str) -> Store:
    """The file system of a URI; one per process and server."""
    parts = urlsplit(uri)
    return _store(parts.scheme, parts.netloc, parts.query)


@lru_cache(maxsize=32)
def _store(scheme: str, host: str, query: str) -> Store:
    from raycl.data import stores

    if scheme in _ARROW:
        return stores.ArrowStore(f"{scheme}://{host}/{'?' + query if query else ''}")
    return stores.FsspecStore(scheme)
