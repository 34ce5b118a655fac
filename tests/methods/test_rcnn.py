"""Faster and Mask R-CNN: what they are to find in a view, what is sampled, and that they learn."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycl.beton import RGBImageField, Writer
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.methods import RCNN, Batch, DataInfo, Step
from raycl.methods.rcnn import Sampler
from raycl.recipe import load
from raycl.train import checkpoint
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain
from tests.data.shapes import scenes

SMALL = {
    "classes": 3,
    "anchor": 8,
    "channels": 8,
    "regions": 32,
    "encoder": {"depth": 18, "width": 8},
}
OBJECTS = [
    [20, 20, 40, 60, 2, 0],
    [0, 20, 20, 40, 1, 0],  # the view shows half of it,
    [0, 0, 30, 13, 0, 0],  # a sixth
    [20, 20, 40, 40, 0, 1],  # does not count
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Maps of a few pixels are not worth a team of threads, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def method_of(**settings: Any) -> RCNN:
    torch.manual_seed(0)
    return RCNN(RCNN.Config.model_validate(SMALL | settings), DataInfo(4))


def batch_of(rows: int = 2) -> Batch:
    """Views of 64 pixels of a square of 64, the first mirrored, that starts at (10, 10)."""
    objects = torch.zeros(rows, 6, 6)
    objects[..., 4] = -1
    objects[:, :4] = torch.tensor(OBJECTS, dtype=torch.float32)
    mask = torch.zeros(rows, 64, 64, dtype=torch.uint8)
    mask[:, 10:50, 10:30] = 1
    generator = torch.Generator().manual_seed(0)
    return {
        "id": torch.arange(rows),
        "view1": torch.randn(rows, 3, 64, 64, generator=generator),
        "view1.box": torch.tensor([[10, 10, 64, 64]] * rows),
        "view1.flip": torch.arange(rows) == 0,
        "objects": objects,
        "mask1": mask,
    }


def test_objects_move_with_their_view_and_those_that_it_hardly_shows_are_left_out() -> None:
    method = method_of(masks=True)
    mirrored, plain = method._targets(batch_of(), Step(0, 0, 10))
    assert plain["boxes"].tolist() == [[10, 10, 30, 50], [0, 10, 10, 30]]
    assert mirrored["boxes"].tolist() == [[34, 10, 54, 50], [54, 10, 64, 30]]
    assert plain["labels"].tolist() == [3, 2]
    assert plain["masks"].sum((1, 2)).tolist() == [800, 0]
    assert plain["masks"][0, 10:50, 10:30].all()


def test_a_class_that_there_is_not_is_named() -> None:
    batch = batch_of()
    batch["objects"][1, 0, 4] = 7
    with pytest.raises(RayclError, match=r"has the class 7, and method\.classes=3 are 0 to 2"):
        next(method_of().training_step(batch, Step(0, 0, 10)))


def test_the_gradient_reaches_every_parameter() -> None:
    method = method_of(masks=True)
    output = next(method.training_step(batch_of(), Step(0, 0, 10)))
    output.loss.backward()
    still = [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still and len(output.metrics) == 5
    torch.testing.assert_close(sum(output.metrics.values()), output.loss.detach())


def test_images_without_objects_are_background() -> None:
    batch = batch_of()
    batch["objects"][..., 4] = -1
    method = method_of(masks=True)
    next(method.training_step(batch, Step(0, 0, 10))).loss.backward()
    found = method.eval().detections(batch["view1"])
    assert [set(one) for one in found] == [{"boxes", "labels", "scores", "masks"}] * 2


def test_what_is_drawn_belongs_to_the_lane() -> None:
    values = torch.randint(-1, 2, (4, 500), generator=torch.Generator().manual_seed(0))
    labels = list(values)

    def generators(*lanes: int) -> list[torch.Generator]:
        return [g for lane in lanes for g in [Step(3, 0, 10).generator(lane)] for _ in range(2)]

    sampler = Sampler(64, 0.25, generators(0, 1))
    positive, negative = sampler(labels)
    assert (sampler.drawn, sampler.positive) == (4 * 64, 4 * 16)
    for label, yes, no in zip(labels, positive, negative, strict=True):
        assert (label[yes] == 1).all() and (label[no] == 0).all()
    parts = [Sampler(64, 0.25, generators(lane))(labels[2 * lane :][:2]) for lane in (0, 1)]
    for i in range(2):
        assert all(map(torch.equal, (positive, negative)[i], parts[0][i] + parts[1][i]))
    everything = Sampler(600, 0.5, generators(0, 1))
    assert all(map(torch.equal, everything(labels)[0], [label == 1 for label in labels]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    import_dataset("detection", scenes(folder / "src", {"train": 32, "val": 16}), folder / "out")
    return folder / "out"


def test_shapes_are_found(data: Path, tmp_path: Path) -> None:
    changes = [f"data.train={data / 'train'}", f"data.test={data / 'val'}", "trainer.device=cpu"]
    run = pretrain(
        load("rcnn/shapes-small", [*changes, "trainer.stop.epochs=14"]), tmp_path / "run"
    )
    scores = {row["metric"]: row["score"] for row in evaluate(run)["rows"]}
    assert scores["AP50"] > 0.5 and scores["mask AP50"] > 0.5
    assert scores["AP50"] >= scores["AP75"] and scores["AP50"] >= scores["AP"]
    with pytest.raises(RayclError, match="has no field 'objects'.*protocol detection needs"):
        evaluate(run, [f"data.test={plain(tmp_path)}"])


def plain(folder: Path) -> Path:
    with Writer(folder / "plain.beton", {"image": RGBImageField("raw")}) as writer:
        writer.write({"image": np.zeros((8, 8, 3), np.uint8)})
    return folder / "plain.beton"


def test_a_run_goes_on_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    changes = [f"data.train={data / 'train'}", "data.limit=8", "trainer.device=cpu"]
    changes += ["trainer={batch: 2, log_every: 1, stop: {epochs: 1}}", "method.regions=8"]
    recipe = load("rcnn/shapes-small", changes)
    pretrain(recipe, tmp_path / "whole")

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "parts", stop)
    assert checkpoint.require(tmp_path / "parts").name.endswith("2")
    pretrain(recipe, tmp_path / "parts")
    whole, parts = (
        checkpoint.load(checkpoint.require(tmp_path / name))["method"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
