"""Ranged reads: what is asked for, and what comes when the network misbehaves."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from raycl.data import storage
from raycl.data.remote import RemoteFile, coalesced, grouped
from raycl.errors import RayclError
from tests.data.conftest import SECRET, Bucket
from tests.data.servers import Proxy, web

PAGE = 1 << 20
SIZE = 4 * PAGE + 1000
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()
BIG = 1 << 30


def arrays(*spans: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    starts, sizes = np.array(spans, np.int64).reshape(-1, 2).T
    return starts, sizes


def expected(starts: np.ndarray, sizes: np.ndarray) -> list[bytes]:
    return [CONTENT[a : a + n] for a, n in zip(starts, sizes, strict=True)]


def test_grouped() -> None:
    groups = grouped(np.array([7, 2, 7, 2, 5]))
    assert [(key, at.tolist()) for key, at in groups] == [(2, [1, 3]), (5, [4]), (7, [0, 2])]
    assert grouped(np.array([], np.int64)) == []


@pytest.mark.parametrize(
    ("spans", "ranges"),
    [
        ([(0, 10)], [(0, 10, [0])]),
        ([(20, 10), (0, 10)], [(0, 30, [1, 0])]),
        ([(0, 10), (21, 10)], [(0, 10, [0]), (21, 31, [1])]),
        ([(0, 10), (5, 1), (20, 4), (100, 1)], [(0, 24, [0, 1, 2]), (100, 101, [3])]),
        ([(3, 4), (3, 4)], [(3, 7, [0, 1])]),
        ([(0, 50), (10, 1), (55, 1)], [(0, 56, [0, 1, 2])]),
    ],
)
def test_near_parts_come_together(
    spans: list[tuple[int, int]], ranges: list[tuple[int, int, list[int]]]
) -> None:
    found = coalesced(*arrays(*spans), gap=10)
    assert [(begin, end, at.tolist()) for begin, end, at in found] == ranges


@pytest.fixture
def file(bucket: Bucket) -> RemoteFile:
    bucket.put("file", CONTENT)
    return RemoteFile(bucket.uri("file"), SIZE)


def test_reads_parts(file: RemoteFile, bucket: Bucket) -> None:
    assert bytes(file.read(10, 5000)) == CONTENT[10:5010]
    assert bytes(file.read(20, 5)) == CONTENT[20:25]
    assert bytes(file.read(SIZE - 5, 5)) == CONTENT[-5:]
    assert bytes(file.read(7, 0)) == b""
    assert bucket.proxy.gets() == [
        (f"/{bucket.name}/file", "bytes=10-5009"),
        (f"/{bucket.name}/file", "bytes=20-4115"),
        (f"/{bucket.name}/file", f"bytes={SIZE - 5}-{SIZE - 1}"),
    ]


def test_a_few_samples_are_read_in_coalesced_ranges(
    file: RemoteFile, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalesced, "__defaults__", (10_000,))
    starts, sizes = arrays(
        (PAGE + 9000, 5000), (0, 5000), (7000, 5000), (30_000, 5000), (0, 0), (PAGE + 10, 4096),
        (4 * PAGE, 900),
    )  # fmt: skip
    parts = file.gather(starts, sizes, PAGE)
    assert [bytes(part) for part in parts] == expected(starts, sizes)
    spans = sorted(span or "" for _, span in bucket.proxy.gets())
    assert spans == sorted(
        ["bytes=0-11999", "bytes=30000-34999", f"bytes={PAGE + 10}-{PAGE + 13999}",
         f"bytes={4 * PAGE}-{SIZE - 1}"]
    )  # fmt: skip
    assert file.gather(*arrays(), PAGE) == []


def test_a_page_that_is_wanted_for_a_good_part_is_read_whole_and_kept(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    file = RemoteFile(bucket.uri("file"), SIZE, cache=BIG)
    starts, sizes = arrays((0, PAGE // 4), (2 * PAGE + 5, 5000), (4 * PAGE, 300))
    for _ in range(2):
        parts = file.gather(starts, sizes, PAGE)
        assert [bytes(part) for part in parts] == expected(starts, sizes)
    spans = sorted(span or "" for _, span in bucket.proxy.gets())
    few = f"bytes={2 * PAGE + 5}-{2 * PAGE + 5004}"
    # The last page is cut off by the end of the file.
    assert spans == sorted([f"bytes=0-{PAGE - 1}", f"bytes={4 * PAGE}-{SIZE - 1}", few, few])
    # What is in the cache is used for a single sample, too.
    assert bytes(file.gather(*arrays((100, 7)), PAGE)[0]) == CONTENT[100:107]
    assert len(bucket.proxy.gets()) == 4


def test_greedy_files_come_in_whole_pages(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    file = RemoteFile(bucket.uri("file"), SIZE, cache=BIG, greedy=True)
    for start in (5, 500, 50):
        assert bytes(file.gather(*arrays((start, 9)), PAGE)[0]) == CONTENT[start : start + 9]
    assert [span for _, span in bucket.proxy.gets()] == [f"bytes=0-{PAGE - 1}"]


def test_a_rewritten_object_is_never_served_stale(bucket: Bucket) -> None:
    for content in (CONTENT, CONTENT[::-1], CONTENT):
        bucket.put("file", content)
        file = RemoteFile(bucket.uri("file"), SIZE, cache=BIG, greedy=True)
        assert bytes(file.gather(*arrays((5, 9)), PAGE)[0]) == content[5:14]
    # The third is the first again, and still there.
    assert len(bucket.proxy.gets()) == 2


def test_an_object_of_another_size_is_refused(bucket: Bucket) -> None:
    bucket.put("file", CONTENT[:100])
    with pytest.raises(RayclError, match=f"has changed: 100 bytes, and {SIZE} when"):
        RemoteFile(bucket.uri("file"), SIZE).read(0, 10)


def test_pages_come_in_parallel(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    starts, sizes = arrays(*((page * PAGE, 10) for page in range(5)))
    bucket.proxy.barrier(5)  # answers no read before five have come
    parts = RemoteFile(bucket.uri("file"), SIZE).gather(starts, sizes, PAGE)
    assert [bytes(part) for part in parts] == expected(starts, sizes)


@pytest.mark.parametrize("faults", [["500"] * 5, ["cut"], ["cut"] * 5, ["500", "cut"] * 3])
def test_passing_faults_are_survived(file: RemoteFile, bucket: Bucket, faults: list[str]) -> None:
    bucket.proxy.faults.extend(faults)
    assert bytes(file.read(100, 1 << 16)) == CONTENT[100 : 100 + (1 << 16)]
    assert not bucket.proxy.faults


def test_a_stalled_body_is_given_up(file: RemoteFile, bucket: Bucket) -> None:
    bucket.proxy.faults.append("stall")
    assert bytes(file.read(100, 1 << 20)) == CONTENT[100 : 100 + (1 << 20)]
    assert len(bucket.proxy.gets()) == 2


def test_a_slow_body_is_waited_for(file: RemoteFile, bucket: Bucket) -> None:
    bucket.proxy.faults.append("slow")
    assert bytes(file.read(100, 1 << 16)) == CONTENT[100 : 100 + (1 << 16)]
    assert len(bucket.proxy.gets()) == 1


def test_lasting_faults_are_told(
    file: RemoteFile, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(storage, "PATIENCE", 0.0)
    bucket.proxy.faults.extend(["cut"] * 100)
    with pytest.raises(RayclError, match=r"/file: cannot be reached after 2 attempts"):
        file.read(0, 1 << 16)


def test_expired_credentials_are_told_at_once(file: RemoteFile, bucket: Bucket) -> None:
    file.read(0, 10)
    bucket.proxy.always = "expired"
    with pytest.raises(RayclError, match=r"/file: .*have expired .*AWS_PROFILE") as error:
        file.read(0, 10)
    # Once each: raycl asks no second time, and the AWS library may refresh and try again.
    assert len(bucket.proxy.gets()) <= 3
    assert SECRET not in str(error.value)


def test_nothing_secret_is_shown_or_pickled(file: RemoteFile) -> None:
    file.read(0, 10)
    data = pickle.dumps(file)
    for text in (repr(file), repr(file.__getstate__()), data.decode("latin1"), file.name):
        assert SECRET not in text and "AKIA" not in text
    assert bytes(pickle.loads(data).read(5, 9)) == CONTENT[5:14]


def test_a_web_server(tmp_path: Path, bucket: Bucket) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a file").write_bytes(CONTENT)
    with web(tmp_path / "site") as address, Proxy(address).running() as proxy:
        uri = f"{proxy.url}/a%20file"
        entry = storage.stat(uri)
        file = RemoteFile(uri, entry.size, entry.version, cache=BIG)
        proxy.faults.extend(["500", "cut", ""])
        starts, sizes = arrays((0, PAGE), (PAGE + 3, 7))
        for _ in range(2):
            parts = file.gather(starts, sizes, PAGE)
            assert [bytes(part) for part in parts] == expected(starts, sizes)
        spans = [span for _, span in proxy.gets()]
        assert spans.count(f"bytes=0-{PAGE - 1}") + spans.count(f"bytes={PAGE + 3}-{PAGE + 9}") == 5
        proxy.faults.append("expired")
        with pytest.raises(RayclError, match=r"a%20file: access denied"):
            file.read(0, 10)
        with pytest.raises(RayclError, match=r"nothing: there is no such file"):
            storage.stat(f"{proxy.url}/nothing")
        (tmp_path / "site" / "a file").write_bytes(CONTENT[::-1])
        fresh = RemoteFile(uri, entry.size, cache=BIG)
        assert bytes(fresh.gather(*arrays((0, PAGE)), PAGE)[0]) == CONTENT[::-1][:PAGE]


def test_a_web_server_without_ranges_is_told(tmp_path: Path, bucket: Bucket) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with web(tmp_path) as address, Proxy(address).running() as proxy:
        proxy.strip_ranges = True
        with pytest.raises(RayclError, match="does not serve parts of files"):
            RemoteFile(f"{proxy.url}/file", SIZE).read(0, 10)
