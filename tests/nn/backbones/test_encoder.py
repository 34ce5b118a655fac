from __future__ import annotations

import pytest
import torch

from raycl.errors import RayclError
from raycl.nn.backbones import Encoder, ResNet, extract
from raycl.nn.backbones.vit import ViT


def test_any_layer_of_a_resnet() -> None:
    torch.manual_seed(0)
    encoder, x = ResNet(18, width=8, recompute=True), torch.randn(4, 3, 32, 32)
    layers = extract(encoder, ["layer2", "layer3.0", "layer3.1.conv1"])
    outputs = layers(x)
    assert list(outputs) == ["layer2", "layer3.0", "layer3.1.conv1"]
    torch.testing.assert_close(outputs["layer2"], encoder.maps(x)["layer2"])
    torch.testing.assert_close(encoder.layer3[0](outputs["layer2"]), outputs["layer3.0"])
    layers.eval()
    torch.testing.assert_close(layers(x)["layer2"], encoder.eval().maps(x)["layer2"])
    assert layers.get_parameter("layer1.0.conv1.weight") is encoder.layer1[0].conv1.weight


def test_any_layer_of_a_transformer_for_any_size() -> None:
    torch.manual_seed(0)
    encoder = ViT("tiny", patch=8, image=32).eval()
    layers = extract(encoder, ["encoder.layers.encoder_layer_3"])
    for x in (torch.randn(1, 3, 32, 32), torch.randn(3, 3, 16, 24)):
        (tokens,) = layers(x).values()
        torch.testing.assert_close(
            tokens[:, 1:], encoder.maps(x)["layer4"].flatten(2).transpose(1, 2)
        )


def test_unknown_layer() -> None:
    with pytest.raises(RayclError, match=r"ResNet has no layer 'layer5'; did you mean 'layer\d'"):
        extract(ResNet(18, width=8), ["layer5"])


def test_an_encoder_need_not_have_maps() -> None:
    with pytest.raises(TypeError, match=r"Encoder does not define maps\(\)"):
        Encoder().maps(torch.zeros(1))
