from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from raycl.beton import BetonError
from raycl.beton.source import MappedFile


def test_a_mapped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    monkeypatch.chdir(tmp_path)
    source = MappedFile("file")

    assert (source.name, source.size) == (str(tmp_path / "file"), 10)
    assert bytes(source.read(2, 3)) == b"234" and source.read(2, 3).readonly
    starts, sizes = np.array([7, 0, 4, 4]), np.array([3, 2, 0, 1])
    assert [bytes(part) for part in source.gather(starts, sizes, 8)] == [b"789", b"01", b"", b"4"]
    assert source.gather(starts[:0], sizes[:0], 8) == []

    data = pickle.dumps(source)
    monkeypatch.chdir("/")
    assert bytes(pickle.loads(data).read(0, 10)) == b"0123456789"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert MappedFile(tmp_path / "file").size == 0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BetonError, match=r"nothing: there is no such file"):
        MappedFile(tmp_path / "nothing")
    with pytest.raises(BetonError, match="cannot be read: Is a directory"):
        MappedFile(tmp_path)
