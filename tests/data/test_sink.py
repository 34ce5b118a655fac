"""Imports: what is stored, and that a failed one leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycl.beton import Reader
from raycl.data.encode import Storage
from raycl.data.importers import imagefolder
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
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


def test_shards_are_cut_by_size_too(tmp_path: Path) -> None:
    storage = Storage(shard_bytes=2 * 9 * 8 * 3 + 1)
    import_dataset("npz", archive(tmp_path / "x.npz"), tmp_path / "out", storage=storage)
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
    import_dataset("imagefolder", source, tmp_path / "jpg", storage=Storage(jpeg_quality=95))
    import_dataset("imagefolder", source, tmp_path / "raw", storage=Storage(write_mode="raw"))
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
            "imagefolder",
            folder(tmp_path / "in", 2, "png"),
            out,
            storage=Storage(jpeg_quality=quality),
        )
        sizes.append(len(Shards(out).reader(0).encoded(0, "image")))
    assert sizes[0] < sizes[1]


def test_modes_choose_for_every_image(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 40)
    large = source / "cat" / "large.jpg"
    Image.fromarray(picture(60, 80)).save(large)
    smart = Storage(write_mode="smart", smart_threshold=5000)
    half = Storage(write_mode="proportion", compress_probability=0.5)
    import_dataset("imagefolder", source, tmp_path / "smart", storage=smart)
    import_dataset("imagefolder", source, tmp_path / "half", storage=half)
    for name, expected in (("smart", range(1, 2)), ("half", range(10, 31))):
        shards = Shards(tmp_path / name)
        modes = shards.reader(0).image_info("image")[0]
        assert (modes == 0).sum() in expected
        files = {path.read_bytes() for path in source.rglob("*.jpg")}
        for i in np.flatnonzero(modes == 0).tolist():
            assert bytes(shards.reader(0).encoded(i, "image")) in files
        assert not list(shards.verify())


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_large_images_are_scaled_down_and_small_ones_kept(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    large, small = picture(90, 120), picture(20, 30)
    for name, pixels in (("large", large), ("small", small)):
        Image.fromarray(pixels).save(source / f"{name}.jpg", quality=95)
    storage = Storage(write_mode=mode, max_resolution=60)  # type: ignore[arg-type]
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
        import_dataset("imagefolder", source, tmp_path / "out", storage=Storage(write_mode="raw"))
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


def test_damage_anywhere_in_a_jpeg_is_found(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path = source / "1.jpg"
    Image.fromarray(picture(200, 300)).save(path, quality=95)
    content = path.read_bytes()
    for end in range(len(content) - 3, 700, -len(content) // 9):
        path.write_bytes(content[:end])
        with pytest.raises(RayclError, match=r"1\.jpg: not a"):
            import_dataset("imagefolder", source, tmp_path / "out")


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
        ({"write_mode": "png"}, "write_mode: 'png'"),
        ({"jpeg_quality": 0}, "jpeg_quality: 0"),
        ({"max_resolution": 0}, "max_resolution: 0"),
        ({"shard_samples": -1}, "shard_samples: -1"),
        ({"shard_bytes": 0}, "shard_bytes: 0"),
        ({"write_mode": "smart"}, "smart and smart_threshold belong together"),
        ({"smart_threshold": 9}, "smart and smart_threshold belong together"),
        ({"compress_probability": 1.5}, "compress_probability: 1.5"),
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


def test_a_uri_is_no_directory_to_write_into(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"s3://bucket/x: .* write into one and copy it"):
        import_dataset("npz", archive(tmp_path / "x.npz"), "s3://bucket/x")


def test_an_interrupt_before_the_first_shard_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_dataset(
            "npz", archive(tmp_path / "x.npz"), tmp_path / "new" / "out", progress=interrupt
        )
    remains(tmp_path, "x.npz")


SLOW_IMPORT = """
import signal, sys, time
# A shell that runs the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from raycl.data.encode import Storage
from raycl.data.sink import import_dataset
slow = lambda done, total: (print(done, flush=True), time.sleep(0.05))
storage = Storage(shard_samples=6)
import_dataset('imagefolder', sys.argv[1], sys.argv[2], storage=storage, progress=slow)
"""


def stopped(source: Path, out: Path, by: signal.Signals, done: int) -> str:
    """Starts an import and stops it in the middle of a shard; what it said last."""
    command = [sys.executable, "-c", SLOW_IMPORT, str(source), str(out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while int(process.stdout.readline()) < done:
            pass
        process.send_signal(by)
        said = process.stderr.read()
    assert process.returncode != 0
    return said.strip().splitlines()[-1] if said else ""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=lambda by: by.name)
def test_a_stopped_import_goes_on_where_it_was(tmp_path: Path, by: signal.Signals) -> None:
    source = folder(tmp_path / "in", 40)
    said = stopped(source, tmp_path / "out", by, 15)
    place = tmp_path / "out.partial"
    assert "2 of 7 shards are finished and kept in" in said or by is signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("*.beton")}
    assert sorted(before) == ["00000.beton", "00001.beton"]
    assert not (place / "dataset.json").exists() and not (tmp_path / "out").exists()
    seen: list[int] = []
    storage = Storage(shard_samples=6)
    for name in ("out", "whole"):
        import_dataset(
            "imagefolder",
            source,
            tmp_path / name,
            storage=storage,
            progress=lambda done, total: seen.append(done),
        )
    assert seen == [*range(13, 41), *range(1, 41)]
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert {name: files[name].stat().st_mtime_ns for name in before} == before
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {name: path.read_bytes() for name, path in files.items()} == whole
    remains(tmp_path, "in", "out", "whole")


def test_a_damaged_shard_is_written_again(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 40)
    stopped(source, tmp_path / "out", signal.SIGKILL, 15)
    first = tmp_path / "out.partial" / "00000.beton"
    os.truncate(first, 1000)
    import_dataset("imagefolder", source, tmp_path / "out", storage=Storage(shard_samples=6))
    assert len(Shards(tmp_path / "out")) == 40


def half_done(tmp_path: Path) -> Path:
    """An image folder whose import was stopped by a damaged image, with a shard finished."""
    source = folder(tmp_path / "in", 12)
    (split,) = imagefolder.splits(source)
    bad = Path(list(split.items)[8].origin)
    (tmp_path / "spare").write_bytes(bad.read_bytes())
    bad.write_bytes(b"damaged")
    with pytest.raises(RayclError, match=f"{bad}: not an image.*; 1 of 3 shards are finished"):
        import_dataset("imagefolder", source, tmp_path / "out", storage=Storage(shard_samples=5))
    return bad


def test_after_a_damaged_image_is_mended_the_import_goes_on(tmp_path: Path) -> None:
    bad = half_done(tmp_path)
    (tmp_path / "spare").rename(bad)
    import_dataset(
        "imagefolder", tmp_path / "in", tmp_path / "out", storage=Storage(shard_samples=5)
    )
    assert len(Shards(tmp_path / "out")) == 12
    remains(tmp_path, "in", "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"storage": Storage(shard_samples=5, max_resolution=9)}, "max_resolution: was None, is"),
        ({"storage": Storage(shard_samples=5), "limit": 11}, "limit: was None, is now 11"),
        ({"storage": Storage(shard_samples=4)}, "shard_samples: was 5, is now 4"),
        ({"storage": Storage(shard_samples=5), "source": "spares"}, "source: was"),
        ({"storage": Storage(shard_samples=5), "remove": True}, "contents: was"),
    ],
)
def test_another_order_does_not_go_on_with_a_stopped_one(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    bad = half_done(tmp_path)
    folder(tmp_path / "spares", 12)
    if change.pop("remove", False):
        bad.unlink()
    source = tmp_path / change.pop("source", "in")
    with pytest.raises(RayclError, match=rf"out\.partial: holds .* another order .*{says}"):
        import_dataset("imagefolder", source, tmp_path / "out", **change)
    assert (tmp_path / "out.partial" / "00000.beton").exists()


def test_two_programs_do_not_write_one_data_set(tmp_path: Path) -> None:
    source = archive(tmp_path / "x.npz")

    def again(done: int, total: int) -> None:
        with pytest.raises(RayclError, match="another program is writing this data set right now"):
            import_dataset("npz", source, tmp_path / "out")

    import_dataset("npz", source, tmp_path / "out", progress=again)
    assert len(Shards(tmp_path / "out")) == 7


def test_what_a_lost_task_left_is_swept_away(tmp_path: Path) -> None:
    def lose(done: int, total: int) -> None:
        (tmp_path / "out.partial" / "00000.beton.0123.partial").touch()

    import_dataset("npz", archive(tmp_path / "x.npz"), tmp_path / "out", progress=lose)
    remains(tmp_path / "out", "00000.beton", "00000.beton.index", "dataset.json")


def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "precious.txt").write_text("keep me")
    with pytest.raises(RayclError, match=r"out\.partial: is in the way"):
        import_dataset("npz", archive(tmp_path / "x.npz"), tmp_path / "out")
    assert (tmp_path / "out.partial" / "precious.txt").read_text() == "keep me"


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
