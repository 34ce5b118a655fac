"""Every method: two ranks train as one process does, in float64 and with all that has state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.methods.base import Batch, DataInfo, Method
from raycl.nn import collectives
from raycl.recipe import Recipe
from raycl.train.loop import Loop, Place
from tests.methods.test_mvgrl import drawn
from tests.nn.distributed import run
from tests.train.toys import Fixed

LANES, ROWS, STEPS = 2, 4, 3
SMALL: dict[str, dict[str, Any]] = {
    "moco": {"queue": 16, "projector": {"hidden": 8, "dim": 4}},
    "densecl": {"queue": 16, "projector": {"hidden": 8, "dim": 4}, "warmup_steps": 1},
    "cvsa": {"head": {"hidden": 8, "dim": 4}, "align_warmup": 0},
    "byol": {"head": {"hidden": 8, "dim": 4}},
    "simsiam": {"dim": 8, "bottleneck": 4},
    "barlow_twins": {"dim": 8},
    "vicreg": {"dim": 8},
    "nnclr": {"queue": 16, "hidden": 8, "dim": 4, "predictor": 8},
    "supcon": {"hidden": 8, "dim": 4},
    "supervised": {"classes": 3},
    "fcn": {"classes": 3, "hidden": 8, "ignore": 2},
    "rcnn": {"classes": 3, "masks": True, "anchor": 4, "channels": 4, "regions": 2048},
    "moco_v3": {"hidden": 8, "dim": 4},
    "swav": {"small": 2, "prototypes": 6, "freeze_steps": 1, "hidden": 8, "dim": 4},
    "dino": {"small": 2, "outputs": 6, "frozen_epochs": 0, "hidden": 8, "bottleneck": 4},
    "ce_gzsl": {
        "critic_steps": 2,
        "hidden": 8,
        "embedding": 8,
        "projection": 4,
        "comparator": 6,
        "generator_weight": 1.0,
    },
    "mvgrl": {"features": 5, "dim": 4},
    "mvgrl of graphs": {"name": "mvgrl", "features": 5, "dim": 4, "level": "graph"},
    "dgi": {"features": 5, "dim": 4},
    "dgi of graphs": {"name": "dgi", "features": 5, "dim": 4, "level": "graph"},
}
NODES = [5, 9, 3, 6, 12, 2, 8, 4]  # of the graph of each sample


class Full(Fixed):
    """With labels, small views, the geometry of the crops, whole images and their masks, graphs."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            rows = len(batch["id"])
            batch["label"] = batch["id"] % 3
            batch["features"] = batch["view1"].flatten(1)[:, :6].sigmoid()
            batch |= {f"small{i}": batch[f"view{i}"][..., i : i + 8, :8] for i in (1, 2)}
            for name in ("view1", "view2"):
                batch[f"{name}.box"] = torch.tensor([[0, 0, self.size, self.size]] * rows)
                batch[f"{name}.flip"] = torch.zeros(rows, dtype=torch.bool)
            batch["whole"] = batch["view1"].sigmoid()
            batch["mask"] = (batch["view2"][:, 0] > 0).to(torch.uint8) * 255
            batch["mask1"] = (batch["view1"][:, 0] * 1.5).clamp(-1, 1).round().to(torch.uint8) % 3
            batch["objects"] = torch.tensor([[[0.0, 0, 0, 0, -1, 0]] * 3] * rows)
            batch["objects"][:, 0] = torch.tensor([2.0, 3, 10, 12, 1, 0])
            # The second lane has more objects than the first.
            batch["objects"][batch["id"] >= ROWS, 1] = torch.tensor([8.0, 6, 13, 16, 2, 0])
            ids = batch["id"].tolist()
            yield batch | drawn([NODES[i] for i in ids], ids[0])


def small(name: str) -> Recipe:
    of_images = not any(kind in name for kind in ("ce_gzsl", "mvgrl", "dgi"))
    encoder = {"encoder": {"depth": 18, "width": 8, "stem": "cifar"}}
    rates = {"name": "sgd", "lr": 0.01, "lr_scaling": "none", "warmup_epochs": 0}
    stop = {"epochs": 1, "steps": STEPS}
    return Recipe.model_validate(
        {
            "method": {"name": name, **(encoder if of_images else {}), **SMALL[name]},
            "views": {"size": 16} if of_images else {},  # of those that a method draws itself
            "optimizer": rates,
            "trainer": {"lanes": LANES, "batch": ROWS, "log_every": 1, "stop": stop},
        }
    )


def made(name: str) -> Method:
    torch.manual_seed(0)
    embeddings = torch.randn(5, 4)
    data = DataInfo(9, None, None, {"features": (6,)}, embeddings, torch.tensor([0, 1, 2]))
    return small(name).build(data).double()


def trained(name: str) -> dict[str, Tensor]:
    """The method's state after some steps, on as many ranks as call it."""
    torch.set_num_threads(1)
    rank, world = collectives.rank(), collectives.world_size()
    method, lanes = made(name), list(range(rank, LANES, world))
    batches = Full(lanes, ROWS, STEPS, size=16)
    Loop(small(name), method, batches, Place(torch.device("cpu"), lanes, rank, world)).fit()
    return method.state_dict()


def all_trained() -> dict[str, dict[str, Tensor]]:
    return {name: trained(name) for name in SMALL}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    """What two ranks have after training every method; processes take longer to start than that."""
    return run(2, all_trained, timeout=300)


@pytest.mark.parametrize("name", SMALL)
def test_two_ranks_train_as_one_process_does(
    name: str, ranks: list[dict[str, dict[str, Tensor]]]
) -> None:
    whole, before = trained(name), made(name).state_dict()
    assert any(not torch.equal(whole[key], before[key]) for key in whole if "encoder" in key)
    for rank in ranks:
        assert rank[name].keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(rank[name][key], value, rtol=1e-8, atol=1e-10, msg=key)
