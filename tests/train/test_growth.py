"""A cluster that has nothing but its head grows for a run, and shrinks when the run has ended.

Ray's own autoscaler with its fake provider, whose nodes are processes of this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from tests.conftest import free_port, head

# What the fake provider calls the head; the autoscaler would take it for a stranger otherwise.
HEAD = "f" * 51 + "00000"
# By its class: the wheel lacks a file that its short name needs.
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
LISTS = (
    *("cluster_synced_files", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
ALONE = """
import time, ray
from raycl.data.connect import connected
with connected(None):
    while [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]] != [0]:
        time.sleep(1)
"""


def configuration(address: str) -> str:
    """What `ray up` leaves on a head, of a cluster of up to three hosts with a CPU each."""
    small = {"object_store_memory": 200_000_000}
    head = {"resources": {"CPU": 0} | small, "node_config": {}, "max_workers": 0}
    mappings = ("auth", "docker", "file_mounts")
    return yaml.safe_dump(
        {name: {} for name in mappings}
        | {name: [] for name in LISTS}
        | {
            "cluster_name": "growing",
            "max_workers": 3,
            "idle_timeout_minutes": 0.5,
            "upscaling_speed": 1.0,
            "provider": {
                "type": "external", "module": FAKE, "head_node_id": HEAD, "launch_multiple": True,
                "gcs_address": address, "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "use_node_id_as_ip": True,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": head,
                "cpu": {
                    "resources": {"CPU": 1} | small, "labels": {"tier": "cpu"}, "node_config": {},
                    "min_workers": 0, "max_workers": 3,
                },
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module", params=["v2", pytest.param("v1", marks=pytest.mark.slow)])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Of a driver on such a cluster, by both autoscalers of Ray."""
    port = free_port()
    # Its nodes find the head by the machine's own address only.
    address = f"{ray.util.get_node_ip_address()}:{port}"
    settings = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_enable_autoscaler_v2": str(int(request.param == "v2")),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        config = Path(folder) / "cluster.yaml"
        config.write_text(configuration(address))
        with head(
            folder, port, "--num-cpus=0", f"--autoscaling-config={config}",
            "--include-dashboard=false", "--object-store-memory=200000000", **settings,
        ):  # fmt: skip
            yield os.environ | {"RAY_ADDRESS": address}


def wait_for_the_head_alone(environment: dict[str, str], seconds: float) -> None:
    """One driver that looks, not one for each look: to import Ray costs seconds of a core."""
    subprocess.run([sys.executable, "-c", ALONE], env=environment, timeout=seconds, check=True)


def test_a_cluster_grows_for_a_run_and_shrinks_after_it(
    environment: dict[str, str], tiny: list[str], tmp_path: Path
) -> None:
    wait_for_the_head_alone(environment, 90)
    settings = ["trainer.workers=2", "trainer.device=cpu", "evaluation.every_epochs=0"]
    command = [sys.executable, "-m", "raycl", "pretrain", "simclr/digits", *tiny, *settings]
    refused = subprocess.run(
        [*command, "--run", str(tmp_path / "no")], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert refused.returncode == 2 and "the cluster has none" in refused.stderr
    assert "trainer.wait_minutes=30 waits for it" in refused.stderr
    assert not (tmp_path / "no").exists()
    done = subprocess.run(
        [*command, "--run", str(tmp_path / "run"), "trainer.wait_minutes=3"], env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "waiting up to 3 minutes for room for 2 workers of a CPU each" in done.stderr
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    wait_for_the_head_alone(environment, 120)
