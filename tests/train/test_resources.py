"""Resources: whatever the machine, a read task always finds room beside the workers."""

from __future__ import annotations

import pytest

from raycl.train.resources import decide


@pytest.mark.parametrize("cpus", [1, 2, 4, 16, 640])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_reading_never_starves(cpus: int, workers: int) -> None:
    share = decide(cpus, 0, [workers], "auto")
    assert share.worker_cpus > 0 and share.read_cpus > 0
    assert share.worker_cpus * workers + share.read_cpus <= cpus + 1e-9


@pytest.mark.parametrize("cores", [1, 2, 4, 8])
def test_reading_fits_beside_the_workers_of_the_hosts_that_are_left(cores: int) -> None:
    share = decide(3 * cores, 0, [cores, 2 * cores], "auto", hosts=3)
    on_one_host = cores // share.worker_cpus
    assert on_one_host * share.worker_cpus + share.read_cpus <= cores + 1e-9


def test_gpus() -> None:
    assert decide(16, 1, [1], "auto").worker_gpus == 1
    assert decide(16, 1, [2], "auto").worker_gpus == 0
    assert decide(16, 8, [8], "cpu").worker_gpus == 0
    assert decide(16, 0, [2], "cuda").worker_gpus == 1
    assert decide(16, 4, [1, 2, 4, 8], "auto").worker_gpus == 1
