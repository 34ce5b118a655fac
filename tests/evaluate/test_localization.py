from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.localization import attention, check_foreground, foreground, overlap, pointed


def test_attention_is_the_softmax_of_similarities_with_the_mean() -> None:
    maps = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = attention(maps)
    for image in range(2):
        mean = maps[image].mean(dim=(1, 2))
        naive = torch.tensor(
            [[F.cosine_similarity(maps[image, :, r, c], mean, 0) / 0.1 for c in range(4)]
             for r in range(3)]
        )  # fmt: skip
        assert torch.allclose(found[image], naive.flatten().softmax(0).view(3, 4), atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "centre"), [((0, 0), (1, 2)), ((1, 2), (4, 12)), ((2, 1), (7, 7))]
)
def test_pointing_is_at_the_centre_of_the_highest_cell(
    cell: tuple[int, int], centre: tuple[int, int]
) -> None:
    maps = torch.zeros(1, 3, 3)
    maps[(0, *cell)] = 1
    inside = torch.zeros(1, 9, 15, dtype=torch.bool)
    assert not pointed(maps, inside).item()
    inside[(0, *centre)] = True
    assert pointed(maps, inside).item()
    assert not pointed(maps, ~inside).item()


def test_overlap_of_what_is_above_the_mean() -> None:
    maps = torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.4, 0.4, 0.1, 0.1]])[:, None].repeat(1, 4, 1)
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[0, :, 2] = True  # exactly what is attended to
    inside[1, :, 1:3] = True  # half of it, and as much beside
    assert overlap(maps, inside).tolist() == pytest.approx([1, 1 / 3])
    assert overlap(torch.full((1, 4, 4), 1 / 16), inside[:1]).tolist() == [0]
    finer = inside[:1].repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert 0.5 < overlap(maps[:1], finer).item() < 1  # bilinear flanks


def test_foreground_is_what_is_bright() -> None:
    masks = torch.tensor([[[0, 127, 128, 255]]], dtype=torch.uint8)
    assert foreground(masks).tolist() == [[[False, False, True, True]]]
    check_foreground(1, 5)
    with pytest.raises(RayclError, match="none of the masks of 5 images.*0 and 1: times 255"):
        check_foreground(0, 5)
