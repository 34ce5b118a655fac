"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads a golden file by name: arrays computed by a published implementation."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a shared data set; skips where there is none, which CI does not accept."""

    def find(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.exists():
            if os.environ.get("RAYCL_NEEDS_DATA"):
                pytest.fail(f"the shared data set {name} is missing and this run requires it")
            pytest.skip(f"shared data set {name} is not beside this checkout")
        return path

    return find
