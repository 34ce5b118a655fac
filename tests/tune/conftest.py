"""A recipe whose epochs take a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycl.recipe import Recipe, validate


@pytest.fixture(scope="session")
def toy(digits: Path) -> Recipe:
    """Searched for a temperature and for trouble; the trouble is a choice."""
    return validate(
        {
            "method": {"name": "tests.tune.troubled:Troubled"},
            "data": {
                "train": str(digits / "train"),
                "test": str(digits / "test"),
                "limit": 256,
            },
            "optimizer": {"name": "sgd", "lr": 0.1, "lr_scaling": "none", "warmup_epochs": 0},
            "trainer": {"batch": 64, "log_every": 2, "stop": {"epochs": 3}},
            "evaluation": {"every_epochs": 1, "knn": {"k": 20}},
            "tune": {
                "samples": 1,
                "scheduler": {"name": "none"},
                "repeats": {"top": 1, "seeds": 1},
                "retries": 1,
                "search": {
                    "method.temperature": {"choice": [0.1, 0.5]},
                    "method.trouble": {"choice": ["none", "nan", "breaks", "dies"]},
                },
            },
        }
    )
