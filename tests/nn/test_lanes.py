from __future__ import annotations

import pytest
import torch

from raycl.nn import lanes
from raycl.nn.lanes import Layout


def test_split_follows_the_lane_major_order() -> None:
    # Two views of two lanes with three rows each: (part, lane, row).
    rows = [(part, lane, row) for part in range(2) for lane in range(2) for row in range(3)]
    split = Layout(lanes=2, batch=3).split(torch.tensor(rows))
    for part in range(2):
        for lane in range(2):
            assert split[part, lane].tolist() == [[part, lane, row] for row in range(3)]


def test_split_without_a_batch_is_one_lane() -> None:
    assert Layout().split(torch.zeros(5, 2)).shape == (1, 1, 5, 2)


@pytest.mark.parametrize("rows", [5, 7])
def test_split_refuses_a_part_that_is_not_whole(rows: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows .* 2 lanes x 3 rows"):
        Layout(lanes=2, batch=3).split(torch.zeros(rows))


def test_layout_refuses_lanes_without_a_batch() -> None:
    with pytest.raises(ValueError, match="2 lanes need"):
        Layout(lanes=2)
    with pytest.raises(ValueError, match="at least 1"):
        Layout(lanes=0)


def test_use_nests_and_ends_also_after_an_error() -> None:
    assert lanes.current() == Layout()
    outer, inner = Layout(lanes=2, batch=1), Layout(update_statistics=False)
    with lanes.use(outer):
        with pytest.raises(KeyError), lanes.use(inner):
            assert lanes.current() is inner
            raise KeyError
        assert lanes.current() is outer
    assert lanes.current() == Layout()
