"""What is computed again is what was computed: gradients, running statistics, lanes, noise."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raycl.nn import collectives, lanes
from raycl.nn.backbones import Encoder, ResNet, timm_encoder
from raycl.nn.backbones.vit import ViT
from raycl.nn.lanes import Layout
from raycl.nn.recompute import recompute_in_backward
from tests.nn.distributed import run


def resnet(recompute: bool) -> Encoder:
    return ResNet(18, width=8, stem="cifar", recompute=recompute)


def bottlenecks(recompute: bool) -> Encoder:
    return ResNet(50, width=8, stem="cifar", output_stride=8, scope="global", recompute=recompute)


def vit(recompute: bool) -> Encoder:
    return ViT("tiny", patch=8, image=16, recompute=recompute)


def noisy(recompute: bool) -> Encoder:
    pytest.importorskip("timm")
    return timm_encoder("mobilenetv3_small_050", recompute=recompute, drop_path_rate=0.5)


Build = Callable[[bool], Encoder]


def _step(build: Build, recompute: bool, layout: Layout) -> dict[str, Tensor]:
    """Everything that two steps leave; the backward pass knows no lanes, as in the loop."""
    torch.manual_seed(0)
    encoder = build(recompute).double()
    x = torch.randn(2, 8, 3, 16, 16, dtype=torch.float64, generator=torch.manual_seed(1))
    for images in x:
        with lanes.use(layout):
            loss = encoder(images).square().mul(torch.arange(1, 9)[:, None]).sum()
        loss.backward()
    gradients = {f"grad {k}": p.grad for k, p in encoder.named_parameters() if p.grad is not None}
    assert gradients
    return {"loss": loss.detach(), **gradients, **dict(encoder.named_buffers())}


def _equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("build", [resnet, bottlenecks, vit, noisy])
@pytest.mark.parametrize("layout", [Layout(), Layout(lanes=2, batch=4)])
def test_equals_what_remembers(build: Build, layout: Layout) -> None:
    usual, again = (_step(build, recompute, layout) for recompute in (False, True))
    _equal(again, usual)


def test_running_statistics_move_once_a_step() -> None:
    after = _step(resnet, True, Layout(lanes=2, batch=4))
    assert {int(v) for k, v in after.items() if k.endswith("num_batches_tracked")} == {2}


def _global_step() -> dict[str, Tensor]:
    own = slice(4 * collectives.rank(), 4 * collectives.rank() + 4)
    encoder_of = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = bottlenecks(recompute).double()
        images = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=torch.manual_seed(1))
        encoder(images[own]).square().sum().backward()
        gradients = {k: p.grad for k, p in encoder.named_parameters() if p.grad is not None}
        encoder_of[recompute] = gradients | dict(encoder.named_buffers())
    _equal(encoder_of[True], encoder_of[False])
    return encoder_of[True]


def test_statistics_of_all_ranks_are_gathered_again() -> None:
    one, two = run(2, _global_step)
    torch.testing.assert_close(one["layer4.2.bn3.running_var"], two["layer4.2.bn3.running_var"])


def test_inner_activations_are_forgotten() -> None:
    held: list[weakref.ref[Tensor]] = []

    def block() -> nn.Sequential:
        made = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
        made[1].register_forward_hook(lambda *call: held.append(weakref.ref(call[2])))
        return made

    usual, again = block(), block()
    recompute_in_backward(again)
    x = torch.randn(2, 4)
    losses = [usual(x).sum(), again(x).sum()]
    assert held[0]() is not None and held[1]() is None
    for loss in losses:
        loss.backward()


def test_a_graph_can_be_used_twice_and_a_copy_is_its_own() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    recompute_in_backward(module)
    copied = copy.deepcopy(module)
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
    x = torch.randn(2, 3, requires_grad=True)
    loss = copied(x).sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)
    assert module[0].weight.grad is None and copied[0].weight.grad is not None


def test_nothing_is_kept_without_gradients() -> None:
    module = nn.Linear(3, 3)
    recompute_in_backward(module)
    with torch.no_grad():
        assert not module(torch.ones(1, 3)).requires_grad
