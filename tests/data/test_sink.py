"""Imports: what is stored, and that a failed one leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl.beton import Reader
from raycl.data import sink
from raycl.data.shards import Shards
from raycl.data.sink import Storage, import_dataset
from raycl.errors import RayclError


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth image, which JPEG keeps well."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def folder(root: Path, count: int = 12, suffix: str = "jpg") -> Path:
    for i in range(count):
        path = root / ("cat", "dog")[i % 2] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed=i)).save(path)
    return root


def archive(path: Path, count: int = 7) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 8, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(count))
    return path


def remains(root: Path, *expected: str) -> None:
    assert sorted(path.name for path in root.iterdir()) == sorted(expected)


def test_pixels_and_labels_arrive_over_several_shards(tmp_path: Path) -> None:
    source = archive(tmp_path / "x.npz")
    seen: list[tuple[int, int]] = []
    (written,) = import_dataset(
        "npz",
        source,
        tmp_path / "out",
        storage=Storage(shard_samples=3),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [len(Reader(path)) for path in Shards(tmp_path / "out").paths] == [3, 3, 1]
    assert (written.path, written.samples, written.shards) == (tmp_path / "out", 7, 3)
    assert written.bytes == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.beton"))
    shards = Shards(tmp_path / "out")
    with np.load(source) as arrays:
        assert np.array_equal([shards.read(i)["image"] for i in range(7)], arrays["images"])
    assert shards.column("label").tolist() == list(range(7))
    assert seen == [(done, 7) for done in range(1, 8)]
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert described["samples"] == 7 and described["classes"] is None
    assert described["shards"] == ["00000.beton", "00001.beton", "00002.beton"]
    remains(tmp_path, "out", "x.npz")


def test_shards_are_cut_by_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "SHARD_BYTES", 2 * 9 * 8 * 3 + 1)
    import_dataset("npz", archive(tmp_path / "x.npz"), tmp_path / "out")
    assert [len(Reader(p)) for p in Shards(tmp_path / "out").paths] == [3, 3, 1]


def test_importing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 70, "png")
    for name in "ab":
        import_dataset("imagefolder", source, tmp_path / name, storage=Storage(shard_samples=40))
    for one in (tmp_path / "a").iterdir():
        assert one.read_bytes() == (tmp_path / "b" / one.name).read_bytes()


def test_digits_come_in_two_splits(tmp_path: Path) -> None:
    train, test = import_dataset("digits", None, tmp_path / "d", storage=Storage(shard_samples=500))
    assert (train.path, train.samples, train.shards) == (tmp_path / "d" / "train", 1437, 3)
    assert (test.path, test.samples, test.shards) == (tmp_path / "d" / "test", 360, 1)
    assert Shards(train.path).classes == [str(digit) for digit in range(10)]
    image = Shards(test.path).read(0)["image"]
    assert image.shape == (32, 32, 3) and image.max() > 200


def test_jpeg_files_are_stored_untouched(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    import_dataset("imagefolder", source, tmp_path / "out")
    shards = Shards(tmp_path / "out")
    files = {path.read_bytes(): path.parent.name for path in source.rglob("*.jpg")}
    stored = [bytes(shards.reader(0).encoded(i, "image")) for i in range(len(shards))]
    assert set(stored) == set(files)
    labels = [(shards.classes or [])[label] for label in shards.column("label")]
    assert labels == [files[payload] for payload in stored]


def test_other_formats_are_encoded_or_kept_as_pixels(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 4, "png")
    originals = sorted(np.asarray(Image.open(p)).tobytes() for p in source.rglob("*.png"))
    import_dataset("imagefolder", source, tmp_path / "jpg", storage=Storage(quality=95))
    import_dataset("imagefolder", source, tmp_path / "raw", storage=Storage(mode="raw"))
    jpg, raw = Shards(tmp_path / "jpg"), Shards(tmp_path / "raw")
    assert jpg.reader(0).image_info("image")[0].tolist() == [0] * 4
    assert sorted(raw.read(i)["image"].tobytes() for i in range(4)) == originals
    for i in range(4):
        difference = jpg.read(i)["image"].astype(int) - raw.read(i)["image"]
        assert 0 < np.abs(difference).mean() < 4


def test_quality_matters_only_for_what_is_encoded_here(tmp_path: Path) -> None:
    sizes = []
    for quality in (30, 95):
        out = tmp_path / str(quality)
        import_dataset(
            "imagefolder", folder(tmp_path / "in", 2, "png"), out, storage=Storage(quality=quality)
        )
        sizes.append(len(Shards(out).reader(0).encoded(0, "image")))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_large_images_are_scaled_down_and_small_ones_kept(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    large, small = picture(90, 120), picture(20, 30)
    for name, pixels in (("large", large), ("small", small)):
        Image.fromarray(pixels).save(source / f"{name}.jpg", quality=95)
    storage = Storage(mode=mode, resolution=60)  # type: ignore[arg-type]
    import_dataset("imagefolder", source, tmp_path / "out", storage=storage)
    shards = Shards(tmp_path / "out")
    images = {shards.read(i)["image"].shape[:2]: shards.read(i)["image"] for i in range(2)}
    assert set(images) == {(45, 60), (20, 30)}
    means = large.reshape(45, 2, 60, 2, 3).mean((1, 3))
    assert np.abs(images[45, 60] - means).mean() < 4
    if mode == "jpg":
        payloads = [bytes(shards.reader(0).encoded(i, "image")) for i in range(2)]
        assert (source / "small.jpg").read_bytes() in payloads


def stored(tmp_path: Path, image: Image.Image, name: str, **options: object) -> np.ndarray:
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / name, **options)  # type: ignore[arg-type]
    import_dataset("imagefolder", tmp_path / "in", tmp_path / "out")
    pixels: np.ndarray = Shards(tmp_path / "out").read(0)["image"]
    return pixels


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = picture(24, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the image rotated clockwise
    found = stored(tmp_path, Image.fromarray(pixels), "p.jpg", exif=exif, quality=95)
    assert found.shape == (32, 24, 3)
    assert np.abs(found.astype(int) - np.rot90(pixels, -1)).mean() < 5


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "p.jpg"), ("CMYK", "p.jpg"), ("P", "p.gif"), ("RGBA", "p.png")]
)
def test_any_colours_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    image = Image.fromarray(picture()).convert("L").convert(mode)
    found = stored(tmp_path, image, name)
    assert np.abs(found.astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


def test_deep_images_are_refused_not_clipped(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"p\.png.*'I;16', not 8 bits"):
        stored(tmp_path, Image.fromarray(np.full((8, 8), 999, np.uint16)), "p.png")
    remains(tmp_path, "in")


def test_images_beyond_a_page_are_refused_with_a_way_out(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(picture(1700, 1700)).save(source / "big.jpg")
    with pytest.raises(RayclError, match=r"big\.jpg: takes 8\.3 MiB .*resolution"):
        import_dataset("imagefolder", source, tmp_path / "out", storage=Storage(mode="raw"))
    remains(tmp_path, "in")


def test_limit_cuts_train_alone(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for split in ("train", "test"):
        folder(source / split, 10)
    for name, limit in (("whole", None), ("part", 3)):
        import_dataset("imagefolder", source, tmp_path / name, limit=limit)
    whole, part = Shards(tmp_path / "whole" / "train"), Shards(tmp_path / "part" / "train")
    assert len(part) == 3 and len(Shards(tmp_path / "part" / "test")) == 10
    for i in range(3):
        assert part.reader(0).encoded(i, "image") == whole.reader(0).encoded(i, "image")
    import_dataset("npz", archive(tmp_path / "x.npz"), tmp_path / "single", limit=99)
    assert len(Shards(tmp_path / "single")) == 7


def test_images_without_labels_have_no_label_field(tmp_path: Path) -> None:
    assert stored(tmp_path, Image.fromarray(picture()), "1.png").shape == (24, 32, 3)
    assert list(Shards(tmp_path / "out").fields) == ["image"]


def test_real_cifar10_prefix_is_byte_for_byte(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    source = shared_data("cifar10")
    with np.load(source / "test.npz") as arrays:
        cut = {
            "data": arrays["data"],
            "offsets": arrays["offsets"][:301],
            "labels": arrays["labels"][:300],
            "classes": arrays["classes"],
        }
    np.savez(tmp_path / "cut.npz", **cut)
    import_dataset("npz", tmp_path / "cut.npz", tmp_path / "out", limit=200)
    shards = Shards(tmp_path / "out")
    assert shards.column("label").tolist() == cut["labels"][:200].tolist()
    payloads = b"".join(bytes(shards.reader(0).encoded(i, "image")) for i in range(200))
    assert payloads == cut["data"][: cut["offsets"][200]].tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"<html>not found</html>",
    ],
    ids=["truncated", "empty", "html"],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_corrupt_image_is_named_and_nothing_stays(
    tmp_path: Path, damage: Callable[[bytes], bytes], suffix: str
) -> None:
    source = folder(tmp_path / "in", 8, suffix)
    bad = source / "dog" / f"5.{suffix}"
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(RayclError, match=f"{bad}: not a"):
        import_dataset("imagefolder", source, tmp_path / "new" / "out")
    remains(tmp_path, "in")


def test_a_corrupt_image_of_an_archive_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", data=np.zeros(9, np.uint8), offsets=[0, 9], names=["cat/7.jpg"])
    with pytest.raises(RayclError, match=r"x\.npz\[0\] \(cat/7\.jpg\): not an image"):
        import_dataset("npz", tmp_path / "x.npz", tmp_path / "out")
    remains(tmp_path, "x.npz")


@pytest.mark.parametrize(
    ("kind", "source", "options", "says"),
    [
        ("imagenet", "in", {}, "unknown kind 'imagenet'; known are digits, imagefolder, npz"),
        ("digits", "in", {}, "give no SRC"),
        ("npz", None, {}, "SRC is missing"),
        ("npz", "nowhere.npz", {}, r"nowhere\.npz: there is no such file"),
        ("imagefolder", "empty", {}, "there are no images here"),
        ("imagefolder", "in", {"limit": 0}, "limit: 0 was given"),
        ("imagefolder", "splits", {"limit": 1}, "limit: .* only test"),
    ],
)
def test_wrong_orders_are_refused(
    tmp_path: Path, kind: str, source: str | None, options: dict[str, int], says: str
) -> None:
    folder(tmp_path / "in", 2)
    folder(tmp_path / "splits" / "test", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RayclError, match=says):
        import_dataset(kind, source and tmp_path / source, tmp_path / "out", **options)  # type: ignore[arg-type]
    remains(tmp_path, "in", "splits", "empty")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "png"}, "mode: 'png'"),
        ({"quality": 0}, "quality: 0"),
        ({"resolution": 0}, "resolution: 0"),
        ({"shard_samples": -1}, "shard_samples: -1"),
    ],
)
def test_wrong_storage_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(RayclError, match=says):
        Storage(**options)  # type: ignore[arg-type]


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    with pytest.raises(RayclError, match="exists and is not empty"):
        import_dataset("npz", archive(tmp_path / "x.npz"), out)
    assert (out / "precious.txt").read_text() == "keep me"
    (out / "precious.txt").unlink()
    import_dataset("npz", tmp_path / "x.npz", out)
    assert len(Shards(out)) == 7
    with pytest.raises(RayclError, match="is a file"):
        import_dataset("npz", tmp_path / "x.npz", tmp_path / "x.npz")
    remains(tmp_path, "out", "x.npz")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(
            "npz",
            archive(tmp_path / "x.npz"),
            tmp_path / "out",
            storage=Storage(shard_samples=2),
            progress=interrupt,
        )
    remains(tmp_path, "x.npz")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 40)
    code = (
        "import signal, sys, time\n"
        # A shell that runs the tests in the background lets its children ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from raycl.data.sink import import_dataset\n"
        "slow = lambda done, total: (print(done, flush=True), time.sleep(0.2))\n"
        "import_dataset('imagefolder', sys.argv[1], sys.argv[2], progress=slow)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        assert any(path.name.startswith("out.partial-") for path in tmp_path.iterdir())
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert process.returncode != 0
    remains(tmp_path, "in")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not allow a mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path, tiny_disk: Path) -> None:
    source = archive(tmp_path / "x.npz")
    with pytest.raises(RayclError, match="the disk is full") as error:
        import_dataset("npz", source, tiny_disk / "deep" / "out")
    assert str(tiny_disk / "deep" / "out") in str(error.value)
    assert "partial" not in str(error.value)
    remains(tiny_disk)
    assert os.statvfs(tiny_disk).f_bfree == os.statvfs(tiny_disk).f_blocks


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, tiny_disk: Path) -> None:
    with pytest.raises(RayclError, match="is a mount point; choose a directory inside it"):
        import_dataset("npz", archive(tmp_path / "x.npz"), tiny_disk)


def test_grey_jpegs_of_archives_are_read_as_rgb(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(picture()).convert("L").save(buffer, "JPEG")
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    np.savez(tmp_path / "x.npz", data=data, offsets=[0, len(data)])
    import_dataset("npz", tmp_path / "x.npz", tmp_path / "out")
    image = Shards(tmp_path / "out").read(0)["image"]
    assert image.shape == (24, 32, 3) and (image[..., 0] == image[..., 2]).all()
