"""What cluster/ says, without a cloud: schemas, and what must hold in every one of its files."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
CLOUDS = ("aws.yaml", "gcp.yaml", "azure.yaml")
RAY_UP = (*CLOUDS, "onprem.yaml")
KUBERAY = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
FILES = sorted(str(p.relative_to(CLUSTER)) for p in CLUSTER.rglob("*") if p.is_file())

# What no default can be right about, by the file that asks for it.
CHANGES = {
    "aws.yaml": ["region", "image", "SecurityGroupIds"],
    "gcp.yaml": ["project_id", "image", "email"],
    "azure.yaml": ["location", "image"],
    "onprem.yaml": ["head_ip", "worker_ips", "ssh_user", "RAYCL_CACHE"],
    "kuberay/raycluster.yaml": ["image"],
    "kuberay/rayjob.yaml": ["image"],
    "kuberay/storage.yaml": ["storageClassName"],
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def changed(config: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path; `...` as the value leaves the field out."""
    config = copy.deepcopy(config)
    at = config
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value(at[path[-1]]) if callable(value) else value
    return config


def swap(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def within(config: Any) -> list[str]:
    """All keys and values below, as text."""
    if isinstance(config, dict):
        return [text for pair in config.items() for part in pair for text in within(part)]
    if isinstance(config, list):
        return [text for part in config for text in within(part)]
    return [str(config)]


def bytes_of(size: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\w*)", size).groups()
    return int(number) * {"": 1, "g": 2**30, "Gi": 2**30}[unit]


# ---- ray up


def store_of(command: str) -> int:
    found = re.search(r"--object-store-memory=(\d+)", command)
    return int(found[1]) if found else 0


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with a YAML of `ray up`, beyond its schema."""
    out = []
    local = config["provider"]["type"] == "local"
    starts = {}
    for kind in ("head", "worker"):
        stop, start = config[f"{kind}_start_ray_commands"]
        before, _, options = starts[kind] = start.partition(" ray start ")
        if stop != "ray stop" or not options:
            out.append(f"{kind}: not stopped and started")
        if "RAY_AUTH_MODE=token" not in before:
            out.append(f"{kind}: no token")
        if "ulimit -n 65536" not in before:
            out.append(f"{kind}: few open files")
        if not store_of(options):
            out.append(f"{kind}: size of the object store")
    if "--dashboard-host=127.0.0.1" not in starts["head"][2].split():
        out.append("dashboard for others")
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in starts["head"][2].split():
        out.append("no autoscaler")
    if config.get("file_mounts", {}).get("~/.ray/auth_token") != "~/.ray/auth_token":
        out.append("token is not mounted")
    if not config.get("idle_timeout_minutes"):
        out.append("no idle time-out")
    if not config.get("max_workers"):
        out.append("no bound on workers")
    if any(re.search(r"0\.0\.0\.0|::/0", text) for text in within(config)):
        out.append("open to the world")
    return out + (local_problems if local else cloud_problems)(config, starts)


def local_problems(config: dict[str, Any], starts: dict[str, tuple[str, str, str]]) -> list[str]:
    out = []
    if not {"--num-gpus=0", "--labels=tier=head"} <= set(starts["head"][2].split()):
        out.append("head has a GPU or no tier")
    if "--labels=tier=$(" not in starts["worker"][2]:
        out.append("worker without a tier")
    if not any("export RAYCL_CACHE=" in command for command in config["setup_commands"]):
        out.append("no place for the page cache")
    if not any("pip install" in command for command in config["setup_commands"]):
        out.append("raycl is not installed")
    return out


def cloud_problems(config: dict[str, Any], starts: dict[str, tuple[str, str, str]]) -> list[str]:
    out = []
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    if head["resources"].get("GPU") != 0 or head["resources"].get("CPU") != 0:
        out.append("head has resources")
    if head["labels"].get("tier") != "head":
        out.append("head without a tier")
    if any(text.lower() == "spot" for text in within(head["node_config"])):
        out.append("head is spot")
    tiers = []
    for name, node in types.items():
        tier = node.get("labels", {}).get("tier")
        tiers.append(tier)
        if tier != ("gpu" if node["resources"].get("GPU") else "cpu"):
            out.append(f"{name}: wrong tier")
        if not 0 <= node.get("min_workers", -1) <= node.get("max_workers", -1):
            out.append(f"{name}: no bounds")
        if not any(text.lower() == "spot" for text in within(node["node_config"])):
            out.append(f"{name}: not spot")
    if sorted(map(str, tiers)) != ["cpu", "gpu"]:
        out.append("tiers")
    # Each of Ray's own networks lets SSH in from everywhere.
    every = [node["node_config"] for node in (head, *types.values())]
    closed = {
        "aws": all(node.get("SecurityGroupIds") for node in every),
        "gcp": all(node.get("networkInterfaces") for node in every),
        "azure": config["provider"].get("use_internal_ips") is True,
    }
    if not closed[config["provider"]["type"]]:
        out.append("default network")
    docker = config["docker"]
    for kind, (_, _, options) in starts.items():
        shm = [o for o in docker[f"{kind}_run_options"] if o.startswith("--shm-size=")]
        if not shm or bytes_of(shm[0].partition("=")[2]) < store_of(options):
            out.append(f"{kind}: /dev/shm is smaller than the object store")
    run = dict(option.split(" ") for option in docker["run_options"] if option.startswith("-v"))
    host, _, mounted = run.get("-v", "").partition(":")
    if f"-e RAYCL_CACHE={mounted}" not in docker["run_options"] or not host:
        out.append("no place for the page cache")
    elif not any(host in command for command in config["initialization_commands"]):
        out.append("nobody makes the page cache's folder")
    if "-e RAY_AUTH_MODE=token" not in docker["run_options"]:
        out.append("container: no token")
    return out


def validate(config: dict[str, Any]) -> None:
    """As `ray up` does before it asks for the first machine, and the file without the defaults."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_it(name: str) -> None:
    config = load(name)
    validate(config)
    with pytest.raises(jsonschema.ValidationError):
        validate(changed(config, ("idle_timeout",), 5))
    with pytest.raises(jsonschema.ValidationError):
        validate(changed(config, ("max_workers",), "many"))


def test_ray_refuses_node_types_that_are_wrong() -> None:
    config = load("aws.yaml")
    with pytest.raises(jsonschema.ValidationError):
        validate(changed(config, ("available_node_types", "gpu", "label"), {"tier": "gpu"}))
    with pytest.raises(ValueError, match="sum of"):
        validate(changed(config, ("available_node_types", "gpu", "min_workers"), 99))
    local = load("onprem.yaml")
    with pytest.raises(click.ClickException):  # what Ray's commands end with
        validate(local | {"available_node_types": config["available_node_types"]})


@pytest.mark.parametrize("name", RAY_UP)
def test_rules_of_ray_up_hold(name: str) -> None:
    assert problems(load(name)) == []


HEAD, WORKER = ("head_start_ray_commands", 1), ("worker_start_ray_commands", 1)
NODES = "available_node_types"
EVERYWHERE = [
    (HEAD, swap("RAY_AUTH_MODE=token", ""), "head: no token"),
    (WORKER, swap("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "worker: no token"),
    (HEAD, swap("=127.0.0.1", "=0.0.0.0"), "dashboard for others"),
    (HEAD, swap("--dashboard-host=127.0.0.1", ""), "dashboard for others"),
    (HEAD, swap("--autoscaling-config=~/ray_bootstrap_config.yaml", ""), "no autoscaler"),
    (WORKER, swap("ulimit -n 65536;", ""), "worker: few open files"),
    (WORKER, swap("--object-store-memory", "--memory"), "worker: size of the object store"),
    (("worker_start_ray_commands", 0), "true", "worker: not stopped and started"),
    (("file_mounts",), {}, "token is not mounted"),
    (("idle_timeout_minutes",), ..., "no idle time-out"),
    (("max_workers",), ..., "no bound on workers"),
    (("provider", "IpRanges"), [{"CidrIp": "0.0.0.0/0"}], "open to the world"),
]
IN_CLOUDS = [
    ((NODES, "head", "resources", "GPU"), 1, "head has resources"),
    ((NODES, "head", "labels"), {}, "head without a tier"),
    ((NODES, "head", "node_config", "priority"), "Spot", "head is spot"),
    ((NODES, "cpu", "labels"), ..., "cpu: wrong tier"),
    ((NODES, "gpu", "labels", "tier"), "cpu", "gpu: wrong tier"),
    ((NODES, "gpu", "max_workers"), ..., "gpu: no bounds"),
    ((NODES, "gpu", "node_config"), {}, "gpu: not spot"),
    ((NODES, "cpu"), ..., "tiers"),
    (("docker", "worker_run_options"), ["--shm-size=8g"], "worker: /dev/shm is smaller"),
    (("docker", "run_options"), ["-e RAYCL_CACHE=/cache"], "no place for the page cache"),
    (("initialization_commands",), [], "nobody makes the page cache's folder"),
    (("docker", "run_options"), [], "container: no token"),
]
ELSEWHERE = [
    ("onprem.yaml", HEAD, swap("--num-gpus=0", ""), "head has a GPU"),
    ("onprem.yaml", WORKER, swap("--labels", "--label"), "worker without a tier"),
    ("onprem.yaml", ("setup_commands",), [], "no place for the page cache"),
    ("onprem.yaml", ("setup_commands",), [], "raycl is not installed"),
    ("aws.yaml", (NODES, "cpu", "node_config", "SecurityGroupIds"), ..., "default network"),
    ("gcp.yaml", (NODES, "head", "node_config", "networkInterfaces"), ..., "default network"),
    ("azure.yaml", ("provider", "use_internal_ips"), False, "default network"),
]


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        *((name, *case) for name in RAY_UP for case in EVERYWHERE),
        *((name, *case) for name in CLOUDS for case in IN_CLOUDS),
        *ELSEWHERE,
    ],
)
def test_a_broken_rule_of_ray_up_is_found(
    name: str, path: tuple[Any, ...], value: Any, words: str
) -> None:
    found = problems(changed(load(name), path, value))
    assert any(words in problem for problem in found), found


def aws_mistakes(config: dict[str, Any]) -> str:
    """Of EC2's own description of what an instance is asked for with."""
    from botocore.session import Session
    from botocore.validate import ParamValidator

    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return "".join(
        ParamValidator().validate({"MinCount": 1, "MaxCount": 1} | type_["node_config"], shape)
        .generate_report()
        for type_ in config[NODES].values()
    )  # fmt: skip


def test_ec2_knows_what_it_is_asked_for() -> None:
    pytest.importorskip("botocore")
    config = load("aws.yaml")
    assert aws_mistakes(config) == ""
    market = (NODES, "gpu", "node_config", "InstanceMarketOptions")
    assert "MarketTyp" in aws_mistakes(changed(config, market, {"MarketTyp": "spot"}))


def azure_unknown(config: dict[str, Any]) -> set[str]:
    """Parameters that Ray's template of a machine does not have; Azure refuses them."""
    import ray.autoscaler

    folder = Path(ray.autoscaler.__file__).parent / "_private" / "_azure"
    known = json.loads((folder / "azure-vm-template.json").read_text())["parameters"]
    types = config[NODES].values()
    return {key for type_ in types for key in type_["node_config"]["azure_arm_parameters"]} - {
        *known,
        "availability_zone",
    }


def test_azure_knows_what_it_is_asked_for() -> None:
    config = load("azure.yaml")
    assert azure_unknown(config) == set()
    path = (NODES, "gpu", "node_config", "azure_arm_parameters", "spot")
    assert azure_unknown(changed(config, path, True)) == {"spot"}


@pytest.mark.parametrize("gpu", [True, False])
def test_a_host_finds_its_own_tier(gpu: bool, tmp_path: Path) -> None:
    stub(tmp_path, "nvidia-smi", f"exit {0 if gpu else 9}")
    start = load("onprem.yaml")["worker_start_ray_commands"][1]
    label = re.search(r"--labels=tier=\$\(.*?\)", start)
    assert label
    told = run(["bash", "-c", f"echo {label[0]}"], tmp_path)
    assert told == f"--labels=tier={'gpu' if gpu else 'cpu'}\n"


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def run(command: list[str], stubs: Path) -> str:
    path = f"{stubs}:{os.environ['PATH']}"
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, check=True, capture_output=True, text=True
    ).stdout


# ---- KubeRay


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """OpenAPI schemas of KubeRay's kinds; skips where there are none, which CI does not accept."""
    folder = ROOT.parent / "shared" / "schemas" / "kuberay"
    if not folder.exists():
        if os.environ.get("RAYCL_NEEDS_DATA"):
            pytest.fail("KubeRay's schemas are missing and this run requires them")
        pytest.skip("KubeRay's schemas are not beside this checkout")
    out = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in (folder / "ray.io_rayclusters.yaml", folder / "ray.io_rayjobs.yaml"):
        spec = yaml.load(file.read_text(), loader)["spec"]
        [version] = [v for v in spec["versions"] if v["name"] == "v1"]
        out[spec["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    return out


def unknown(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Fields that the API server would drop without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    out = []
    if isinstance(value, list):
        for i, part in enumerate(value):
            out += unknown(schema.get("items", {}), part, f"{path}[{i}]")
    elif isinstance(value, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, part in value.items():
            if key in fields or isinstance(others, dict):
                out += unknown(fields.get(key, others), part, f"{path}.{key}")
            elif others is not True and path != ".metadata":
                out.append(f"{path}.{key}")
    return out


def mistakes(schema: dict[str, Any], manifest: Any) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [error.message for error in errors] + unknown(schema, manifest)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_accepts_it(name: str, schemas: dict[str, Any]) -> None:
    manifest = load(name)
    schema = schemas[manifest["kind"]]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert mistakes(schema, manifest) == []
    cluster = ("spec",) if manifest["kind"] == "RayCluster" else ("spec", "rayClusterSpec")
    pod = (*cluster, "workerGroupSpecs", 0, "template", "spec")
    for path, value, words in (
        (("spec", "autoscaling"), True, ".spec.autoscaling"),
        ((*cluster, "authOptions", "mod"), "token", ".authOptions.mod"),
        ((*pod, "terminationGracePeriod"), 60, ".terminationGracePeriod"),
        ((*pod, "containers", 0, "env", 0, "val"), "x", ".env[0].val"),
        ((*cluster, "authOptions", "mode"), "tokens", "'tokens' is not one of"),
        ((*cluster, "workerGroupSpecs", 0, "maxReplicas"), "8", "'8' is not of type"),
        ((*cluster, "headGroupSpec", "template"), ..., "'template' is a required"),
    ):
        found = mistakes(schema, changed(manifest, path, value))
        assert any(words in mistake for mistake in found), (path, found)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pod_problems(where: str, group: dict[str, Any]) -> list[str]:
    out = []
    pod = group["template"]["spec"]
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
    shm = mounted.get("/dev/shm", {}).get("emptyDir", {})
    size = bytes_of(shm.get("sizeLimit", "0"))
    store = int(group["rayStartParams"].get("object-store-memory", 0))
    if shm.get("medium") != "Memory" or not 0 < store <= size:
        out.append(f"{where}: /dev/shm is smaller than the object store")
    if bytes_of(container["resources"]["limits"]["memory"]) < 2 * size:
        out.append(f"{where}: /dev/shm is most of the memory")
    claim = load("kuberay/storage.yaml")["metadata"]["name"]
    if mounted.get("/shared", {}).get("persistentVolumeClaim") != {"claimName": claim}:
        out.append(f"{where}: no shared storage")
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    if "emptyDir" not in mounted.get(str(env.get("RAYCL_CACHE")), {}):
        out.append(f"{where}: no place for the page cache")
    if pod.get("securityContext", {}).get("runAsNonRoot") is not True:
        out.append(f"{where}: runs as root")
    return out


def kuberay_problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, beyond its schema; some of it KubeRay refuses in Go."""
    out = []
    spec = cluster_of(manifest)
    if spec.get("authOptions", {}).get("mode") != "token":
        out.append("no token")
    if not spec.get("rayVersion"):
        out.append("no version of Ray, which tokens need")
    options = spec.get("autoscalerOptions", {})
    if not spec.get("enableInTreeAutoscaling") or options.get("version") != "v2":
        out.append("no autoscaler v2")
    if not options.get("idleTimeoutSeconds"):
        out.append("no idle time-out")
    head = spec["headGroupSpec"]
    outside = {"NodePort", "LoadBalancer", "0.0.0.0"} & set(within(manifest))
    if head.get("serviceType") != "ClusterIP" or head.get("enableIngress") or outside:
        out.append("dashboard for others")
    if any("nvidia" in text for text in within(head)) or head["rayStartParams"]["num-cpus"] != "0":
        out.append("head has resources")
    if head["labels"].get("tier") != "head":
        out.append("head without a tier")
    out += pod_problems("head", head)
    for group in spec["workerGroupSpecs"]:
        name = group["groupName"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        tier = "gpu" if "nvidia.com/gpu" in limits else "cpu"
        if group.get("labels", {}).get("tier") != tier:
            out.append(f"{name}: wrong tier")
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group.get("maxReplicas", -1):
            out.append(f"{name}: no bounds")
        out += pod_problems(name, group)
    return out + (job_problems(manifest["spec"]) if manifest["kind"] == "RayJob" else [])


def job_problems(spec: dict[str, Any]) -> list[str]:
    out = []
    if not spec.get("backoffLimit"):
        out.append("not tried again")
    strategy = spec.get("deletionStrategy", {})
    if {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & {*spec} or {*strategy} != {
        "deletionRules"
    }:
        out.append("deprecated or excluded with deletionRules")
    conditions = [rule["condition"] for rule in strategy.get("deletionRules", [])]
    ends = ("jobStatus", "jobDeploymentStatus")
    if any(len({*ends} & {*condition}) != 1 for condition in conditions):
        out.append("a rule has one condition")
    if not {"SUCCEEDED", "FAILED"} <= {condition.get("jobStatus") for condition in conditions}:
        out.append("an end after which nothing is deleted")
    if any(not condition.get("ttlSeconds") for condition in conditions):
        out.append("no ttl")
    if "trainer.address=auto" not in spec["entrypoint"].split():
        out.append("not on the cluster")
    return out


@pytest.mark.parametrize("name", KUBERAY)
def test_rules_of_kuberay_hold(name: str) -> None:
    manifest = load(name)
    assert kuberay_problems(manifest) == []
    [ray] = re.findall(r"^ray==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert cluster_of(manifest)["rayVersion"] == ray


WORKERS = "workerGroupSpecs"
POD = (WORKERS, 0, "template", "spec")
IN_A_CLUSTER = [
    (("authOptions", "mode"), "disabled", "no token"),
    (("authOptions",), ..., "no token"),
    (("rayVersion",), ..., "no version"),
    (("enableInTreeAutoscaling",), False, "no autoscaler v2"),
    (("autoscalerOptions", "version"), "v1", "no autoscaler v2"),
    (("autoscalerOptions", "idleTimeoutSeconds"), ..., "no idle time-out"),
    (("headGroupSpec", "serviceType"), "LoadBalancer", "dashboard for others"),
    (("headGroupSpec", "enableIngress"), True, "dashboard for others"),
    (("headGroupSpec", "headService"), {"spec": {"type": "NodePort"}}, "dashboard for others"),
    (("headGroupSpec", "resources"), {"nvidia.com/gpu": "1"}, "head has resources"),
    (("headGroupSpec", "rayStartParams", "num-cpus"), "2", "head has resources"),
    (("headGroupSpec", "labels"), {}, "head without a tier"),
    ((WORKERS, 0, "labels", "tier"), "cpu", "gpu: wrong tier"),
    ((WORKERS, 1, "labels"), ..., "cpu: wrong tier"),
    ((WORKERS, 0, "maxReplicas"), ..., "gpu: no bounds"),
    ((WORKERS, 0, "rayStartParams"), {"object-store-memory": "30000000000"}, "gpu: /dev/shm is sm"),
    ((*POD, "containers", 0, "resources", "limits", "memory"), "30Gi", "gpu: /dev/shm is most"),
    ((*POD, "containers", 0, "volumeMounts", 0, "mountPath"), "/data", "gpu: no shared storage"),
    ((*POD, "containers", 0, "env"), [], "gpu: no place for the page cache"),
    ((*POD, "securityContext"), ..., "gpu: runs as root"),
]
IN_A_JOB = [
    (("backoffLimit",), ..., "not tried again"),
    (("shutdownAfterJobFinishes",), True, "deprecated or excluded"),
    (("deletionStrategy", "onSuccess"), {"policy": "DeleteCluster"}, "deprecated or excluded"),
    (
        ("deletionStrategy", "deletionRules"),
        lambda rules: rules[:2] + rules[3:],
        "nothing is deleted",
    ),
    (("deletionStrategy", "deletionRules", 0, "condition", "jobDeploymentStatus"), "Failed", "one"),
    (("deletionStrategy", "deletionRules", 0, "condition", "ttlSeconds"), ..., "no ttl"),
    (("entrypoint",), swap("trainer.address=auto", ""), "not on the cluster"),
]


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        *((KUBERAY[0], ("spec", *path), *rest) for path, *rest in IN_A_CLUSTER),
        *((KUBERAY[1], ("spec", "rayClusterSpec", *path), *rest) for path, *rest in IN_A_CLUSTER),
        *((KUBERAY[1], ("spec", *path), *rest) for path, *rest in IN_A_JOB),
    ],
)
def test_a_broken_rule_of_kuberay_is_found(
    name: str, path: tuple[Any, ...], value: Any, words: str
) -> None:
    found = kuberay_problems(changed(load(name), path, value))
    assert any(words in problem for problem in found), found


def test_job_and_cluster_are_alike_and_the_job_is_a_recipe() -> None:
    from raycl import recipe

    cluster, job = (load(name) for name in KUBERAY)
    assert cluster_of(job) == cluster_of(cluster)
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:2] == ["raycl", "pretrain"] and command[3] == "--run"
    loaded = recipe.load(command[2], command[5:])
    assert loaded.data.decode_nodes == {"tier": "cpu"}
    assert "ReadWriteMany" in load("kuberay/storage.yaml")["spec"]["accessModes"]


# ---- Slurm


def test_slurm_saves_before_the_end_and_goes_back_into_the_queue(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    log, trained = tmp_path / "log", tmp_path / "trained"
    stub(tmp_path, "scontrol", f'[ "$1" = show ] && printf "n1\\nn2\\n" || echo "$@" >> {log}')
    stub(
        tmp_path,
        "srun",
        f"""echo "srun $@" >> {log}
        case "$*" in *"hostname -I") echo "10.0.0.1 172.17.0.1" ;; *) exec sleep 60 ;; esac""",
    )
    stub(tmp_path, "ray", "")
    stub(
        tmp_path,
        "raycl",
        f"""echo "raycl $@ $RAY_ADDRESS $RAY_AUTH_MODE" >> {log}
        trap 'sleep 0.5; echo saved >> {log}; exit 130' TERM
        echo "${{#RAY_AUTH_TOKEN}}" > {trained}; while true; do sleep 0.1; done""",
    )
    job = subprocess.Popen(
        [CLUSTER / "slurm.sh", "simclr/digits", "r", "trainer.workers=2"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
             "SLURM_JOB_NODELIST": "n[1-2]"},
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not trained.exists() or not trained.read_text():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(30) == 130
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert int(trained.read_text()) == 64
    told = log.read_text()
    assert told.endswith("saved\nrequeue 7\n")
    assert "raycl pretrain simclr/digits --run r trainer.address=auto trainer.workers=2" in told
    assert "10.0.0.1:20007 token\n" in told
    # Both begin in the background, in any order.
    starts = sorted(line for line in told.splitlines() if " ray start " in line)
    starts.sort(key=lambda line: "-w n1 " not in line)
    assert [f"-w {node} " in line for node, line in zip(("n1", "n2"), starts, strict=True)] == [
        True,
        True,
    ]
    assert "--head" in starts[0] and "--dashboard-host=127.0.0.1" in starts[0]
    assert "--address=10.0.0.1:20007" in starts[1]
    assert "#SBATCH --signal=B:TERM@120\n" in (CLUSTER / "slurm.sh").read_text()


def test_what_is_no_bash_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "slurm.sh"
    broken.write_text((CLUSTER / "slurm.sh").read_text().replace("\nfi\n", "\n", 1))
    assert subprocess.run(["bash", "-n", broken], capture_output=True).returncode != 0


# ---- Dockerfile


def docker_problems(text: str) -> list[str]:
    out = []
    lines = text.replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from="):
            out += [f"no {source}" for source in words[1:-1] if not (ROOT / source).exists()]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    out += [f"no extra {name}" for name in re.findall(r"--extra (\S+)", text) if name not in extras]
    if "ffcv" not in re.findall(r"--extra (\S+)", text):
        out.append("no ffcv")
    # What FFCV is built with here, .ci/env.sh knows.
    libraries = re.search(r'^libraries="(.*)"', (ROOT / ".ci" / "env.sh").read_text(), re.M)
    builder = text.partition("AS builder")[2].partition("\nFROM")[0].split()
    out += [f"no {name}" for name in libraries[1].split() if name not in builder]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    if not users or users[-1] in ("root", "0"):
        out.append("root")
    if "HOME=/home/ray" not in text or "RAY_AUTH_MODE=token" not in text:
        out.append("no HOME or no token")
    if "-c requirements.txt" not in text:
        out.append("no versions")
    return out


def test_the_dockerfile_names_what_there_is() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert docker_problems(text) == []
    for old, new, words in (
        (".ci/build_crop.py", ".ci/build.py", "no .ci/build.py"),
        ("--extra timm", "--extra tim", "no extra tim"),
        ("--extra ffcv", "", "no ffcv"),
        ("libopencv-dev", "", "no libopencv-dev"),
        ("USER ray", "USER root", "root"),
        ("HOME=/home/ray", "", "no HOME"),
        ("-c requirements.txt", "", "no versions"),
    ):
        assert words in "; ".join(docker_problems(swap(old, new)(text)))


# ---- all files


def markers(text: str) -> list[str]:
    """Names of the values that a user is told to change; an empty one stands before no value."""
    value = re.compile(r"^[ -]*(?:([\w.]+): \S.*?|echo 'export (\w+)=.*?) +# change: \S")
    lines = [line for line in text.splitlines() if "# change" in line]
    found = [value.match(line) for line in lines]
    return [(match[1] or match[2]) if match else "" for match in found]


def leaks(text: str) -> list[str]:
    """Paths of this machine, credentials, and hosts of package registries."""
    here = f"{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}/"
    forbidden = (
        here,
        r"AKIA[0-9A-Z]{16}|[0-9a-f]{32,}|BEGIN [A-Z ]*PRIVATE KEY",
        r"pypi|pythonhosted|index-url|/simple\b",
    )
    return [found[0] for words in forbidden for found in re.finditer(words, text)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_asks_for_what_differs_and_gives_nothing_away(name: str) -> None:
    text = (CLUSTER / name).read_text()
    assert markers(text) == CHANGES.get(name, [])
    assert len(markers(text)) <= 4
    assert leaks(text) == []
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("  region: eu-west-1  # change: yours", "region"),
        ("    - email: a@b.example  # change: yours", "email"),
        ("  - echo 'export RAYCL_CACHE=/x' > ~/.raycl  # change: yours", "RAYCL_CACHE"),
        ("  region:  # change: yours", ""),
        ("# change: yours", ""),
        ("  region: eu-west-1  # change", ""),
        ("max_workers: 2  # change: as you like", "max_workers"),
    ],
)
def test_markers_are_read(line: str, name: str) -> None:
    assert markers(line) == [name]
    assert (name in {field for fields in CHANGES.values() for field in fields}) == (
        name not in ("", "max_workers")
    )


@pytest.mark.parametrize(
    "text",
    [f"cd {ROOT}", "token: " + "0a" * 32, "pip install --index-url x", "AKIA" + "A1" * 8],
)
def test_leaks_are_found(text: str) -> None:
    assert leaks(text)
