"""How the files of a data set are named and found; `test_shards.py` opens what is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycl.data.find import below, find, name_of, sibling
from raycl.errors import RayclError
from tests.data.conftest import Bucket


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("/a/b.beton", "c", "/a/c"),
        ("/a/b?c.beton", "d", "/a/d"),
        ("s3://bucket/a/b.beton", "c", "s3://bucket/a/c"),
        ("s3://bucket/a/b.beton?region=x/y", "c", "s3://bucket/a/c?region=x/y"),
        ("s3://bucket/a/b.beton?region=x", "", "s3://bucket/a?region=x"),
        ("/a/b.beton", "", "/a"),
    ],
)
def test_siblings(path: str, name: str, expected: str) -> None:
    assert sibling(path, name) == expected


def test_names() -> None:
    assert name_of("/a/b?c.beton") == "b?c.beton"
    assert name_of("s3://bucket/a/b.beton?x=/y") == "b.beton"
    assert below("s3://bucket/a?x=y", "b") == "s3://bucket/a/b?x=y"


def test_a_directory_is_listed_with_sizes_and_samples(tmp_path: Path) -> None:
    for name, size in (("b.beton", 20), ("a.beton", 10), ("a.beton.index", 5), ("notes", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    description = {
        "shards": ["a.beton", "b.beton"],
        "shard_samples": [3, 4],
        "shard_bytes": [10, 1],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = find(tmp_path)
    assert [(f.path, f.size, f.samples) for f in found.files] == [
        (str(tmp_path / "a.beton"), 10, 3),
        (str(tmp_path / "b.beton"), 20, None),  # of another size than told
    ]
    assert found.descriptions == {str(tmp_path / "dataset.json"): description}


def test_a_bucket_is_listed_with_one_request(bucket: Bucket) -> None:
    for name, size in (("b.beton", 20), ("a.beton", 10), ("a.beton.index", 5), ("notes", 1)):
        bucket.put(f"set/{name}", bytes(size))
    found = find(bucket.uri("set"))
    assert [(f.path, f.size, f.index) for f in found.files] == [
        (bucket.uri("set/a.beton"), 10, 5),
        (bucket.uri("set/b.beton"), 20, 0),
    ]
    assert len(bucket.proxy.requests) == 1


@pytest.mark.parametrize("content", ["3", '{"shards": 3}', '{"shards": [], "shard_bytes": "x"}'])
def test_descriptions_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.beton").write_bytes(b"x")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(RayclError, match=r"dataset\.json: expected an object with classes and"):
        find(tmp_path)


def test_a_web_directory_needs_a_description(bucket: Bucket) -> None:
    for name in ("nowhere", "nowhere/*.beton"):
        with pytest.raises(
            RayclError, match=r"nowhere/dataset\.json: .* web server has no listing"
        ):
            find(f"{bucket.proxy.url}/{name}")


def test_what_is_still_being_written_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "x.partial" / "train").mkdir(parents=True)
    for place in ("x.partial", "x.partial/train"):
        with pytest.raises(RayclError, match=r"x\.partial: a data set that is not finished"):
            find(tmp_path / place)
