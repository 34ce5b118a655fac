"""The process group of a worker group."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import ray.util
from ray.train.torch.config import TorchConfig, _TorchBackend

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@dataclass
class NodeTorchConfig(TorchConfig):
    """A TorchConfig whose workers talk over the interface that Ray talks over.

    Gloo takes the one that the host name resolves to, which on many machines is the loopback.

    Attributes:
        nccl: environment variables of every worker, before it meets the others.
    """

    nccl: dict[str, str] = field(default_factory=dict)

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _NodeBackend


class _NodeBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(prepare, backend_config.nccl)
        super().on_start(worker_group, backend_config)


def prepare(nccl: dict[str, str]) -> None:
    """Sets what Gloo and NCCL read: what the recipe says, and the interface unless the user has."""
    os.environ.update(nccl)
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
