"""Masks go where their images go: into the container, and through the same crops."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycl.beton import BytesField, IntField, RGBImageField, Writer
from raycl.data.decode import decoding_threads
from raycl.data.loader import Loader
from raycl.data.order import Order
from raycl.data.plan import Plan, Source, local_bundles
from raycl.data.pool import cut
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.data.streams import streams_of
from raycl.errors import RayclError
from raycl.methods.base import Settings, Stream
from raycl.recipe import Recipe
from raycl.views.image import Crop, ImageView, MaskView
from tests.train.toys import Toy

IMAGE = ImageView(size=16, crop=Crop(scale=(0.2, 1.0)), interpolation="bilinear")
VIEWS = {"images": {"view1": IMAGE, "view2": IMAGE, "mask1": MaskView(follows="view1", size=16)}}


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def half_planes(path: Path, count: int = 12, wrong: int | None = None) -> Shards:
    """Images that are white where their mask is 1: on one side of a line, for each another one."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :80]
    fields = {"image": RGBImageField("raw"), "mask": BytesField(), "label": IntField()}
    with Writer(path, fields) as writer:
        for index in range(count):
            a, b = generator.normal(size=2)
            mask = (a * (rows - 30) + b * (columns - 40) > 0).astype(np.uint8)
            pixels = np.repeat(255 * mask[..., None], 3, 2)
            stored = png(mask[:-1] if index == wrong else mask)
            writer.write({"image": pixels, "mask": stored, "label": index})
    return Shards(path)


def loader_of(shards: Shards, **settings: Any) -> tuple[Loader, Plan]:
    order = Order(len(shards), 1, 4)
    plan = Plan({"images": Source(shards, order, ("image", "mask", "label"))})

    def bundles(epoch: int, start: int) -> Any:
        return local_bundles(plan, [0], epoch, start)

    return Loader(plan, VIEWS, [0], bundles, torch.device("cpu"), **settings), plan


def test_a_mask_shows_what_its_view_shows(tmp_path: Path) -> None:
    loader, _ = loader_of(half_planes(tmp_path / "x.beton"))
    agree = []
    flips = set()
    for batch in loader.epoch(0):
        assert batch["mask1"].shape == (4, 16, 16) and batch["mask1"].dtype == torch.uint8
        assert torch.equal(batch["mask1.box"], batch["view1.box"])
        agree += ((batch["view1"].mean(1) > 0.5) == batch["mask1"].bool()).float().tolist()
        flips |= set(batch["view1.flip"].tolist())
    assert flips == {True, False}
    assert np.mean(agree) > 0.96  # but for pixels on the line


def test_masks_change_no_other_view(tmp_path: Path) -> None:
    loader, plan = loader_of(half_planes(tmp_path / "x.beton"))
    bare = {"images": {"view1": IMAGE, "view2": IMAGE}}
    other = Loader(plan, bare, [0], loader.bundles, torch.device("cpu"))
    for one, two in zip(loader.epoch(1), other.epoch(1), strict=True):
        assert torch.equal(one["view1"], two["view1"]) and torch.equal(one["view2"], two["view2"])


def test_the_cluster_and_a_device_cut_the_same_masks(tmp_path: Path) -> None:
    shards = half_planes(tmp_path / "x.beton")
    loader, plan = loader_of(shards)
    device, _ = loader_of(shards, on_device=True)
    bundle = plan.read(plan.bundles(0)[0])
    with decoding_threads(1) as pool:
        made = cut(bundle, plan, streams_of(plan, VIEWS, pool, 0, "error"))
    here, there = next(loader.epoch(0)), next(device.epoch(0))
    assert torch.equal(here["mask1"], there["mask1"])
    assert torch.equal(here["mask1"].flatten(1), torch.from_numpy(made["mask1"][:4]))


def test_a_mask_of_another_size_is_damage(tmp_path: Path) -> None:
    shards = half_planes(tmp_path / "x.beton", wrong=5)
    with pytest.raises(RayclError, match=r"sample 5.*mask has 59 x 80 pixels.* has 60 x 80"):
        list(loader_of(shards)[0].epoch(0))
    loader, _ = loader_of(shards, corrupt="substitute")
    assert 5 not in torch.cat([batch["id"] for batch in loader.epoch(0)])


class Masked(Toy):
    class Config(Settings):
        pass

    @classmethod
    def views(cls, config: Any) -> dict[str, Stream]:
        return {"images": Stream(views=dict(VIEWS["images"]))}  # type: ignore[arg-type]


def test_what_a_recipe_says_of_all_views_changes_only_a_masks_size() -> None:
    views = {"size": 24, "gray": 0.5, "crop": {"scale": [0.5, 1.0]}}
    recipe = Recipe.model_validate({"method": {"name": f"{__name__}:Masked"}, "views": views})
    stream = recipe.streams["images"]
    assert stream.views["mask1"] == MaskView(follows="view1", size=24)
    assert stream.images["view1"].gray == 0.5 and list(stream.images) == ["view1", "view2"]


def folder_of(path: Path, sizes: tuple[int, int] = (30, 40)) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for folder in (split, f"{split}annot"):
            (path / folder).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((*sizes, 3), 50 * index, np.uint8)
            Image.fromarray(pixels).save(path / split / f"{index}.jpg")
            mask = np.full(sizes, index, np.uint8)
            mask[:, : sizes[1] // 2] = 7
            Image.fromarray(mask).save(path / f"{split}annot" / f"{index}.png")
    return path


def masks_of(data: Path) -> list[np.ndarray]:
    shards = Shards(data)
    payloads = shards.payloads(np.arange(len(shards)), ["mask"])["mask"]
    return [np.asarray(Image.open(io.BytesIO(bytes(payload)))) for payload in payloads]


def test_images_are_imported_with_their_masks(tmp_path: Path) -> None:
    import_dataset("segmentation", str(folder_of(tmp_path / "src")), tmp_path / "out")
    masks = masks_of(tmp_path / "out" / "train")
    assert [mask[0, -1] for mask in masks] == [0, 1, 2]
    assert all(mask.shape == (30, 40) and mask[0, 0] == 7 for mask in masks)
    assert len(masks_of(tmp_path / "out" / "test")) == 2


def test_masks_shrink_with_their_images(tmp_path: Path) -> None:
    from raycl.data.encode import Storage

    storage = Storage(max_resolution=20)
    source = str(folder_of(tmp_path / "src"))
    import_dataset("segmentation", source, tmp_path / "out", storage=storage)
    for index, mask in enumerate(masks_of(tmp_path / "out" / "train")):
        assert mask.shape == (15, 20) and set(mask.ravel().tolist()) == {7, index}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "trainannot" / "1.png").unlink(), r"1\.jpg: has no mask of its name"),
        (
            lambda p: Image.new("L", (8, 8)).save(p / "trainannot" / "1.png"),
            r"1\.png: not a mask of .*1\.jpg: its size is \(8, 8\)",
        ),
        (
            lambda p: Image.new("RGB", (40, 30)).save(p / "trainannot" / "1.png"),
            r"1\.png: not a mask of .*: its pixels are 'RGB'",
        ),
    ],
    ids=["lost", "size", "colour"],
)
def test_what_is_no_mask_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    source = folder_of(tmp_path / "src")
    spoil(source)
    with pytest.raises(RayclError, match=message):
        import_dataset("segmentation", str(source), tmp_path / "out")


def sequences_of(path: Path, lists: dict[str, str]) -> Path:
    for name, frames in (("dog", 3), ("cat", 2), ("bird", 2)):
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            (path / folder / "480p" / name).mkdir(parents=True)
            for index in range(frames):
                image = Image.new("L" if suffix == "png" else "RGB", (40, 30))
                image.save(path / folder / "480p" / name / f"{index:05}.{suffix}")
    for split, names in lists.items():
        (path / f"{split}.txt").write_text(names)
    return path


def test_sequences_are_labels_and_stay_together(tmp_path: Path) -> None:
    source = sequences_of(tmp_path / "src", {"train": "dog\nbird\n", "val": "cat\n"})
    import_dataset("segmentation", str(source), tmp_path / "out")
    train, val = (Shards(tmp_path / "out" / split) for split in ("train", "val"))
    assert train.classes == val.classes == ["bird", "cat", "dog"]
    assert train.column("label").tolist() == [0, 0, 2, 2, 2] and val.column("label")[0] == 1
    assert len(masks_of(tmp_path / "out" / "val")) == 2
    source = sequences_of(tmp_path / "whole", {})
    import_dataset("segmentation", str(source), tmp_path / "one")
    assert Shards(tmp_path / "one").column("label").tolist() == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "val.txt").write_text("cow"), r"val\.txt: names the sequence 'cow'"),
        (lambda p: (p / "JPEGImages" / "1080p").mkdir(), r"one resolution .* are: 1080p, 480p"),
        (lambda p: (p / "Annotations" / "480p" / "dog" / "00001.png").unlink(), "has no mask"),
    ],
    ids=["unknown", "resolutions", "lost"],
)
def test_sequences_that_cannot_be_read(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    source = sequences_of(tmp_path / "src", {"train": "dog", "val": "cat"})
    spoil(source)
    with pytest.raises(RayclError, match=message):
        import_dataset("segmentation", str(source), tmp_path / "out")


def test_davis(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    import_dataset("segmentation", str(shared_data("davis2016")), tmp_path / "davis")
    train, val = (Shards(tmp_path / "davis" / split) for split in ("train", "val"))
    assert (len(train), len(val), len(train.classes or [])) == (156, 104, 10)
    assert set(np.unique(masks_of(tmp_path / "davis" / "val")[0])) == {0, 255}


def test_camvid(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    import_dataset("segmentation", str(shared_data("camvid")), tmp_path / "camvid")
    assert [len(Shards(tmp_path / "camvid" / split)) for split in ("train", "val", "test")] == [
        367, 101, 233,
    ]  # fmt: skip
    assert masks_of(tmp_path / "camvid" / "val")[0].shape == (360, 480)
