"""CVSA as it was reconstructed: what is drawn, and what the alignment loss asks for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raycl.methods import BYOL, CVSA, Step
from raycl.methods.base import Batch, DataInfo
from raycl.methods.cvsa import align, shown
from raycl.recipe import load

ROWS, SIDE, VIEW = 6, 48, 32
SMALL = {"encoder": {"depth": 18, "width": 8}, "head": {"hidden": 16, "dim": 8}}


def batch() -> Batch:
    """Grey images, each with a square of a grey of its own, and the square's mask."""
    mask = torch.zeros(ROWS, SIDE, SIDE)
    whole = torch.zeros(ROWS, 3, SIDE, SIDE)
    for row in range(ROWS):
        mask[row, 8 + 2 * row : 28 + 2 * row, 10:30] = 255
        whole[row] = row / 20
        whole[row, :, mask[row] > 0] = 0.5 + row / 20
    return {"whole": whole, "mask": mask.to(torch.uint8), "id": torch.arange(ROWS) + 100}


def made(**settings: Any) -> CVSA:
    config = CVSA.Config.model_validate({**SMALL, **settings})
    stream = CVSA.views(config)["images"]
    plain = {"size": VIEW, "color": None, "gray": 0.0, "blur": None, "solarize": None}
    plain |= {"mean": None, "std": None}
    views = {
        n: v.model_copy(update=plain if n in ("view1", "view2") else {})
        for n, v in stream.views.items()
    }
    torch.manual_seed(0)
    streams = {"images": stream.model_copy(update={"views": views})}
    return CVSA(config, DataInfo(ROWS, streams=streams)).double()


def foreground(view: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([x[:, m > 0.99].mean() for x, m in zip(view, mask, strict=True)])


def test_the_second_view_has_the_same_foreground_in_other_surroundings() -> None:
    method, data = made(swap=1.0), batch()
    drawn = method.draw(data, Step(3, 1, 10))
    assert drawn["swapped"].tolist() == [1.0] * ROWS
    own = 0.5 + torch.arange(ROWS) / 20
    for view in ("view1", "view2"):
        assert drawn[view].shape == (ROWS, 3, VIEW, VIEW)
        found = foreground(drawn[view], drawn[f"{view}.mask"])
        torch.testing.assert_close(found, own, rtol=0, atol=0.03)
    _, partner = method._chosen(ROWS, Step(3, 1, 10))
    assert sorted(partner.tolist()) == list(range(ROWS))
    assert (partner != torch.arange(ROWS)).all()
    for row in range(ROWS):
        around = drawn["view2"][row][:, drawn["view2.mask"][row] < 0.01]
        if around.numel():
            assert around.median().item() == pytest.approx(partner[row].item() / 20, abs=0.03)


def test_a_crop_shows_a_fifth_of_the_foreground_and_masks_follow_flips() -> None:
    method = made(swap=0.0)
    for epoch in range(8):
        data = batch()
        drawn = method.draw(data, Step(0, epoch, 10))
        assert not drawn["swapped"].any()
        for view in ("view1", "view2"):
            bright = drawn[view].mean(1) > 0.45
            same = (bright == (drawn[f"{view}.mask"] > 0.5)).float().mean()
            assert same > 0.97  # but for the edge
            assert (drawn[f"{view}.mask"].flatten(1).sum(1) > 0).all()


def test_views_belong_to_the_sample_and_the_seed_alone() -> None:
    method, data = made(swap=0.0), batch()
    whole = method.draw(data, Step(5, 2, 10))
    half = method.draw({k: v[3:] for k, v in data.items()}, Step(5, 2, 10))
    assert torch.equal(whole["view1"][3:], half["view1"])
    assert not torch.equal(whole["view1"], method.draw(data, Step(5, 3, 10))["view1"])


def test_the_control_takes_the_masks_of_others() -> None:
    data = batch()
    right, wrong = (made(masks=m, swap=0.0).draw(data, Step(0, 0, 1)) for m in ("own", "wrong"))
    assert not torch.equal(right["view1.mask"], wrong["view1.mask"])


def test_alignment_is_the_cross_entropy_of_attention_with_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    online, target = torch.randn(2, 2, 5, 3, 4, generator=generator, dtype=torch.float64)
    mask, other = (torch.rand(2, 2, 6, 8, generator=generator) > 0.5).double()
    other[1] = 0
    online.requires_grad_(True)
    target.requires_grad_(True)
    found = align(online, target, mask, other, 0.1)
    assert found[1].item() == 0  # the other view shows none of it

    def pooled(m: Tensor) -> Tensor:
        cells = m.view(3, 2, 4, 2).mean((1, 3)).flatten()
        return cells / cells.sum()

    query = target[0].detach().flatten(1) @ pooled(other[0])
    cosines = [
        float(torch.dot(cell, query) / cell.norm() / query.norm())
        for cell in online[0].detach().flatten(1).T
    ]
    total = sum(math.exp(c / 0.1) for c in cosines)
    weights = pooled(mask[0]).tolist()
    expected = -sum(
        w * math.log(math.exp(c / 0.1) / total) for w, c in zip(weights, cosines, strict=True)
    )
    assert found[0].item() == pytest.approx(expected, rel=1e-10)
    found.sum().backward()
    assert online.grad is not None and online.grad[0].abs().sum() > 0
    assert target.grad is None


def test_without_swap_and_alignment_it_is_byol() -> None:
    method = made(swap=0.0, align_weight=0.0)
    torch.manual_seed(0)
    plain = BYOL(BYOL.Config.model_validate(SMALL)).double()
    drawn = {k: v.double() for k, v in method.draw(batch(), Step(0, 0, 10)).items()}
    step = Step(5, 0, 10)
    ours = method.objective(method.embed(drawn), step).loss
    theirs = plain.objective(plain.embed(drawn), step).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_alignment_rises_over_the_first_steps() -> None:
    method = made(align_weight=0.5, align_warmup=0.2)
    embeddings = method.embed(
        {k: v.double() for k, v in method.draw(batch(), Step(0, 0, 10)).items()}
    )
    for index, share in ((0, 0), (1, 0.5), (2, 1), (9, 1)):
        output = method.objective(embeddings, Step(index, 0, 10))
        extra = output.loss - output.metrics["loss.byol"]
        assert extra.item() == pytest.approx(0.5 * share * output.metrics["loss.align"].item())


def test_shares_of_a_foreground_in_boxes() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 2:6] = 1
    boxes = torch.tensor([[[0, 0, 8, 8]], [[2, 2, 2, 4]], [[6, 6, 2, 2]]])
    assert shown(mask, boxes)[:, 0].tolist() == [1.0, 0.5, 0.0]


def test_shared_settings_of_a_recipe_are_not_for_what_views_are_drawn_from() -> None:
    recipe = load(
        "byol/imagenet", ["method.name=cvsa", "views.size=64", "views.crop.scale=[0.5,1]"]
    )
    views = recipe.streams["images"].views
    assert [views[n].size for n in ("view1", "view2", "whole", "mask")] == [64, 64, 288, 288]
    assert load_again(recipe.to_yaml()) == recipe.streams
    assert list(recipe.streams["images"].cut) == ["whole", "mask"]


def load_again(text: str) -> Any:
    import yaml

    from raycl.recipe import Recipe

    return Recipe.model_validate(yaml.safe_load(text)).streams


def test_without_swap_and_alignment_masks_are_not_looked_at() -> None:
    method, data = made(swap=0.0, align_weight=0.0), batch()
    other = {**data, "mask": data["mask"].flip(0)}
    step = Step(0, 0, 10)
    assert torch.equal(method.draw(data, step)["view1"], method.draw(other, step)["view1"])
