"""The cache of remote pages: shared, bounded, checked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycl.data import cache
from raycl.data.cache import PageCache
from raycl.errors import RayclError

PAGE = b"page" * 1000


class Server:
    """Hands pages out and counts them."""

    def __init__(self, content: bytes = PAGE, delay: float = 0.0) -> None:
        self.content, self.delay, self.fetched = content, delay, 0

    def __call__(self) -> memoryview:
        self.fetched += 1
        time.sleep(self.delay)
        return memoryview(self.content)


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("??/*") if path.is_file()]


def test_a_page_is_fetched_once(tmp_path: Path) -> None:
    server, pages = Server(), PageCache(tmp_path / "cache", 1 << 20)
    assert not pages.has("a", 0)
    for _ in range(3):
        assert pages.get("a", 0, len(PAGE), server) == PAGE
    assert pages.has("a", 0) and not pages.has("a", 1) and not pages.has("b", 0)
    other = PageCache(tmp_path / "cache", 1 << 20)
    assert other.get("a", 0, len(PAGE), server) == PAGE
    assert server.fetched == 1
    pages.get("a", 1, len(PAGE), server)
    pages.get("b", 0, len(PAGE), server)
    assert server.fetched == 3 and not list(tmp_path.rglob("*.partial"))


def test_threads_that_want_the_same_page_wait_for_one(tmp_path: Path) -> None:
    server, pages = Server(delay=0.2), PageCache(tmp_path, 1 << 20)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda i: pages.get("a", i % 2, len(PAGE), server), range(8))
        assert all(page == PAGE for page in found)
    assert server.fetched == 2


@pytest.mark.parametrize("damage", [
    lambda content: content[:100],
    lambda content: b"",
    lambda content: content[:50] + b"?" + content[51:],
    lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    lambda content: content + b"more",
])  # fmt: skip
def test_a_damaged_page_is_fetched_again(tmp_path: Path, damage: object) -> None:
    server = Server()
    PageCache(tmp_path, 1 << 20).get("a", 0, len(PAGE), server)
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    for _ in range(2):
        assert PageCache(tmp_path, 1 << 20).get("a", 0, len(PAGE), server) == PAGE
    assert server.fetched == 2


def test_the_least_recently_used_pages_go_first(tmp_path: Path) -> None:
    limit = 10 * (len(PAGE) + 4)
    pages, server = PageCache(tmp_path, limit), Server()
    for number in range(10):
        pages.get("a", number, len(PAGE), server)
    first = sorted(files(tmp_path), key=lambda path: int(path.name.rpartition("-")[2]))
    for age, path in enumerate(first):
        os.utime(path, (age + 1, age + 1))
    # Another process uses the oldest, which makes it the youngest.
    PageCache(tmp_path, limit).get("a", 0, len(PAGE), server)
    for number in range(10, 30):
        pages.get("a", number, len(PAGE), server)
        assert size_on_disk(tmp_path) <= limit
        if number == 10:
            assert pages.has("a", 0) and not pages.has("a", 1)
    assert pages.has("a", 29) and server.fetched == 30


def test_a_lost_count_is_made_up_for(tmp_path: Path) -> None:
    limit, server = 5 * (len(PAGE) + 4), Server()
    for number in range(12):
        PageCache(tmp_path, limit).get("a", number, len(PAGE), server)
        (tmp_path / "bytes").write_bytes(b"" if number % 2 else b"nonsense")
        assert size_on_disk(tmp_path) <= limit


def test_a_page_that_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    server, pages = Server(), PageCache(tmp_path, 100)
    assert pages.get("a", 0, len(PAGE), server) == PAGE
    assert not files(tmp_path)


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    pages = PageCache(tmp_path, 1 << 20)

    def fail() -> memoryview:
        raise RayclError("no network")

    with pytest.raises(RayclError, match="no network"):
        pages.get("a", 0, len(PAGE), fail)
    assert not files(tmp_path)
    assert pages.get("a", 0, len(PAGE), Server()) == PAGE


def test_a_process_that_dies_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from raycl.data.cache import PageCache\n"
        "def fetch(): print('claimed', flush=True); time.sleep(600)\n"
        f"PageCache(Path({str(tmp_path)!r}), 1 << 20).get('a', 0, {len(PAGE)}, fetch)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "claimed\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(PageCache(tmp_path, 1 << 20).get, "a", 0, len(PAGE), Server())
            time.sleep(0.3)
            assert not waiting.done()
            child.kill()
            assert waiting.result(timeout=60) == PAGE
    assert [path.suffix for path in files(tmp_path)] == [""]


def test_remains_of_dead_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    old, new = (tmp_path / "ab" / f"{name}-0.partial" for name in ("old", "new"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    PageCache(tmp_path, 1 << 20).get("a", 0, len(PAGE), Server())
    assert not old.exists() and new.exists()


def test_a_full_disk_costs_the_copy_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    assert PageCache(tmp_path, 1 << 20).get("a", 0, len(PAGE), Server()) == PAGE
    assert "a page was not kept: No space left on device" in caplog.text
    assert not files(tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RayclError, match=r"file/cache: .*set RAYCL_CACHE"):
        PageCache(tmp_path / "file" / "cache", 1 << 20).get("a", 0, len(PAGE), Server())


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYCL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.page_cache.cache_clear()
    assert cache.page_cache(5).directory == tmp_path / "raycl"
    assert cache.page_cache(5) is cache.page_cache(5)
    monkeypatch.setenv("RAYCL_CACHE", str(tmp_path / "mine"))
    cache.page_cache.cache_clear()
    assert cache.page_cache(5).directory == tmp_path / "mine"
    cache.page_cache.cache_clear()
