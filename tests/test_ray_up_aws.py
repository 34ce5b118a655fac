"""cluster/aws.yaml with the real `ray up`, against moto's EC2, until the first SSH."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests.cluster.conftest import RAY, until
from tests.conftest import ROOT

YAML = (ROOT / "cluster" / "aws.yaml").read_text()
KEY = "ray-autoscaler_us-west-2"
NOBODY = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
NEW_EACH_TIME = r"Version|ClientToken|SubnetId|TagSpecification.*|ray-launch-.*"

# Like the head's autoscaler, from the file that `ray up` prepares for it: workers are started, one
# gets another state, all are ended.
AUTOSCALER = """
import sys
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
reader = FileConfigReader(sys.argv[1])
config = reader.get_cached_autoscaling_config()
ec2 = _get_node_provider(config.get_provider_config(), config.get_config("cluster_name"))
cloud = NodeProviderAdapter(ec2, reader)
for kind in ("gpu", "cpu"):
    cloud._launch_nodes_by_type(kind, 1, "request")
workers = [name for name, node in cloud.get_non_terminated().items() if node.node_type != "head"]
ec2.set_node_tags(workers[0], {"ray-node-status": "waiting-for-ssh"})
cloud._do_terminate(workers, "request")
assert len(workers) == 2 and len(cloud.get_non_terminated()) == 1, cloud.poll_errors()
"""


@dataclass(frozen=True)
class Account:
    """An account at moto's Amazon, and the home of its user."""

    url: str
    home: Path

    def run(self, *command: str | Path) -> tuple[int, str, str]:
        """A process of the user up to its end or first SSH: status, words, how it logs in."""
        log = self.home / "ssh.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        process = subprocess.Popen(
            command, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=kept | {key.upper(): value for key, value in NOBODY.items()} | {
                "AWS_ENDPOINT_URL": self.url,
                # Ray keeps what it finds in TMPDIR, and sockets in a folder named after LOGNAME.
                **dict.fromkeys(("HOME", "TMPDIR", "LOGNAME"), str(self.home)),
                "PATH": f"{self.home}:{os.environ['PATH']}",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )  # fmt: skip
        try:
            until(lambda: process.poll() is not None or log.exists(), 120, "no end and no SSH")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            told, _ = process.communicate(timeout=30)
        ssh = log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        for sockets in set(re.findall(r"ControlPath=(/tmp/ray_ssh_\w+)/", ssh)):
            shutil.rmtree(sockets)
        return process.returncode, told, ssh

    def up(self, text: str) -> tuple[int, str, str]:
        (self.home / "aws.yaml").write_text(text)
        return self.run(RAY, "up", "-y", self.home / "aws.yaml")

    def client(self, service: str = "ec2") -> Any:
        from boto3 import client  # type: ignore[import-untyped]

        return client(service, "us-west-2", endpoint_url=self.url, **NOBODY)

    def groups(self) -> dict[str, Any]:
        found = self.client().describe_security_groups()["SecurityGroups"]
        return {group["GroupId"]: group for group in found}


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    from moto.moto_api import recorder
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr("moto.settings.EC2_ENABLE_INSTANCE_TYPE_VALIDATION", True)
    monkeypatch.setattr("moto.settings.ENABLE_KEYPAIR_VALIDATION", True)
    monkeypatch.setattr(recorder, "_location", str(tmp_path / "recording"))
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    account = Account("http://{}:{}".format(*server.get_host_and_port()), tmp_path)
    urllib.request.urlopen(f"{account.url}/moto-api/reset", data=b"", timeout=30).close()
    for name in ("raycl-head", "raycl-worker"):
        account.client("iam").create_instance_profile(InstanceProfileName=name)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    # No SSH: the addresses that moto makes up are somebody's.
    (tmp_path / "ssh").write_text('#!/bin/sh\necho "$*" >> "$HOME/ssh.log"\nexit 255\n')
    (tmp_path / "ssh").chmod(0o755)
    recorder.start_recording()
    yield account
    recorder.stop_recording()
    server.stop()


def asked(account: Account) -> list[dict[str, str]]:
    """Fields and tags of every request since the last call, without what is new each time."""
    recording, found = account.home / "recording", []
    for line in recording.read_text().splitlines():
        request = dict(parse_qsl(base64.b64decode(json.loads(line)["body"]).decode()))
        tags = {v: request[f"{k[:-4]}.Value"] for k, v in request.items() if k.endswith(".Key")}
        both = (request | tags).items()
        found.append({k: v for k, v in both if not re.fullmatch(NEW_EACH_TIME, k)})
    recording.write_text("")
    return found


def node(kind: str, tier: str, machine: str, group: str) -> dict[str, str]:
    """The request for a node."""
    image = "base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
    return {
        "Action": "RunInstances",
        "InstanceType": machine,
        "ImageId": f"resolve:ssm:/aws/service/deeplearning/ami/x86_64/{image}",
        "IamInstanceProfile.Name": f"raycl-{kind}",
        "SecurityGroupId.1": group,
        "KeyName": KEY,
        "MetadataOptions.HttpTokens": "required",
        "BlockDeviceMapping.1.DeviceName": "/dev/sda1",
        "BlockDeviceMapping.1.Ebs.VolumeSize": "200",
        "BlockDeviceMapping.1.Ebs.VolumeType": "gp3",
        "MinCount": "1",
        "MaxCount": "1",
        "Name": f"ray-raycl-{kind}",
        "ray-cluster-name": "raycl",
        "ray-node-status": "uninitialized",
        "ray-node-type": kind,
        "ray-user-node-type": tier,
    } | ({"InstanceMarketOptions.MarketType": "spot"} if kind == "worker" else {})


def test_what_amazon_is_asked_for(account: Account) -> None:
    ec2 = account.client()
    group = ec2.create_security_group(GroupName="own", Description="own")["GroupId"]
    groups = account.groups()
    asked(account)
    _, told, ssh = account.up(re.sub(r"sg-0+", group, YAML))
    requests = asked(account)
    changes = [r["Action"] for r in requests if not r["Action"].startswith("Describe")]
    assert changes == ["CreateKeyPair", "RunInstances", "CreateTags"], told
    assert node("head", "head", "m6i.xlarge", group) in requests
    assert account.groups() == groups
    head = ec2.describe_instances()["Reservations"][0]["Instances"][0]
    key = account.home / ".ssh" / f"{KEY}.pem"
    assert f"-i {key} " in ssh and f"ubuntu@{head['PublicIpAddress']} " in ssh
    asked(account)
    [prepared] = account.home.glob("ray-bootstrap-*")
    shutil.copy(key, account.home / "ray_bootstrap_key.pem")  # where the file says that it is
    status, told, _ = account.run(sys.executable, "-c", AUTOSCALER, prepared)
    assert status == 0, told
    requests = asked(account)
    assert node("worker", "gpu", "g5.12xlarge", group) in requests
    assert node("worker", "cpu", "m6id.4xlarge", group) in requests
    assert {request["Action"] for request in requests} == set(re.findall(r"ec2:(\w+)", YAML))


def test_a_group_that_does_not_exist_is_an_error(account: Account) -> None:
    status, told, _ = account.up(YAML)
    assert status == 1
    assert "Failed to detect a security group with id equal to any of the configured" in told
    assert "RunInstances" not in [request["Action"] for request in asked(account)]


def test_without_a_group_ray_makes_one_for_the_whole_world(account: Account) -> None:
    groups = account.groups()
    _, told, _ = account.up(re.sub(r"SecurityGroupIds: .*", "", YAML))
    [made] = [group for name, group in account.groups().items() if name not in groups]
    rules = [r for r in made["IpPermissions"] if r["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)], told
