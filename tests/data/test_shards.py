from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.beton import (
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    RGBImageField,
    Writer,
)
from raycl.cli import main
from raycl.data import index
from raycl.data import shards as shards_module
from raycl.data.inspect import info
from raycl.data.shards import Shards
from raycl.errors import RayclError
from tests.data.conftest import SECRET, Bucket
from tests.data.servers import Proxy, web

SIZES = (3, 0, 5, 1)


def write(path: Path, values: list[int], **fields: Field) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, fields or {"label": IntField(), "note": JSONField()}) as writer:
        for value in values:
            sample = {"label": value, "note": [value], "weight": value}
            writer.write({name: sample[name] for name in writer.fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Samples 0 to 8 in shards of unequal size, one of them empty."""
    folder, start = tmp_path / "train", 0
    # Written in another order than their names have.
    for number, size in sorted(enumerate(SIZES), reverse=True):
        start = sum(SIZES[:number])
        write(folder / f"{number:05d}.beton", list(range(start, start + size)))
    return folder


def describe(folder: Path, **content: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spec",
    [
        lambda folder: folder,
        lambda folder: str(folder),
        lambda folder: f"{folder}/*.beton",
        lambda folder: f"{folder.parent}/tr*",
        lambda folder: sorted(folder.iterdir()),
        lambda folder: [folder / "00000.beton", f"{folder}/0000[1-3].beton"],
        lambda folder: [folder, folder],
    ],
    ids=["path", "text", "glob", "glob of folders", "list", "list with a glob", "twice"],
)
def test_one_index_over_all_files(folder: Path, spec: Callable[[Path], Any]) -> None:
    shards = Shards(spec(folder))

    assert len(shards) == 9
    assert [Path(path).name for path in shards.paths] == [
        f"{number:05d}.beton" for number in range(4)
    ]
    assert list(shards.fields) == ["label", "note"]
    np.testing.assert_array_equal(shards.column("label"), np.arange(9))
    assert [shards.read(index)["note"] for index in range(9)] == [[n] for n in range(9)]
    assert list(shards.verify()) == []


def test_one_file(folder: Path) -> None:
    shards = Shards(folder / "00002.beton")
    assert shards.column("label").tolist() == [3, 4, 5, 6, 7]


def test_a_list_keeps_its_order(folder: Path) -> None:
    shards = Shards([folder / "00002.beton", folder / "00000.beton"])
    assert shards.column("label").tolist() == [3, 4, 5, 6, 7, 0, 1, 2]


def test_locate(folder: Path) -> None:
    shard, row = Shards(folder).locate(np.array([[8, 0, 2], [3, 7, 3]]))

    assert shard.tolist() == [[3, 0, 0], [2, 2, 2]]
    assert row.tolist() == [[0, 0, 2], [0, 4, 0]]


@pytest.mark.parametrize("index", [-1, 9])
def test_ids_are_checked(folder: Path, index: int) -> None:
    with pytest.raises(RayclError, match=f"there is no sample {index}; the data set has 9"):
        Shards(folder).locate(np.array([0, index]))


def test_files_are_opened_when_asked_for(folder: Path) -> None:
    shards = Shards(folder)
    assert shards._readers.cache_info().currsize == 0

    assert shards.read(8)["label"] == 8
    assert shards._readers.cache_info().currsize == 1
    assert shards.reader(3) is shards.reader(3)


def test_pickles_by_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(folder, classes=["a", "b"])
    monkeypatch.chdir(folder.parent)
    shards = Shards("train")
    shards.read(0)
    data = pickle.dumps(shards)
    monkeypatch.chdir("/")
    restored = pickle.loads(data)

    assert len(data) < 1000
    assert (len(restored), restored.classes, restored.paths) == (9, ["a", "b"], shards.paths)


def test_classes(folder: Path, tmp_path: Path) -> None:
    assert Shards(folder).classes is None
    describe(folder, classes=["cat", "dog"], source="a test", samples=9)
    assert Shards(folder).classes == ["cat", "dog"]
    assert Shards(folder / "00000.beton").classes == ["cat", "dog"]

    write(tmp_path / "more" / "x.beton", [1])
    assert Shards([tmp_path / "more", folder]).classes == ["cat", "dog"]
    describe(tmp_path / "more", classes=["dog", "cat"])
    with pytest.raises(RayclError, match=r"dataset\.json: its classes are not those"):
        Shards([folder, tmp_path / "more"])


def test_listed_shards_must_be_there(folder: Path) -> None:
    describe(folder, shards=["00000.beton", "00007.beton", "00008.beton"])
    with pytest.raises(RayclError, match=r"train: 00007\.beton, 00008\.beton missing"):
        Shards(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_description_is_named(folder: Path, text: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(RayclError, match=r"train/dataset\.json: "):
        Shards(folder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda root: [], "an empty list of data sets"),
        (lambda root: root / "nowhere", "nowhere: there is no such .beton file, directory or glob"),
        (lambda root: f"{root}/*.beton", "there is no such .beton file, directory or glob"),
        (lambda root: root / "empty", "empty: there is no .beton file in this directory$"),
        (lambda root: root, "in this directory; did you mean .*/train"),
        (lambda root: root / "train" / "00001.beton", r"00001\.beton: the data set has no samples"),
        (lambda root: root / "notes.txt", r"notes\.txt: not a .beton file"),
    ],
)
def test_nothing_to_read_is_refused(
    folder: Path, tmp_path: Path, spec: Callable[[Path], Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a data set, but long enough to have a header")

    with pytest.raises(RayclError, match=message):
        Shards(spec(tmp_path))


def test_a_truncated_shard_is_found_at_once(folder: Path) -> None:
    path = folder / "00002.beton"
    path.write_bytes(path.read_bytes()[:-30])

    with pytest.raises(RayclError, match=r"00002\.beton: truncated in the allocation table"):
        Shards(folder)


@pytest.mark.parametrize(
    "fields",
    [{"label": FloatField(), "note": JSONField()}, {"label": IntField(), "weight": FloatField()}],
)
def test_shards_of_different_fields_are_refused(folder: Path, fields: dict[str, Field]) -> None:
    write(folder / "00004.beton", [9], **fields)
    with pytest.raises(RayclError, match=r"00004\.beton: its fields .* are not those of .*00000"):
        Shards(folder)


def test_verify_goes_on_after_a_damaged_file(folder: Path) -> None:
    first, third = folder / "00000.beton", folder / "00002.beton"
    content = bytearray(first.read_bytes())
    # The size in the last record of the allocation table.
    content[-8:] = (1 << 40).to_bytes(8, "little")
    first.write_bytes(content)
    content = bytearray(third.read_bytes())
    content[8 << 20] = ord("?")
    third.write_bytes(content)

    lines = list(Shards(folder).verify())

    assert len(lines) == 2
    assert lines[0].startswith(f"{first}: damaged: record 2")
    assert lines[1].startswith(f"{third}: sample 0, field 'note': not JSON")


def test_dataset_json_tells_the_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(folder.iterdir())
    numbers = {
        "shards": [path.name for path in files],
        "shard_samples": list(SIZES),
        "shard_bytes": [path.stat().st_size for path in files],
    }
    describe(folder, **numbers)
    opened: list[str] = []
    read = shards_module.open_head
    monkeypatch.setattr(
        shards_module, "open_head", lambda source: opened.append(source.name) or read(source)
    )
    shards = Shards(folder)
    assert opened == [str(files[0])] and len(shards) == 9
    assert shards.column("label").tolist() == list(range(9))
    assert [file.samples for file in shards.files] == list(SIZES)

    # A file of another size is asked itself.
    write(files[2], [3, 4])
    opened.clear()
    assert len(Shards(folder)) == 6 and opened == [str(files[0]), str(files[2])]

    # A wrong number is found when the file is opened.
    numbers["shard_samples"] = [4, 0, 5, 1]
    describe(folder, **numbers)
    write(files[2], [3, 4, 5, 6, 7])
    with pytest.raises(RayclError, match=r"00002\.beton: holds 5 samples, and 6 when"):
        numbers["shard_samples"][2] = 6
        describe(folder, **numbers)
        Shards(folder).column("label")


def test_other_fields_are_found_when_a_file_is_opened(folder: Path) -> None:
    write(folder / "00004.beton", [9], label=FloatField(), note=JSONField())
    files = sorted(folder.iterdir())
    sizes = [path.stat().st_size for path in files]
    samples = [*SIZES, 1]
    describe(folder, shards=[f.name for f in files], shard_samples=samples, shard_bytes=sizes)
    shards = Shards(folder)
    assert shards.read(0)["label"] == 0
    with pytest.raises(RayclError, match=r"00004\.beton: its fields .* are not those of .*00000"):
        shards.read(9)


def test_a_pickled_data_set_opens_nothing(folder: Path) -> None:
    data = pickle.dumps(Shards(folder))
    for path in folder.iterdir():
        path.rename(path.with_suffix(".away"))
    restored = pickle.loads(data)
    assert len(restored) == 9 and list(restored.fields) == ["label", "note"]
    for path in folder.iterdir():
        path.rename(path.with_suffix(".beton"))
    assert restored.read(8)["label"] == 8


def test_samples_of_many_files_at_once(folder: Path) -> None:
    shards = Shards(folder)
    ids = np.array([8, 0, 7, 0, 3])

    payloads = shards.payloads(ids, ["note"])
    assert list(payloads) == ["note"]
    assert [bytes(part) for part in payloads["note"]] == [f"[{i}]\0".encode() for i in ids]
    numbers = shards.numbers(ids, "label")
    assert numbers.tolist() == ids.tolist() and numbers.dtype == np.int64

    none = np.array([], np.int64)
    assert shards.payloads(none, ["note"]) == {"note": []}
    assert shards.payloads(ids, []) == {}
    assert shards.numbers(none, "label").shape == (0,)
    with pytest.raises(RayclError, match="there is no sample 9"):
        shards.payloads(np.array([9]), ["note"])


def test_only_the_files_concerned_are_opened(folder: Path) -> None:
    shards = Shards(folder)
    shards.numbers(np.array([3, 4]), "label")
    shards.payloads(np.array([5]), ["note"])
    assert shards._readers.cache_info().currsize == 1


def test_what_is_lost_is_empty(folder: Path) -> None:
    path = folder / "00002.beton"
    content = bytearray(path.read_bytes())
    cell = 24 + 2 * 1041 + 8
    content[cell : cell + 8] = (9 << 20).to_bytes(8, "little")
    path.write_bytes(content)
    payloads = Shards(folder).payloads(np.array([2, 3, 4]), ["note"])
    assert [bytes(part) for part in payloads["note"]] == [b"[2]\0", b"", b"[4]\0"]


def test_image_info(tmp_path: Path) -> None:
    for shard in range(2):
        fields = {"image": RGBImageField(("raw", "jpg")[shard])}  # type: ignore[arg-type]
        with Writer(tmp_path / f"{shard}.beton", fields) as writer:
            for i in range(3):
                writer.write({"image": np.zeros((10 + i, 20 + shard, 3), np.uint8)})
    shards = Shards(tmp_path)
    mode, height, width = shards.image_info(np.array([4, 0, 5, 0]), "image")
    assert mode.tolist() == [0, 1, 0, 1]
    assert height.tolist() == [11, 10, 12, 10]
    assert width.tolist() == [21, 20, 21, 20]
    assert [len(part) for part in shards.image_info(np.array([], np.int64), "image")] == [0, 0, 0]
    (payload,) = shards.payloads(np.array([1]), ["image"])["image"]
    assert payload.nbytes == 11 * 20 * 3


@pytest.mark.parametrize("indexed", [False, True])
def test_pages_of_all_files(folder: Path, indexed: bool) -> None:
    write(folder / "00004.beton", [9, 10])
    if indexed:
        for path in sorted(folder.glob("*.beton"))[::2]:
            index.write(path)
    counts, ids = Shards(folder).pages()
    assert (counts.tolist(), counts.dtype, ids) == ([3, 5, 1, 2], np.int32, None)


def test_pages_of_a_file_whose_rows_do_not_ascend(tmp_path: Path) -> None:
    for shard in range(2):
        with Writer(tmp_path / f"{shard}.beton", {"blob": BytesField()}, page_size=2 << 20) as w:
            for i in range(4):
                w.write({"blob": bytes([i]) * (1 << 20)})
    path = tmp_path / "1.beton"
    content = bytearray(path.read_bytes())
    rows = np.frombuffer(content, np.uint8, 4 * 16, 24 + 1041).reshape(4, 16)
    rows[:] = rows[[2, 0, 3, 1]].copy()
    path.write_bytes(content)
    counts, ids = Shards(tmp_path).pages()
    assert counts.tolist() == [2, 2, 2, 2]
    assert ids is not None and ids.tolist() == [0, 1, 2, 3, 5, 7, 4, 6]


def upload(bucket: Bucket, folder: Path, indexed: bool) -> str:
    for path in sorted(folder.glob("*.beton")) if indexed else []:
        index.write(path)
    return bucket.upload(folder)


@pytest.mark.parametrize(("indexed", "reads"), [(False, 3), (True, 1)])
def test_a_remote_data_set(folder: Path, bucket: Bucket, indexed: bool, reads: int) -> None:
    describe(folder, classes=["cat", "dog"])
    uri = upload(bucket, folder, indexed)
    local, shards = Shards(folder), Shards(uri)

    assert (len(shards), shards.place, shards.bytes) == (9, uri, local.bytes)
    assert shards.paths == [f"{uri}/{Path(path).name}" for path in local.paths]
    assert (shards.classes, shards.fields) == (local.classes, local.fields)
    np.testing.assert_array_equal(shards.column("label"), np.arange(9))
    for shard in range(4):
        shards.reader(shard).spans(np.array([], np.int64), "note")
    # Whatever the tables are needed for, they have come in so many ranged reads a shard.
    for name in ("00000", "00002", "00003"):
        assert len(bucket.proxy.gets(name)) == reads, bucket.proxy.gets(name)
    assert [shards.read(i) for i in range(9)] == [local.read(i) for i in range(9)]
    assert shards.pages()[0].tolist() == [3, 5, 1]
    assert list(shards.verify()) == []
    assert shards.describe(8) == f"{uri}/00003.beton, sample 0"


@pytest.mark.parametrize(
    "spec",
    [
        lambda uri: f"{uri}/",
        lambda uri: f"{uri}/*.beton",
        lambda uri: [f"{uri}/00000.beton", f"{uri}/0000[1-3].beton"],
        lambda uri: [f"{uri}/{number:05d}.beton" for number in range(4)],
        lambda uri: [uri, uri],
    ],
    ids=["slash", "glob", "list with a glob", "list", "twice"],
)
def test_remote_specs(folder: Path, bucket: Bucket, spec: Callable[[str], Any]) -> None:
    describe(folder, classes=["a", "b"])
    shards = Shards(spec(upload(bucket, folder, True)))
    assert shards.column("label").tolist() == list(range(9)) and shards.classes == ["a", "b"]


def test_local_and_remote_together(folder: Path, bucket: Bucket) -> None:
    shards = Shards([upload(bucket, folder, True), folder, f"file://{folder}/00003.beton"])
    assert shards.column("label").tolist() == [*range(9), *range(9)]
    ids = np.array([17, 3, 0])
    assert [bytes(part) for part in shards.payloads(ids, ["note"])["note"]] == [
        b"[8]\0", b"[3]\0", b"[0]\0",
    ]  # fmt: skip


def test_a_remote_data_set_is_fetched_once_and_kept(tmp_path: Path, bucket: Bucket) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with Writer(folder / "0.beton", {"blob": BytesField()}, page_size=2 << 20) as writer:
        for i in range(12):
            writer.write({"blob": bytes([i]) * 500_000})
    uri = upload(bucket, folder, True)
    for ids in ([0, 11], [5, 3, 7, 0], list(range(12))):
        shards = pickle.loads(pickle.dumps(Shards(uri)))
        blobs = shards.payloads(np.array(ids), ["blob"])["blob"]
        assert [bytes(blob) for blob in blobs] == [bytes([i]) * 500_000 for i in ids]
    assert len(bucket.proxy.gets("0.beton")) - len(bucket.proxy.gets(".index")) == 3

    # Without a cache, and for a few samples, just these are read.
    bucket.proxy.requests.clear()
    Shards(uri, cache_gb=0).payloads(np.array([1, 9]), ["blob"])
    spans = {span for path, span in bucket.proxy.gets() if not path.endswith(".index")}
    assert spans == {f"bytes={start}-{start + 499_999}" for start in (2_597_152, 6_791_456)}


def test_two_processes_share_the_cache(tmp_path: Path, bucket: Bucket) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(2):
        with Writer(folder / f"{shard}.beton", {"blob": BytesField()}, page_size=2 << 20) as w:
            for i in range(12):
                w.write({"blob": bytes([i]) * 500_000})
    uri = upload(bucket, folder, True)
    bucket.proxy.delay = 0.3  # so that they meet
    code = (
        "import numpy as np; from raycl.data.shards import Shards\n"
        f"shards = Shards({uri!r})\n"
        "blobs = shards.payloads(np.arange(24), ['blob'])['blob']\n"
        "assert [bytes(b) for b in blobs] == [bytes([i % 12]) * 500_000 for i in range(24)]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    pages = [get for get in bucket.proxy.gets(".beton") if not get[0].endswith(".index")]
    assert len(pages) == len(set(pages)) == 6


def test_remote_faults(folder: Path, bucket: Bucket) -> None:
    uri = upload(bucket, folder, False)
    bucket.proxy.faults.extend(["500", "", "cut", "500", "500", "500", "cut"])
    assert Shards(uri).column("label").tolist() == list(range(9))
    bucket.proxy.always = "expired"
    with pytest.raises(RayclError, match=rf"{uri}: .*have expired .*AWS_PROFILE") as error:
        Shards(uri)
    assert SECRET not in str(error.value)


def test_nothing_remote_to_read_is_refused(folder: Path, bucket: Bucket) -> None:
    bucket.put("empty/notes.txt", b"x")
    uri = upload(bucket, folder, False)
    for place, message in (
        ("empty", "there is no .beton file under this URI"),
        ("nowhere", "there is no such file, directory or bucket"),
        ("nowhere.beton", "there is no such file, directory or bucket"),
        ("set/x*.beton", "there is no .beton file under this URI"),
    ):
        with pytest.raises(RayclError, match=rf"^{re.escape(bucket.uri(place))}: {message}"):
            Shards(bucket.uri(place))
    with pytest.raises(RayclError, match="the URI carries credentials") as error:
        Shards(uri.replace("s3://", "s3://AKIAIOSFODNN7EXAMPLE:top-secret@"))
    assert "top-secret" not in str(error.value)
    bucket.put("set/dataset.json", json.dumps({"shards": ["00009.beton"]}).encode())
    with pytest.raises(RayclError, match=rf"{uri}: 00009\.beton missing, which dataset\.json"):
        Shards(uri)
    bucket.put("set/dataset.json", b"{")
    with pytest.raises(RayclError, match=rf"{uri}/dataset\.json: cannot be read as JSON"):
        Shards(uri)
    bucket.put("set/dataset.json", b"{}")
    bucket.put("set/00002.beton", (folder / "00002.beton").read_bytes()[:-30])
    with pytest.raises(RayclError, match=rf"{uri}/00002\.beton: truncated in the allocation"):
        Shards(uri)


def test_nothing_secret_is_shown_or_pickled(folder: Path, bucket: Bucket) -> None:
    shards = Shards(upload(bucket, folder, True))
    shards.payloads(np.arange(9), ["note"])
    for text in (repr(shards), pickle.dumps(shards).decode("latin1"), repr(shards.__dict__)):
        assert SECRET not in text and "AKIA" not in text


@pytest.mark.parametrize("numbers", [False, True])
def test_a_data_set_of_a_web_server(folder: Path, bucket: Bucket, numbers: bool) -> None:
    files = sorted(folder.iterdir())
    for path in files:
        index.write(path)
    content: dict[str, Any] = {"classes": ["a"], "shards": [path.name for path in files]}
    if numbers:
        content["shard_samples"] = list(SIZES)
        content["shard_bytes"] = [path.stat().st_size for path in files]
    describe(folder, **content)
    with web(folder.parent) as address, Proxy(address).running() as proxy:
        uri = f"{proxy.url}/train"
        shards = Shards(uri)
        assert (len(shards), shards.classes, shards.place) == (9, ["a"], uri)
        assert shards.column("label").tolist() == list(range(9))
        assert len(proxy.gets("00002.beton")) == 1
        assert [shards.read(i)["note"] for i in range(9)] == [[i] for i in range(9)]
        one = Shards(f"{uri}/00002.beton")
        assert one.column("label").tolist() == [3, 4, 5, 6, 7] and one.classes == ["a"]
        (folder / "dataset.json").unlink()
        with pytest.raises(RayclError, match=r"dataset\.json: there is no such file"):
            Shards(uri)


def test_the_command_line_reads_a_bucket(
    folder: Path,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = upload(bucket, folder, True)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raycl", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
            sys.exit(0)
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    code, out, _ = run("info", uri)
    assert code == 0 and json.loads(out) == info(Shards(folder))
    assert run("verify", uri)[0] == 0

    content = bytearray((folder / "00002.beton").read_bytes())
    content[8 << 20] = ord("?")
    bucket.put("set/00002.beton", bytes(content))
    code, out, _ = run("verify", uri)
    assert code == 1 and f"{uri}/00002.beton: sample 0, field 'note': not JSON" in out

    bucket.proxy.always = "expired"
    code, out, err = run("info", uri)
    assert code == 2 and "AWS_PROFILE" in err and SECRET not in out + err
