"""SimCLR: what the paper says, and the gradient of one process on two."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from raycl.methods import SimCLR, Step
from raycl.nn import collectives
from raycl.nn.batchnorm import BatchNorm
from raycl.nn.losses import nt_xent
from tests.nn.distributed import run

SMALL = {
    "encoder": {"depth": 18, "width": 8, "stem": "cifar"},
    "projector": {"hidden": 8, "dim": 4},
}


def simclr(**changes: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(SimCLR.Config(**(SMALL | changes))).double()  # type: ignore[arg-type]


def images(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = torch.rand(2, rows, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {"view1": views[0], "view2": views[1], "id": torch.arange(rows)}


def test_defaults_are_the_papers() -> None:
    config = SimCLR.Config()
    assert (config.temperature, config.batch_norm) == (0.1, "global")
    assert (config.encoder.depth, config.encoder.width, config.encoder.stem) == (50, 64, "imagenet")
    projector = config.projector
    assert (projector.layers, projector.hidden, projector.dim) == (2, 2048, 128)
    one, two = SimCLR.views(config)["images"].views.values()
    assert one == two and one.size == 224 and one.interpolation == "bicubic"
    assert one.crop is not None and one.crop.scale == (0.08, 1.0)
    assert one.color is not None and one.color.strength == 1.0 and one.gray == 0.2
    assert one.blur is not None and one.blur.p == 0.5 and one.mean is None


def test_the_loss_is_taken_on_z_and_h_is_kept() -> None:
    method, batch = simclr(temperature=0.3), images(6)
    embeddings = method.embed(batch)
    output = method.objective(embeddings, Step(0, 0, 1))
    assert embeddings["z1"].shape == (6, 4) and embeddings["h"].shape == (6, method.encoder.dim)
    torch.testing.assert_close(output.loss, nt_xent(embeddings["z1"], embeddings["z2"], 0.3))
    assert output.embedding is not None and not output.embedding.requires_grad


def test_projector_ends_in_a_batch_norm_without_shift() -> None:
    method = simclr()
    last = method.projector[-1]
    assert isinstance(last, BatchNorm) and last.bias is None and last.weight is not None
    assert method.projector[-2].bias is None
    none = simclr(projector={"layers": 0})
    embeddings = none.embed(images(4))
    torch.testing.assert_close(embeddings["z1"], embeddings["h"])
    assert (
        len([m for m in simclr(projector={"layers": 3}).projector if hasattr(m, "in_features")])
        == 3
    )


def _gradients() -> dict[str, torch.Tensor]:
    rank, world = collectives.rank(), collectives.world_size()
    method, batch = simclr(), images(8)
    mine = {key: value[rank * 8 // world : (rank + 1) * 8 // world] for key, value in batch.items()}
    loss = method.objective(method.embed(mine), Step(0, 0, 1)).loss
    loss.backward()
    for parameter in method.parameters():
        assert parameter.grad is not None
        parameter.grad = collectives.all_reduce_mean(parameter.grad)
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": collectives.all_reduce_mean(loss), **found}


def test_two_processes_have_the_gradient_of_one() -> None:
    alone = _gradients()
    for found in run(2, _gradients):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        SimCLR.Config(temperature=0)


def test_a_plain_script_needs_no_ray() -> None:
    code = "import sys; from raycl.methods import SimCLR; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "encoder",
    [
        {"depth": 18, "width": 8, "stem": "cifar", "output_stride": 8, "recompute": True},
        {"name": "vit", "size": "tiny", "patch": 4, "image": 8},
        {"name": "timm", "model": "resnet10t"},
    ],
)
def test_any_backbone(encoder: dict[str, object]) -> None:
    if encoder.get("name") == "timm":
        pytest.importorskip("timm")
    method = simclr(encoder=encoder)
    loss = method.objective(method.embed(images(4)), Step(0, 0, 1)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.parameters())
