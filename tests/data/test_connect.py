"""Which Ray a command works with."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

ASK = """
from raycl.data import connect
connect.PATIENCE = 1
try:
    with connect.connected({!r}):
        print("in")
except connect.RayclError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray.invalid:6379", "not known|resolution"),
        ("127.0.0.1:ray", "invalid literal"),
    ],
)
def test_an_address_where_no_ray_is_told_at_once(address: str, why: str) -> None:
    """Ray's own way is to try for many minutes. In a process of its own: this one has a Ray."""
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(address)], capture_output=True, text=True, timeout=60
    )
    assert f"Ray's address {address}: nothing answers there" in done.stdout
    assert re.search(why, done.stdout)
