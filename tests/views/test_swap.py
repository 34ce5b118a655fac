"""Foregrounds that change their surroundings, checked on images whose every pixel is known."""

from __future__ import annotations

import torch
from torch import Tensor

from raycl.views.swap import boxes, swap, usable, without_foreground

SIDE = 64
COLOURS = torch.eye(3)  # of the two objects, and of nothing else
GROUNDS = torch.tensor([[0.2, 0.5, 0.5], [0.6, 0.3, 0.6]])


def scenes() -> tuple[Tensor, Tensor]:
    """A wide object on one ground, and a square one at another place on another ground."""
    mask = torch.zeros(2, SIDE, SIDE)
    mask[0, 10:26, 8:40] = 1
    mask[1, 36:56, 38:58] = 1
    ground = GROUNDS[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    objects = COLOURS[:2, :, None, None].expand(-1, -1, SIDE, SIDE)
    return torch.where(mask[:, None] > 0, objects, ground), mask


def test_boxes_are_a_tenth_larger_and_stay_inside() -> None:
    _, mask = scenes()
    found = boxes(torch.stack([mask[0], torch.zeros(SIDE, SIDE), torch.ones(SIDE, SIDE)]))
    expected = [[9.2, 6.4, 17.6, 35.2], [0, 0, SIDE, SIDE], [0, 0, SIDE, SIDE]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_nothing_of_the_object_is_left() -> None:
    images, mask = scenes()
    filled = without_foreground(images, mask)
    torch.testing.assert_close(
        filled, GROUNDS[:, :, None, None].expand_as(filled), rtol=0, atol=0.01
    )
    everything = without_foreground(images, torch.ones(2, SIDE, SIDE))
    assert everything.isfinite().all()


def test_an_object_lies_where_the_other_was_and_is_as_large_as_fits() -> None:
    images, mask = scenes()
    mixed, pasted = swap(images, mask, torch.tensor([1, 0]))
    for index, other in ((0, 1), (1, 0)):
        inside = pasted[index] > 0
        wanted, found = boxes(mask)[other], boxes(pasted[index : index + 1])[0]
        middles = (box[:2] + box[2:] / 2 for box in (wanted, found))
        torch.testing.assert_close(*middles, rtol=0, atol=1.0)
        assert (found[2:] <= wanted[2:] + 1.5).all()
        assert ((found[2:] - wanted[2:]).abs() <= 1.5).any()  # one side is filled
        own = boxes(mask)[index]
        torch.testing.assert_close(found[3] / found[2], own[3] / own[2], rtol=0.1, atol=0)
        core = -torch.nn.functional.max_pool2d(-pasted[index][None, None], 7, 1, 3)[0, 0] > 0
        far = torch.nn.functional.max_pool2d(pasted[index][None, None], 9, 1, 4)[0, 0] == 0
        assert core.any() and inside.any()
        object_, ground = mixed[index][:, core], mixed[index][:, far]
        torch.testing.assert_close(
            object_, COLOURS[index][:, None].expand_as(object_), rtol=0, atol=0.02
        )
        torch.testing.assert_close(
            ground, GROUNDS[other][:, None].expand_as(ground), rtol=0, atol=0.02
        )


def test_foregrounds_that_are_too_small_or_too_large_are_left_alone() -> None:
    shares = torch.tensor([0.0, 0.01, 0.05, 0.5, 0.95, 1.0])
    pixels = torch.arange(SIDE * SIDE).view(SIDE, SIDE) / SIDE**2
    masks = (pixels < shares[:, None, None]).float()
    assert usable(masks).tolist() == [False, False, True, True, False, False]
