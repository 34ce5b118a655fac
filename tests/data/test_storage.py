"""URIs, what may not stand in them, and what becomes of the errors of their servers."""

from __future__ import annotations

import pytest

from raycl.data import storage
from raycl.data.storage import Unavailable, checked, redacted, retried, scrubbed
from raycl.errors import RayclError
from tests.data.conftest import SECRET, Bucket


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/a/b.beton", "s3://bucket/a/b.beton"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?region=x&endpoint_override=y", "s3://bucket/a"),
        ("https://user@host:80/a?X-Amz-Signature=s", "https://host:80/a"),
        ("abfs://container@account.dfs.core.windows.net/a", None),
        ("abfs://container:secret@account.dfs.core.windows.net/a", "abfs://account.dfs.core."),
    ],
)
def test_messages_show_no_credentials(uri: str, shown: str | None) -> None:
    assert redacted(uri).startswith(shown or uri)
    assert "secret" not in redacted(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:top-secret@bucket/a",
        "s3://AKIAIOSFODNN7EXAMPLE@bucket/a",
        "https://bucket.example/a?X-Amz-Signature=top-secret",
        "https://bucket.example/a?sig=top-secret",
        "https://bucket.example/a?AWSAccessKeyId=top-secret",
        "https://bucket.example/a?access_token=top-secret",
        "abfs://container:top-secret@account.dfs.core.windows.net/a",
        "s3://bucket/a?endpoint_override=http://me:top-secret@host",
    ],
)
def test_uris_with_credentials_are_refused(uri: str) -> None:
    with pytest.raises(RayclError, match="the URI carries credentials") as error:
        checked(uri)
    assert "top-secret" not in str(error.value) and "AKIA" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9000",
        "gs://anonymous@bucket/a",
        "abfs://container@account.dfs.core.windows.net/a",
        "https://host/a?download=1",
    ],
)
def test_uris_without_credentials_pass(uri: str) -> None:
    assert checked(uri) == uri


def test_messages_of_libraries_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = (
        f"403, url='https://me:word@host/a?X-Amz-Signature=abc&b=c' for AKIAIOSFODNN7EXAMPLE\n"
        f"with {SECRET} in eu-west-1"
    )
    assert scrubbed(text) == "403, url='https://host/a' for *** with *** in eu-west-1"


class Failing:
    """Fails a number of times."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def http_error(status: int) -> Exception:
    error = Exception(f"{status}, message='no'")
    error.status = status  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError("AWS Error SLOW_DOWN during GetObject operation"),
        OSError("AWS Error INTERNAL_FAILURE (HTTP status 500)"),
        TimeoutError(),
        ConnectionError("10 of 20 bytes came"),
        http_error(503),
        http_error(429),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)  # type: ignore[attr-defined]
    work = Failing(*[error] * (storage.ATTEMPTS - 1))
    assert retried("s3://bucket/a", work) == "done"
    assert len(pauses) == storage.ATTEMPTS - 1
    assert all(0 <= pause <= storage.LONGEST_PAUSE for pause in pauses)
    # Jitter: no two workers knock at the same time.
    assert len(set(pauses)) == len(pauses)

    work = Failing(*[error] * 100)
    with pytest.raises(RayclError, match=r"s3://bucket/a: cannot be reached after 6 attempts"):
        retried("s3://key@bucket/a?x=y", work)
    assert work.calls == storage.ATTEMPTS


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("s3://b/a", FileNotFoundError("x"), "there is no such file, directory or bucket"),
        ("s3://b/a", OSError("AWS Error NO_SUCH_BUCKET during List"), "there is no such"),
        ("https://b/a", http_error(404), "there is no such"),
        ("s3://b/a", OSError("AWS Error ACCESS_DENIED during Head"), "expired .*AWS_PROFILE"),
        ("s3://b/a", OSError("HTTP status 403: ExpiredToken"), "expired .*AWS_PROFILE .*role"),
        ("s3://b/a", OSError("HTTP status 400: The provided token has expired"), "AWS_PROFILE"),
        ("gs://b/a", OSError("Unauthenticated: no credentials"), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://b/a", PermissionError("no"), "az login"),
        ("https://b/a", http_error(403), "access denied.*check that the server lets"),
        ("az://b/a", ImportError("Install adlfs"), "cannot be opened: Install adlfs"),
        ("s3://b/a", ValueError("Unexpected query parameter"), "cannot be opened: Unexpected"),
    ],
)
def test_what_will_not_pass_is_told_at_once(uri: str, error: Exception, message: str) -> None:
    work = Failing(error)
    with pytest.raises(Unavailable, match=rf"^{uri}: .*{message}") as raised:
        retried(uri, work)
    assert work.calls == 1
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_listing_and_sizes(bucket: Bucket) -> None:
    for name in ("b", "a", "deep/c"):
        bucket.put(f"set/{name}", name.encode() * 3)
    entries = storage.listed(bucket.uri("set"))
    assert [(entry.uri, entry.size) for entry in entries] == [
        (bucket.uri("set/a"), 3),
        (bucket.uri("set/b"), 3),
    ]
    assert all(entry.version for entry in entries)
    assert storage.stat(bucket.uri("set/deep/c")).size == 18
    for place in ("set/d", "set/deep"):
        with pytest.raises(Unavailable, match="there is no such file"):
            storage.stat(bucket.uri(place))
    with pytest.raises(Unavailable, match="there is no such file, directory or bucket"):
        storage.listed(bucket.uri("nowhere"))
    with pytest.raises(Unavailable, match="there is no such file, directory or bucket"):
        storage.listed("s3://no-such-bucket/set")


def test_an_endpoint_in_the_uri(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("set/a", b"abc")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"?scheme=http&endpoint_override={bucket.proxy.url.removeprefix('http://')}"
    (entry,) = storage.listed(bucket.uri("set") + query)
    assert entry.uri == bucket.uri("set/a") + query
    assert storage.store(entry.uri).open(entry.uri).read(1, 2) == b"bc"


def test_expired_credentials(bucket: Bucket) -> None:
    bucket.put("set/a", b"abc")
    bucket.proxy.always = "expired"
    for work in (storage.listed, storage.stat):
        with pytest.raises(Unavailable, match=r"have expired .*AWS_PROFILE") as error:
            work(bucket.uri("set/a"))
        assert SECRET not in str(error.value)
    assert len(bucket.proxy.requests) == 2


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    with pytest.raises(RayclError, match=r"bucket-.*cannot be reached after 2 attempts"):
        storage.listed(bucket.uri("set"))
