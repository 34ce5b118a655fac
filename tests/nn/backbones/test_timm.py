from __future__ import annotations

import builtins
import copy
from typing import Any

import pytest
import torch
from torch import nn

from raycl.errors import RayclError
from raycl.nn import lanes
from raycl.nn.backbones import timm_encoder
from raycl.nn.batchnorm import BatchNorm
from raycl.nn.lanes import Layout


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RayclError, match=r'timm is not installed; pip install "raycl\[timm\]"'):
        timm_encoder("resnet26d")


class TestWithTimm:
    @pytest.fixture(autouse=True)
    def timm(self) -> Any:
        return pytest.importorskip("timm")

    # Plain norms, norms with activation, none; features as wide as the last map, and wider.
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("resnet10t", {}),
            ("mobilenetv3_small_050", {}),
            ("regnetx_002", {}),
            ("convnext_atto", {}),
            ("vit_tiny_patch16_224", {"img_size": 64}),
        ],
    )
    def test_equals_timm(self, timm: Any, name: str, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        theirs = timm.create_model(name, num_classes=0, **options)
        ours = timm_encoder(name, **options)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in ours.modules())
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(4, 3, 64, 64)
        features = ours(x)
        assert features.shape == (4, ours.dim)
        torch.testing.assert_close(features, theirs(x))
        ours.eval()
        theirs.eval()
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, msg=key)
        torch.testing.assert_close(ours(x), theirs(x))
        maps = ours.maps(x)
        assert list(maps) == [stage["module"] for stage in theirs.feature_info]
        assert {m.shape[0] for m in maps.values()} == {4} and {m.ndim for m in maps.values()} == {4}

    def test_norms_know_lanes(self) -> None:
        torch.manual_seed(0)
        whole = timm_encoder("mobilenetv3_small_050", "global")
        assert {m.scope for m in whole.modules() if isinstance(m, BatchNorm)} == {"global"}
        encoder = timm_encoder("mobilenetv3_small_050").double()
        x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
        with lanes.use(Layout(lanes=2, batch=4)):
            both = encoder(x)
        torch.testing.assert_close(both, torch.cat([encoder(x[:4]), encoder(x[4:])]))
        assert not torch.allclose(both, encoder(x))

    def test_initialisation_is_timms(self, timm: Any) -> None:
        torch.manual_seed(0)
        theirs = timm.create_model("resnet10t", num_classes=0)
        torch.manual_seed(0)
        ours = timm_encoder("resnet10t")
        assert (ours.layer1[0].bn2.weight == 0).all()  # an identity at first
        for (key, one), two in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(one, two), key

    def test_copies_are_whole(self) -> None:
        encoder = timm_encoder("resnet10t", recompute=True)
        copied, x = copy.deepcopy(encoder), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            encoder.conv1[0].weight.zero_()
        assert not torch.allclose(copied(x), encoder(x)) and copied.dim == encoder.dim

    def test_unknown_names_and_options(self) -> None:
        with pytest.raises(RayclError, match=r"no model 'resnet26x'; did you mean 'resnet26"):
            timm_encoder("resnet26x")
        with pytest.raises(RayclError, match=r"resnet10t.*'colour'"):
            timm_encoder("resnet10t", colour="red")
