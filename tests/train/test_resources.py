"""Resources: whatever the machine, a read task always finds room beside the workers."""

from __future__ import annotations

import pytest

from raycl.train.resources import decide, per_trial


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


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([(2, 0)], ("auto", None, None), (1, 0, 2)),
        ([(2, 0)], ("auto", 0.5, None), (0.5, 0, 4)),
        # A node of GPUs shares out its own CPUs, whatever others have.
        ([(48, 4), (48, 4), (64, 0)], ("auto", None, None), (12, 1, 8)),
        ([(48, 4), (8, 2)], ("auto", None, None), (4, 1, 6)),
        ([(48, 4)], ("auto", 14, None), (14, 1, 3)),
        ([(48, 4)], ("cpu", None, None), (1, 0, 48)),
        ([(16, 1)], ("cuda", None, 0.1), (1.6, 0.1, 10)),
        ([(16, 1)], ("cuda", 60, None), (60, 1, 0)),
    ],
)
def test_what_a_trial_gets_of_the_nodes(
    nodes: list[tuple[float, float]],
    asked: tuple[str, float | None, float | None],
    expected: tuple[float, float, int],
) -> None:
    assert per_trial(nodes, *asked) == pytest.approx(expected)
