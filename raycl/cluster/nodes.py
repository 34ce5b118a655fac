"""What a cluster's file offers: its types of nodes, and how many of each there may be.

Read are YAML files of `ray up` and KubeRay's manifests, as Ray 2.60 understands them: resources of
a KubeRay group are those that `ray.autoscaler._private.kuberay` gives to the autoscaler.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raycl.errors import RayclError
from raycl.mistakes import explain


@dataclass(frozen=True)
class NodeType:
    """One type of node.

    Attributes:
        instance: what the cloud calls the machine.
        cpus, gpus: logical ones of a node; None: the file does not say.
        least, most: nodes that there are at rest, and that there may be.
        field: of the file, says how many there may be.
        head: one of them is the cluster's head.
        spot: the cloud may take it away at any minute.
    """

    name: str
    instance: str | None
    cpus: float | None
    gpus: float | None
    labels: dict[str, str]
    least: int
    most: int
    field: str
    head: bool = False
    spot: bool = False


@dataclass(frozen=True)
class Offer:
    """A cluster as its file describes it.

    Attributes:
        nodes: the most that there are of all types together, the head included.
    """

    file: str
    types: list[NodeType]
    nodes: float = math.inf

    @property
    def unknown(self) -> list[str]:
        """Types that the file names no CPUs or GPUs of."""
        return [t.name for t in self.types if t.cpus is None or t.gpus is None]


def read(path: Path) -> Offer:
    """The cluster that a file describes.

    Raises:
        RayclError: there is no such file, or it is neither of `ray up` nor of KubeRay.
    """
    try:
        content = [*yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise RayclError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RayclError(f"{path}: not valid YAML: {error}") from error
    found = [d for d in content if isinstance(d, Mapping) and _kind(d)]
    if len(found) != 1:
        what = f"holds {len(found)} Ray clusters, one is needed"
        neither = (
            "neither a file of `ray up` (with provider) nor a KubeRay manifest (kind: RayCluster, "
            "or RayJob with a rayClusterSpec)"
        )
        raise RayclError(f"{path}: {what if found else neither}")
    of_kind = {"ray up": _of_ray_up, "RayCluster": _of_kuberay, "RayJob": _of_kuberay}
    try:
        return of_kind[_kind(found[0])](str(path), found[0])
    except ValidationError as error:
        lines = explain(error, BaseModel, ())
        raise RayclError("\n".join([f"{path}:", *(f"  {line}" for line in lines)])) from error


def _kind(document: Mapping[str, Any]) -> str:
    if "provider" in document:
        return "ray up"
    paths = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}
    kind = str(document.get("kind"))
    return kind if kind in paths and _at(document, *paths[kind]) is not None else ""


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


class _Part(BaseModel):
    """Of a part of a file only what places and prices follow from."""

    model_config = ConfigDict(frozen=True)


class _Type(_Part):
    node_config: dict[str, Any] = {}
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    min_workers: int = Field(0, ge=0)
    max_workers: int | None = Field(None, ge=0)


class _RayUp(_Part):
    provider: dict[str, Any]
    max_workers: int | None = Field(None, ge=0)
    min_workers: int | None = Field(None, ge=0)
    head_node_type: str = ""
    available_node_types: dict[str, _Type] = {}
    head_start_ray_commands: list[str] = []


def _of_ray_up(file: str, document: Mapping[str, Any]) -> Offer:
    config = _RayUp.model_validate(document)
    started = " ".join(config.head_start_ray_commands)
    if config.provider.get("type") == "local":
        return _of_hosts(file, config, started)
    head, types = config.head_node_type, config.available_node_types
    if head not in types:
        raise RayclError(
            f"{file}: head_node_type: {head or 'nothing'!r} was given, it is one of "
            f"available_node_types: {', '.join(types) or 'which is missing'}"
        )
    most = 2 if config.max_workers is None else config.max_workers  # Ray's own default
    offered = []
    for name, node in types.items():
        own = int(name == head)  # workers of its type come on top of the head
        limit = (0 if own else most) if node.max_workers is None else node.max_workers
        command = started if own else ""
        instance = _instance(node.node_config)
        # What the type names is what counts; Ray hands it to `ray start` over its options.
        cpus = node.resources.get("CPU", _option("num-cpus", command))
        # Ray asks EC2 for the GPUs that are not named.
        asked = config.provider.get("type") == "aws" and re.match(r"[gp]\d", instance or "")
        offered.append(
            NodeType(
                name,
                instance,
                cpus,
                node.resources.get("GPU", None if cpus is None or asked else 0.0),
                node.labels,
                own + min(node.min_workers, limit),
                own + limit,
                f"available_node_types.{name}.max_workers",
                bool(own),
                _spot(node.node_config),
            )
        )
    return Offer(file, offered, 1 + most)


def _of_hosts(file: str, config: _RayUp, started: str) -> Offer:
    """Machines of one's own; Ray finds out what they have when it starts there."""
    hosts = config.provider.get("worker_ips")
    count = len(hosts) if isinstance(hosts, Sequence) else config.max_workers or 0
    most = count if config.max_workers is None else min(count, config.max_workers)
    least = most if config.min_workers is None else min(most, config.min_workers)
    cpus, gpus = _option("num-cpus", started), _option("num-gpus", started)
    head = NodeType("head", None, cpus, gpus, {}, 1, 1, "provider.head_ip", head=True)
    worker = NodeType("worker", None, None, None, {}, least, most, "provider.worker_ips")
    return Offer(file, [head, worker], 1 + most)


def _option(name: str, command: str) -> float | None:
    found = re.search(rf"--{name}[= ](\d+)", command)
    return float(found[1]) if found else None


def _instance(config: Mapping[str, Any]) -> str | None:
    """The cloud's name of a machine: AWS, Google's (maybe a path) and Azure's field."""
    found = (
        config.get("InstanceType")
        or config.get("machineType")
        or _at(config, "azure_arm_parameters", "vmSize")
    )
    return str(found).rpartition("/")[2] if found else None


def _spot(config: Mapping[str, Any]) -> bool:
    return (
        _at(config, "InstanceMarketOptions", "MarketType") == "spot"
        or _at(config, "scheduling", "provisioningModel") == "SPOT"
        or _at(config, "scheduling", "preemptible") is True
        or _at(config, "azure_arm_parameters", "priority") == "Spot"
    )


class _Resources(_Part):
    limits: dict[str, Any] = {}
    requests: dict[str, Any] = {}


class _Container(_Part):
    resources: _Resources = _Resources()


class _Pod(_Part):
    containers: list[_Container] = Field(min_length=1)


class _Template(_Part):
    spec: _Pod


class _Group(_Part):
    groupName: str = "head"
    labels: dict[str, str] = {}
    replicas: int | None = Field(None, ge=0)
    minReplicas: int = Field(0, ge=0)
    maxReplicas: int | None = Field(None, ge=0)
    numOfHosts: int = Field(1, ge=1, le=1)  # nodes that come several at a time are TPUs
    resources: dict[str, Any] = {}
    rayStartParams: dict[str, Any] = {}
    template: _Template


class _Cluster(_Part):
    enableInTreeAutoscaling: bool = False
    headGroupSpec: _Group
    workerGroupSpecs: list[_Group] = []


def _of_kuberay(file: str, document: Mapping[str, Any]) -> Offer:
    place = "spec.rayClusterSpec" if document["kind"] == "RayJob" else "spec"
    cluster = _Cluster.model_validate(_at(document, *place.split(".")))
    grows = cluster.enableInTreeAutoscaling
    head = replace(_of_group(file, cluster.headGroupSpec, grows), field=f"{place}.headGroupSpec")
    types = [replace(head, least=1, most=1, head=True)]
    for group in cluster.workerGroupSpecs:
        bound = group.maxReplicas
        field = f"{place}.workerGroupSpecs.{group.groupName}.maxReplicas"
        if bound is None and grows:
            raise RayclError(f"{file}: {field}: missing, so there is no bound; say how many pods")
        least = most = group.minReplicas
        if grows:
            most = max(least, bound or 0)
        elif group.replicas is not None:
            field = field.replace("maxReplicas", "replicas")
            least = most = max(
                least, min(group.replicas, group.replicas if bound is None else bound)
            )
        types.append(replace(_of_group(file, group, grows), field=field, least=least, most=most))
    return Offer(file, types)


def _of_group(file: str, group: _Group, grows: bool) -> NodeType:
    """Without how many there are."""
    params, pod = group.rayStartParams, group.template.spec.containers[0].resources
    limits = pod.requests | pod.limits
    gpu = next((key for key in limits if key.endswith("gpu")), "")
    cpus = group.resources.get("CPU", params.get("num-cpus", limits.get("cpu")))
    gpus = group.resources.get("GPU", params.get("num-gpus", limits.get(gpu, 0)))
    # Ray's autoscaler goes by the group's own labels alone.
    started = "" if grows else str(params.get("labels", ""))
    labels = dict(pair.split("=", 1) for pair in started.strip('"').split(",") if "=" in pair)
    return NodeType(
        group.groupName,
        None,
        None if cpus is None else _quantity(cpus, f"{file}: {group.groupName}: CPUs"),
        _quantity(gpus, f"{file}: {group.groupName}: GPUs"),
        labels | group.labels,
        0,
        0,
        "",
    )


def _quantity(value: Any, where: str) -> float:
    """Kubernetes' number, such as 4 or 500m, rounded up as Ray does."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", str(value))
    if not found:
        raise RayclError(f"{where}: {value!r} was given, a number such as 4 or 500m is needed")
    return float(math.ceil(float(found[1]) / (1000 if found[2] else 1)))
