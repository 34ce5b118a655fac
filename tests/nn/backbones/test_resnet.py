from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from raycl.nn.backbones.resnet import Depth, OutputStride, ResNet
from raycl.nn.batchnorm import BatchNorm


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_equals_torchvision(depth: Depth) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    theirs.fc = nn.Identity()
    with torch.device("meta"):
        ours = ResNet(depth)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    if depth in (18, 50):
        ours = ours.to_empty(device="cpu")
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.dim == ours(x).shape[1]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_is_torchvisions(output_stride: OutputStride) -> None:
    theirs = torchvision.models.resnet50(
        weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
    )
    theirs.fc = nn.Identity()
    with torch.device("meta"):
        ours = ResNet(50, output_stride=output_stride)
    ours = ours.to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert ours.maps(x)["layer4"].shape[2:] == (64 // output_stride, 64 // output_stride)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("depth", [18, 50])
def test_a_dilated_cell_sees_what_it_saw(depth: Depth) -> None:
    """Every fourth cell of a map at output stride 8 is the cell of the map at 32."""
    torch.manual_seed(0)
    usual = ResNet(depth, width=8).double().eval()
    dense = ResNet(depth, width=8, output_stride=8).double().eval()
    plain = ResNet(depth, width=8, output_stride=8, dilate=False).double().eval()
    dense.load_state_dict(usual.state_dict())
    plain.load_state_dict(usual.state_dict())
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    few, many = usual.maps(x), dense.maps(x)
    assert many["layer4"].shape[2:] == (12, 8)
    torch.testing.assert_close(many["layer3"][:, :, ::2, ::2], few["layer3"])
    torch.testing.assert_close(many["layer4"][:, :, ::4, ::4], few["layer4"])
    undilated = plain.maps(x)["layer4"]
    assert undilated.shape == many["layer4"].shape
    assert not torch.allclose(undilated[:, :, ::4, ::4], few["layer4"])
    assert {m.dilation for m in plain.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


@pytest.mark.parametrize("depth", [18, 50])
def test_cifar_stem_keeps_the_resolution(depth: Depth) -> None:
    encoder = ResNet(depth, width=8, stem="cifar")
    x = torch.randn(2, 3, 32, 32)
    maps = encoder.maps(x)
    wide = 1 if depth == 18 else 4
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "stem": (8, 32, 32),
        "layer1": (8 * wide, 32, 32),
        "layer2": (16 * wide, 16, 16),
        "layer3": (32 * wide, 8, 8),
        "layer4": (64 * wide, 4, 4),
    }
    assert encoder.dim == 64 * wide
    torch.testing.assert_close(encoder(x), maps["layer4"].mean((2, 3)))


def test_initialisation_is_he_normal_over_outputs() -> None:
    torch.manual_seed(0)
    encoder = ResNet(18, width=32)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            outputs = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.05)


@pytest.mark.parametrize("scope", ["lane", "global"])
def test_scope_reaches_every_norm(scope: str) -> None:
    build = partial(ResNet, 18, width=8)
    norms = [m for m in build(scope=scope).modules() if isinstance(m, BatchNorm)]
    assert len(norms) == 20 and {norm.scope for norm in norms} == {scope}
