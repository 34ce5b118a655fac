"""Calls as tasks of Ray."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from raycl.data.tasks import each
from tests.conftest import Cluster


def test_results_come_in_the_order_of_the_items(cluster: Cluster) -> None:
    table = np.arange(20) ** 2
    assert each(partial(np.take, table), [7, 0, 3, 19]) == [49, 0, 9, 361]
    assert each(partial(np.take, table), []) == []


def test_what_a_task_raises_is_raised_here(cluster: Cluster) -> None:
    with pytest.raises(ZeroDivisionError):
        each(partial(divmod, 1), [1, 0])
