"""Runs that several modules compare with, and object storage for checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycl.recipe import load
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.data.conftest import bucket, s3_server

__all__ = ["bucket", "s3_server"]


@pytest.fixture(scope="session")
def whole(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one worker in this process."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return pretrain(load("simclr/digits", [*tiny, "trainer.workers=1"]), run)


@pytest.fixture(scope="session")
def by_two(
    cluster: Cluster, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The same of two workers on Ray, fed by Ray Data, and what was heard of it."""
    heard: list[dict[str, Any]] = []
    run = tmp_path_factory.mktemp("runs") / "ray"
    return pretrain(load("simclr/digits", [*tiny, "trainer.workers=2"]), run, heard.append), heard
