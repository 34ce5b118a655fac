"""Masks of a detector's making: added to a data set that is otherwise the same."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycl.beton import IntField, JSONField, RGBImageField, Writer
from raycl.data.reshape import saliency
from raycl.data.saliency import detect
from raycl.data.shards import Shards
from raycl.errors import RayclError
from tests.conftest import Cluster
from tests.data.test_masks import loader_of, masks_of

CALLS: list[tuple[int, ...]] = []
NUMBER = 3


def brightness(image: np.ndarray) -> np.ndarray:
    """A detector: floats."""
    CALLS.append(image.shape)
    return image.mean(2) / 255


def red(image: np.ndarray) -> np.ndarray:
    """A detector: uint8."""
    return image[..., 0]


def fails(image: np.ndarray) -> np.ndarray:
    return image[:, 1000]


def three(image: np.ndarray) -> np.ndarray:
    return image / 255


def loud(image: np.ndarray) -> np.ndarray:
    return image[..., 0] / 100


def hole(image: np.ndarray) -> np.ndarray:
    return np.where(image[..., 0] == image[0, 0, 0], np.nan, 0.5)


def whole(image: np.ndarray) -> np.ndarray:
    return image[..., 0].astype(int)


def blobs(folder: Path, count: int = 12, *, images: tuple[str, ...] = ("image",)) -> Path:
    """Shards of images with a bright square, JPEG and raw in turns, and a class each."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: RGBImageField("smart", smart_threshold=14000) for name in images}
    others = {"label": IntField(), "about": JSONField()}
    for shard in range(2):
        with Writer(folder / f"{shard}.beton", {**fields, **others}) as writer:
            for i in range(shard * count // 2, (shard + 1) * count // 2):
                corners = np.random.default_rng(i).integers(20, 80, (5, 5, 3), np.uint8)
                size = (80, 48 + 4 * (i % 6))
                ground = Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)
                ground.paste((255, 230, 60), (24, 16, 50, 34))
                pixels = dict.fromkeys(images, np.asarray(ground))
                writer.write({**pixels, "label": i % 3, "about": {"number": i}})
    (folder / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    return folder


def stored(shards: Shards, *names: str) -> dict[str, Any]:
    columns = shards.payloads(np.arange(len(shards)), list(names))
    return {name: [bytes(payload) for payload in column] for name, column in columns.items()}


def test_masks_are_added_and_nothing_else_changes(tmp_path: Path) -> None:
    source = Shards(blobs(tmp_path / "in"))
    seen: list[int] = []
    written = saliency(
        [tmp_path / "in"], tmp_path / "out", progress=lambda done, total: seen.append(done)
    )
    assert (written.samples, written.classes, seen[-1]) == (12, ["a", "b", "c"], 12)
    made = Shards(tmp_path / "out")
    assert list(made.fields) == ["image", "label", "about", "mask"]
    assert stored(made, "image", "about") == stored(source, "image", "about")
    before, after = (data.image_info(np.arange(12), "image") for data in (source, made))
    assert set(before[0].tolist()) == {0, 1}
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))
    assert np.array_equal(source.column("label"), made.column("label"))
    for i, mask in enumerate(masks_of(tmp_path / "out")):
        assert np.array_equal(mask, detect(source.read(i)["image"]))
        assert (mask > 127)[18:32, 26:48].all() and (mask > 127).mean() < 0.25


def test_a_view_reads_them(tmp_path: Path) -> None:
    saliency([blobs(tmp_path / "in")], tmp_path / "out", f"{__name__}:red")
    batch = next(loader_of(Shards(tmp_path / "out"))[0].epoch(0))
    red_of_view, mask = 255 * batch["view1"][:, 0], batch["mask1"]
    assert mask.dtype == torch.uint8
    near = (red_of_view - mask).abs() < 40
    assert near.float().mean() > 0.9


def test_a_detector_of_ones_own_looks_at_the_named_field(tmp_path: Path) -> None:
    source = blobs(tmp_path / "in", images=("left", "right"))
    CALLS.clear()
    saliency([source], tmp_path / "out", f"{__name__}:brightness", field="right", shard_samples=5)
    assert len(CALLS) == 12 and len(Shards(tmp_path / "out").files) == 3
    for i, mask in enumerate(masks_of(tmp_path / "out")):
        image = Shards(source).read(i)["right"]
        assert np.abs(mask - image.mean(2)).max() <= 1


def test_tasks_write_what_one_process_writes(tmp_path: Path, cluster: Cluster) -> None:
    source = blobs(tmp_path / "in")
    saliency([source], tmp_path / "one", shard_samples=5)
    saliency([source], tmp_path / "two", shard_samples=5, workers=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()
    }
    with pytest.raises(RayclError, match=r"sample \d, field 'image': detector .*:fails failed"):
        saliency([source], tmp_path / "three", f"{__name__}:fails", shard_samples=5, workers=2)
    assert not list(tmp_path.glob("three*"))


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("fails", r"0\.beton: sample 0, field 'image': detector \S+:fails failed: IndexError: "),
        ("three", r"sample 0, field 'image': .*returned the shape \(48, 80, 3\) for an image of 4"),
        ("loud", r"sample 0.*returned values from 0\.\d+ to 2\.55; it has to return an array"),
        ("hole", "sample 0.*returned values that are NaN or infinite"),
        ("whole", "sample 0.*returned values of type int64; .* uint8, or of floats from 0 to 1"),
        ("NUMBER", "detector: .*:NUMBER is no function, but a int"),
        ("redd", r"detector: \S+ has no redd; did you mean 'red'\?"),
    ],
)
def test_what_makes_no_masks_is_refused(tmp_path: Path, detector: str, message: str) -> None:
    source = blobs(tmp_path / "in")
    with pytest.raises(RayclError, match=message):
        saliency([source], tmp_path / "out", f"{__name__}:{detector}")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("detector", ["nowhere.at.all:detect", "red", ":red", "tests.data:"])
def test_names_of_no_detector_are_refused(tmp_path: Path, detector: str) -> None:
    source = blobs(tmp_path / "in")
    with pytest.raises(RayclError, match=r"^detector: .*(cannot be imported|package\.module:func)"):
        saliency([source], tmp_path / "out", detector)


def test_data_sets_that_can_have_no_masks_are_refused(tmp_path: Path) -> None:
    source = blobs(tmp_path / "in", 2)
    saliency([source], tmp_path / "out")
    with pytest.raises(RayclError, match=r"out: has a field 'mask' already; start from a data set"):
        saliency([tmp_path / "out"], tmp_path / "again")
    with pytest.raises(
        RayclError, match=r"field: 'label' was given, and the images of .* in image"
    ):
        saliency([source], tmp_path / "again", field="label")
    with pytest.raises(RayclError, match="out: exists and is not empty"):
        saliency([source], tmp_path / "out")
    with Writer(tmp_path / "n.beton", {"label": IntField()}) as writer:
        writer.write({"label": 1})
    with pytest.raises(RayclError, match="holds no images, only label"):
        saliency([tmp_path / "n.beton"], tmp_path / "again")


def test_another_detector_does_not_go_on_where_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = blobs(tmp_path / "in")
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_detector.py"
    module.write_text("def detect(image):\n    return image[:, :, 0]\n")

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="1 of 3 shards are finished"):
        saliency([source], tmp_path / "out", "own_detector:detect", shard_samples=5, progress=stop)
    with pytest.raises(RayclError, match=r"another order \(detector: was 'own_detector:detect'"):
        saliency([source], tmp_path / "out", shard_samples=5)
    module.write_text("def detect(image):\n    return image[:, :, 1]  # another\n")
    with pytest.raises(RayclError, match=r"another order \(detector_version: was "):
        saliency([source], tmp_path / "out", "own_detector:detect", shard_samples=5)


def test_flowers_have_masks_of_their_size(shared_data: Any, tmp_path: Path) -> None:
    with np.load(shared_data("flowers102") / "train.npz", allow_pickle=False) as archive:
        data, offsets = archive["data"], archive["offsets"]
    with Writer(tmp_path / "f.beton", {"image": RGBImageField("jpg")}) as writer:
        for i in range(0, 1000, 50):
            writer.write({"image": data[offsets[i] : offsets[i + 1]].tobytes()})
    saliency([tmp_path / "f.beton"], tmp_path / "out")
    shares = []
    for i, mask in enumerate(masks_of(tmp_path / "out")):
        assert (
            mask.shape
            == Image.open(io.BytesIO(data[offsets[50 * i] : offsets[50 * i + 1]].tobytes())).size[
                ::-1
            ]
        )
        shares.append(float((mask > 127).mean()))
    assert 0.1 < np.median(shares) < 0.6 and max(shares) < 0.9
