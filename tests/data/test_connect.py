"""Which Ray a command works with."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import Cluster

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
    told = asked(address)
    assert f"Ray's address {address}: nothing answers there" in told and re.search(why, told)


def test_who_is_not_let_in_is_told_of_the_token(cluster: Cluster) -> None:
    told = asked(cluster.address, RAY_AUTH_TOKEN="0" * 64)
    assert f"Ray's address {cluster.address}: " in told and "the cluster's token" in told


def asked(address: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(address)],
        capture_output=True, text=True, timeout=100, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout
