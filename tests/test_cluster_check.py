"""`raycl cluster check`: what files offer, where recipes fit, what it costs, what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl import recipe as recipes
from raycl.cli import main
from raycl.cluster.check import Answer, check
from raycl.cluster.cost import prices
from raycl.cluster.nodes import NodeType, Offer, read
from raycl.cluster.placement import (
    Bundle,
    Needs,
    matches,
    needs_of,
    nodes_of,
    place,
    totals,
    trials_of,
)
from raycl.cluster.words import lines
from raycl.errors import RayclError
from tests.conftest import ROOT, Cluster
from tests.test_cluster_files import changed

CLUSTER = ROOT / "cluster"
AWS, ONPREM, KUBERAY = CLUSTER / "aws.yaml", CLUSTER / "onprem.yaml", CLUSTER / "kuberay"
TYPES = "available_node_types"
WORKERS = ("spec", "workerGroupSpecs", 0)
GPU, CPU = (TYPES, "gpu"), (TYPES, "cpu")
WIDE = ["trainer.lanes=64", "trainer.workers=64"]
DECODED = ["data.decode_on=cluster", "data.decode_nodes.tier=cpu"]


def ask(file: Path, *changes: str, recipe: str = "simclr/imagenet", **own: float) -> Answer:
    return check(recipes.load(recipe, changes), read(file), prices() | own)


def said(answer: Answer) -> str:
    return "\n".join(lines(answer))


def edited(folder: Path, file: Path, changes: dict[tuple[Any, ...], Any]) -> Path:
    """A copy of a file with other values at some paths; `...` as the value leaves a field out."""
    config = yaml.safe_load(file.read_text())
    for path, value in changes.items():
        config = changed(config, path, value)
    copied = folder / file.name
    copied.write_text(yaml.safe_dump(config, sort_keys=False))
    return copied


# ---- what raycl's own files offer


@pytest.mark.parametrize(
    ("file", "head", "gpu", "cpu", "gpu_cpus"),
    [
        ("aws.yaml", 0.192, 5.672, 0.9492, 48),
        ("gcp.yaml", 0.1942, 4.0024, 0.7769, 48),
        ("azure.yaml", 0.226, 4.352, 0.904, 64),
        ("kuberay/raycluster.yaml", None, None, None, 46),
        ("kuberay/rayjob.yaml", None, None, None, 46),
    ],
)
def test_eight_gpu_workers_take_two_of_our_nodes(
    file: str, head: Any, gpu: Any, cpu: Any, gpu_cpus: int
) -> None:
    answer = ask(CLUSTER / file)
    assert answer.fits and not answer.reasons
    assert [(t.name, t.least, t.most) for t in answer.types] == [
        ("head", 1, 1), ("gpu", 0, 8), ("cpu", 0, 4)
    ]  # fmt: skip
    assert [(t.cpus, t.gpus) for t in answer.types][:2] == [(0, 0), (gpu_cpus, 4)]
    assert [t.labels for t in answer.types] == [{"tier": t.name} for t in answer.types]
    assert answer.prices == {"head": head, "gpu": gpu, "cpu": cpu}
    (group,) = answer.groups
    assert (group.workers, group.nodes) == (8, {"head": 1, "gpu": 2})
    assert group.on == {"workers": {"gpu": 2}, "reading": {"gpu": 1}}
    assert "fits: 8 workers of 1 GPU and 0.9 CPUs on 2 x gpu" in said(answer)
    if head is None:
        assert answer.most.without == ["head", "gpu", "cpu"]
        assert "cost an hour: unknown; no price is known of head, gpu, cpu" in said(answer)
        return
    assert [t.spot for t in answer.types] == [False, True, True]
    assert answer.idle.dollars == head
    assert group.cost.dollars == pytest.approx(head + 2 * gpu, abs=1e-3)
    assert answer.most.dollars == pytest.approx(head + 8 * gpu + 4 * cpu, abs=1e-3)
    assert f"with this recipe ${head + 2 * gpu:.2f}" in said(answer)
    assert "on demand; spot nodes (gpu, cpu) cost less" in said(answer)


@pytest.mark.parametrize("name", sorted(recipes.packaged()))
def test_every_packaged_recipe_fits_our_cluster(name: str) -> None:
    answer = ask(AWS, recipe=name)
    assert answer.fits, answer.reasons
    assert all(group.on["workers"] == {"gpu": -(-group.workers // 4)} for group in answer.groups)


def test_hosts_of_which_a_file_says_nothing() -> None:
    answer = ask(ONPREM, "trainer.device=cuda", *DECODED, worker=2.0)
    assert answer.fits is None and answer.unknown == ["worker"] and not answer.groups
    assert [(t.name, t.cpus, t.most) for t in answer.types] == [("head", 0, 1), ("worker", None, 2)]
    says = said(answer)
    assert "8 workers of 1 GPU and 0.9 CPUs each" in says
    assert "1 to 4 decoding actors of 0.5 CPUs on nodes with the labels {tier: cpu}" in says
    assert "reading tasks of 0.5 CPUs" in says and "does not say which CPUs" in says
    assert answer.most.dollars == 4 and answer.most.without == ["head"]
    assert "where there are 8 of them" in said(ask(ONPREM))
    assert "8 workers of 0.9 CPUs each" in said(ask(ONPREM, "trainer.device=cpu"))


def test_one_host_alone_has_no_other_to_read_for_it(tmp_path: Path) -> None:
    alone = edited(tmp_path, ONPREM, {("provider", "worker_ips"): ["192.0.2.2"]})
    assert "8 workers of 1 CPU each" in said(ask(alone, "trainer.device=cpu"))


def test_types_without_resources_are_not_guessed(tmp_path: Path) -> None:
    silent = edited(tmp_path, AWS, {(*CPU, "resources"): {}})
    assert ask(silent).unknown == ["cpu"]
    # EC2 tells Ray how many GPUs there are.
    silent = edited(tmp_path, AWS, {(*GPU, "resources"): {"CPU": 48}})
    assert ask(silent).unknown == ["gpu"]


# ---- what Ray itself makes of the same files


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {("max_workers",): ...},
        {(*GPU, "max_workers"): ...},
        {(TYPES, "head", "max_workers"): 3, (TYPES, "head", "min_workers"): 1},
        {(*GPU, "min_workers"): 2, ("max_workers",): 20},
    ],
)
def test_bounds_of_ray_up_are_ray_s(changes: dict[tuple[Any, ...], Any], tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    file = edited(tmp_path, AWS, changes)
    theirs = prepare_config(yaml.safe_load(file.read_text()))
    ours = read(file)
    assert ours.nodes == theirs["max_workers"] + 1  # the head
    for t in ours.types:
        bounds = theirs[TYPES][t.name]
        assert (t.least - t.head, t.most - t.head) == (bounds["min_workers"], bounds["max_workers"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {("rayStartParams",): {"num-cpus": "3", "num-gpus": "1"}},
        {("resources",): {"CPU": "1500m", "GPU": "2"}, ("rayStartParams",): {"num-cpus": "3"}},
        {("template", "spec", "containers", 0, "resources"): {"requests": {"cpu": "2500m"}}},
        {("template", "spec", "containers", 0, "resources", "limits", "cpu"): 7.5},
        {("labels",): {"tier": "other", "zone": "a"}},
        {("labels",): ..., ("rayStartParams",): {"labels": "tier=gpu"}},
        {("minReplicas",): 1, ("maxReplicas",): 5},
    ],
)
def test_groups_of_kuberay_are_ray_s(changes: dict[tuple[Any, ...], Any], tmp_path: Path) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _generate_available_node_types_from_ray_cr_spec,
    )

    changes = {(*WORKERS, *path): value for path, value in changes.items()}
    file = edited(tmp_path, KUBERAY / "raycluster.yaml", changes)
    theirs = _generate_available_node_types_from_ray_cr_spec(
        yaml.safe_load(file.read_text())["spec"]
    )
    ours = read(file).types
    assert len(ours) == len(theirs) == 3
    for t, group in zip(ours, theirs.values(), strict=True):
        assert t.cpus == group["resources"]["CPU"]
        assert t.gpus == group["resources"].get("GPU", 0)
        assert t.labels == group["labels"]
        bounds = group["min_workers"], group["max_workers"]
        assert (t.least - t.head, t.most - t.head) == bounds


def test_without_an_autoscaler_there_are_the_replicas(tmp_path: Path) -> None:
    fixed = {("spec", "enableInTreeAutoscaling"): False, (*WORKERS, "replicas"): 2}
    fixed[(*WORKERS, "rayStartParams")] = {"labels": '"pool=a,zone=b"'}
    offer = read(edited(tmp_path, KUBERAY / "raycluster.yaml", fixed))
    assert [(t.least, t.most) for t in offer.types] == [(1, 1), (2, 2), (0, 0)]
    assert offer.types[1].labels == {"tier": "gpu", "pool": "a", "zone": "b"}
    answer = ask(tmp_path / "raycluster.yaml", "trainer.device=cuda", "trainer.lanes=16",
                 "trainer.workers=16")  # fmt: skip
    assert "raise spec.workerGroupSpecs.gpu.replicas to 4," in said(answer)
    assert not ask(tmp_path / "raycluster.yaml").notes  # nothing has to grow first


def test_a_manifest_may_stand_among_others(tmp_path: Path) -> None:
    storage, cluster = (KUBERAY / n for n in ("storage.yaml", "raycluster.yaml"))
    both = tmp_path / "all.yaml"
    both.write_text(f"{storage.read_text()}\n---\n{cluster.read_text()}\n---\n")
    assert read(both).types == read(cluster).types


# ---- why something does not fit

FEW = "has room for at most"
MISTAKES = [
    (
        {},
        [*WIDE, "trainer.device=cuda"],
        f"trainer.workers: 64 workers need a GPU each, FILE {FEW} 32 (8 x gpu of 4): raise "
        "available_node_types.gpu.max_workers to 16 and max_workers to 20, or take fewer workers",
    ),
    (  # one of the bounds alone
        {("max_workers",): 1},
        ["trainer.device=cuda"],
        f"trainer.workers: 8 workers need a GPU each, FILE {FEW} 4 (1 x gpu of 4): raise "
        "max_workers to 12, or take fewer workers",
    ),
    (
        {(*GPU, "max_workers"): 1},
        ["trainer.device=cuda"],
        f"{FEW} 4 (1 x gpu of 4): raise available_node_types.gpu.max_workers to 2, or",
    ),
    (
        {(*GPU, "max_workers"): 0},
        ["trainer.device=cuda"],
        f"{FEW} 0: raise available_node_types.gpu.max_workers to 2, or",
    ),
    (  # the CPUs beside the GPUs are what is short
        {(*GPU, "resources"): {"CPU": 2, "GPU": 4}, (*GPU, "max_workers"): 3},
        ["trainer.device=cuda"],
        f"8 workers need 1 GPU and 0.9 CPUs each, FILE {FEW} 6 (3 x gpu of 2): raise "
        "available_node_types.gpu.max_workers to 4, or",
    ),
    (  # no worker spans nodes, so a share of all CPUs may have no place
        {(*GPU, "max_workers"): 0, (*CPU, "max_workers"): 3, (*CPU, "resources"): {"CPU": 1}},
        ["trainer.workers=4", "trainer.device=cpu"],
        f"trainer.workers: 4 workers need 0.675 CPUs each, FILE {FEW} 3 (3 x cpu of 1): raise "
        "available_node_types.cpu.max_workers to 4, or",
    ),
    (
        {(*GPU, "resources"): {"CPU": 48, "GPU": 0}},
        ["trainer.device=cuda"],
        "trainer.device: 8 workers need a GPU each, and FILE has no type of node with 1 GPU and "
        "0.9 CPUs: give it one, or take trainer.device=cpu",
    ),
    (
        {(*GPU, "resources"): {"CPU": 0, "GPU": 4}},
        ["trainer.device=cuda"],
        "has no type of node with 1 GPU and 0.9 CPUs",
    ),
    (
        {(*GPU, "max_workers"): 0, (*CPU, "max_workers"): 0},
        ["trainer.device=cpu"],
        "trainer.workers: FILE has 0 CPUs, too few to share out to 8 workers: let there be more",
    ),
    (
        {},
        ["data.decode_on=cluster", "data.decode_nodes.tier=cpu2"],
        "data.decode_nodes: {tier: cpu2} matches no node of FILE that has CPUs; there are "
        "{tier: gpu} (gpu), {tier: cpu} (cpu)",
    ),
    (
        {},
        ["data.decode_on=cluster", "data.decode_nodes.tier=head"],
        "data.decode_nodes: {tier: head} matches no node of FILE that has CPUs; there are",
    ),
    (
        {(*CPU, "max_workers"): 0},
        DECODED,
        "matches no node of FILE that has CPUs (available_node_types.cpu.max_workers is 0); there",
    ),
    (
        {},
        [*DECODED, "data.threads=40"],
        "data.threads: a decoding actor of 40 threads takes 20 CPUs, a node of FILE has at most "
        "16 (cpu): take at most 32 threads",
    ),
    (  # the workers take all nodes that there may be
        {("max_workers",): 2},
        DECODED,
        "data.decode_on: a decoding actor takes 0.5 CPUs beside the workers, and on FILE they "
        "leave none of cpu: raise max_workers to 12, take fewer workers, or data.decode_on=worker",
    ),
    (  # or all CPUs
        {(*GPU, "max_workers"): 0, (*CPU, "max_workers"): 1, (*CPU, "resources"): {"CPU": 2}},
        [*DECODED, "data.threads=3", "trainer.device=cpu"],
        "data.decode_on: a decoding actor takes 1.5 CPUs beside the workers, and on FILE they "
        "leave none of cpu: raise available_node_types.cpu.max_workers to 2, take",
    ),
    (
        {},
        ["data.decode_on=gpu", "trainer.device=cpu"],
        "data.decode_on: gpu was asked for, and workers have none on FILE: give worker or cluster",
    ),
    (
        {},
        ["trainer.wait_minutes=30"],
        "trainer.device: auto was given with trainer.wait_minutes",
    ),
]


@pytest.mark.parametrize(("changes", "overrides", "words"), MISTAKES)
def test_reasons(
    changes: dict[tuple[Any, ...], Any], overrides: list[str], words: str, tmp_path: Path
) -> None:
    file = edited(tmp_path, AWS, changes)
    answer = ask(file, *overrides)
    assert answer.fits is False and not answer.groups and not answer.notes
    (reason,) = answer.reasons
    assert words.replace("FILE", str(file)) in reason
    assert f"does not fit:\n  {reason}" in said(answer)


@pytest.mark.parametrize(("changes", "overrides", "words"), MISTAKES)
def test_a_raised_bound_is_enough_and_no_more_than_that(
    changes: dict[tuple[Any, ...], Any], overrides: list[str], words: str, tmp_path: Path
) -> None:
    (reason,) = ask(edited(tmp_path, AWS, changes), *overrides).reasons
    of_type = re.search(r"raise available_node_types\.(\w+)\.max_workers to (\d+)", reason)
    of_all = re.search(r"(?:raise|and) max_workers to (\d+)", reason)
    if not of_type and not of_all:
        assert "raise" not in words  # it is mended in another way
        return
    mended = dict(changes)
    if of_all:
        mended[("max_workers",)] = int(of_all[1])
    if of_type:
        mended[(TYPES, of_type[1], "max_workers")] = int(of_type[2])
        fewer = mended | {(TYPES, of_type[1], "max_workers"): int(of_type[2]) - 1}
        assert ask(edited(tmp_path, AWS, fewer), *overrides).fits is False
    assert ask(edited(tmp_path, AWS, mended), *overrides).fits


def test_each_thing_has_its_own_reason(tmp_path: Path) -> None:
    answer = ask(AWS, *WIDE, "trainer.device=cuda", "data.decode_on=cluster",
                 "data.decode_nodes.tier=none")  # fmt: skip
    assert [r.partition(":")[0] for r in answer.reasons] == ["trainer.workers", "data.decode_nodes"]


def test_the_threads_that_are_named_fit() -> None:
    assert ask(AWS, *DECODED, "data.threads=32").fits
    assert not ask(AWS, *DECODED, "data.threads=33").fits


def test_auto_goes_to_cpus_where_gpus_are_too_few() -> None:
    """As the trainer does; whoever pays for it should know."""
    answer = ask(AWS, *WIDE)
    assert answer.fits and answer.groups[0].on["workers"] == {"cpu": 4}
    assert "auto takes CPUs and no GPUs here; trainer.workers: 64 workers need a GPU each" in said(
        answer
    )


def test_an_elastic_group_is_answered_at_both_ends() -> None:
    elastic = ["trainer.lanes=64", "trainer.workers=[2,32]", "trainer.device=cuda"]
    answer = ask(AWS, *elastic)
    assert [(g.workers, g.on["workers"]) for g in answer.groups] == [
        (2, {"gpu": 1}),
        (32, {"gpu": 8}),
    ]
    assert "fits: 2 workers of 1 GPU and 0.9 CPUs on 1 x gpu, up to 32 on 8 x gpu" in said(answer)
    assert "with this recipe $5.86 to $45.57" in said(answer)
    answer = ask(AWS, *elastic, "trainer.workers=[2,64]")
    assert [g.workers for g in answer.groups] == [2, 32]
    assert any("64 workers need a GPU each" in note for note in answer.notes)
    assert not ask(AWS, *elastic, "trainer.workers=[64,64]").fits


def test_a_cluster_that_has_to_grow_is_waited_for(tmp_path: Path) -> None:
    assert "trainer.wait_minutes=30 and trainer.device=cuda wait for that" in said(ask(AWS))
    waiting = ["trainer.device=cuda", "trainer.wait_minutes=30"]
    assert ask(AWS, *waiting).notes == []
    there = edited(tmp_path, AWS, {(*GPU, "min_workers"): 2})
    answer = ask(there)
    assert answer.notes == [] and answer.idle == answer.groups[0].cost


def test_decoding_goes_where_its_labels_are() -> None:
    answer = ask(AWS, *DECODED)
    assert answer.groups[0].on["decoding"] == {"cpu": 1} and answer.actors == 4
    assert answer.groups[0].nodes == {"head": 1, "gpu": 2, "cpu": 1}
    assert "decoding by 1 to 4 actors of 0.5 CPUs, the first on 1 x cpu" in said(answer)
    # An actor of 30 threads takes 15 of a node's 16 CPUs.
    assert ask(AWS, *DECODED, "data.threads=30", "data.decode_actors=99").actors == 4
    assert ask(AWS, "data.decode_on=cluster").groups[0].on["decoding"] == {"gpu": 1}


def test_a_worker_that_reads_for_itself_needs_no_task() -> None:
    answer = ask(AWS, "data.read_on=worker")
    assert answer.needs.reading is None and "reading" not in answer.groups[0].on


@pytest.mark.parametrize(
    ("condition", "holds"),
    [("gpu", True), ("cpu", False), ("!cpu", True), ("!gpu", False), ("in(cpu, gpu)", True),
     ("!in(cpu, gpu)", False), ("in(cpu)", False)],
)  # fmt: skip
def test_selectors_of_labels(condition: str, holds: bool) -> None:
    assert matches({"tier": "gpu", "zone": "a"}, {"tier": condition}) is holds
    assert matches({}, {"tier": condition}) is condition.startswith("!")


# ---- placing

node_types = st.builds(
    lambda cpus, gpus, least, more, price: (cpus, gpus, least, least + more, price),
    st.integers(0, 9), st.integers(0, 4), st.integers(0, 1), st.integers(0, 3), st.integers(1, 9),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(node_types, min_size=1, max_size=3),
    st.integers(0, 6),
    st.sampled_from([0.1, 0.4, 0.9, 1.0]),
    st.integers(0, 1),
    st.integers(1, 20),
)
def test_workers_are_placed_where_they_can_be(
    types: list[tuple[int, int, int, int, int]], spare: int, cpus: float, gpus: int, workers: int
) -> None:
    """Against a count that packs nothing: the nodes that hold most, as many as there may be."""
    offered = [
        NodeType(str(i), None, c, g, {}, least, most, "")
        for i, (c, g, least, most, _) in enumerate(types)
    ]
    offer = Offer("", offered, sum(t.least for t in offered) + spare)
    each = {
        t.name: min(round(t.cpus * 10) // round(cpus * 10), t.gpus if gpus else 99) for t in offered
    }
    extra = sorted((each[t.name] for t in offered for _ in range(t.most - t.least)), reverse=True)
    room = sum(each[t.name] * t.least for t in offered) + sum(extra[:spare])
    needs = Needs([workers], Bundle("workers", cpus, gpus), None, None, 1)
    running = place(needs, offer, lambda t: types[int(t.name)][4], workers)
    assert bool(running) == (workers <= room)
    if running:
        assert sum(node.holds["workers"] for node in running) == workers
        assert all(0 <= node.holds["workers"] <= each[node.type.name] for node in running)
        assert len(running) <= offer.nodes
        for t in offered:
            assert t.least <= sum(node.type == t for node in running) <= t.most


def test_the_cheapest_nodes_for_what_is_left() -> None:
    large = NodeType("large", None, 8, 4, {}, 0, 9, "")
    small = NodeType("small", None, 4, 1, {}, 0, 9, "")
    needs = Needs([5], Bundle("workers", 0.9, 1), None, None, 1)
    costs = {"large": 4.0, "small": 1.5}
    running = place(needs, Offer("", [large, small]), lambda t: costs[t.name], 5)
    assert [node.type.name for node in running] == ["large", "small"]
    running = place(needs, Offer("", [large, small]), lambda t: None, 5)
    assert [node.type.name for node in running] == ["large", "small"]


# ---- what is asked for is what raycl asks Ray for


def two_cores(folder: Path) -> Path:
    """A file that describes the tests' own cluster: a head with two CPUs."""
    head = {"node_config": {}, "resources": {"CPU": 2, "GPU": 0}}
    file = folder / "two.yaml"
    file.write_text(
        yaml.safe_dump(
            {"provider": {"type": "other"}, "head_node_type": "head", TYPES: {"head": head}}
        )
    )
    return file


@pytest.mark.parametrize("workers", ["1", "2", "[1, 4]"])
def test_workers_get_what_the_trainer_gives_them(
    workers: str, cluster: Cluster, tmp_path: Path
) -> None:
    from raycl.train.trainer import _share, through_ray

    recipe = recipes.load("simclr/imagenet", [f"trainer.workers={workers}"])
    theirs, needs = _share(recipe, 1.0), needs_of(recipe, *totals(read(two_cores(tmp_path))))
    assert (needs.worker.cpus, needs.worker.gpus) == (theirs.worker_cpus, theirs.worker_gpus)
    assert needs.reading and needs.reading.cpus == theirs.read_cpus
    for way in ("data.read_on=worker", "data.read_on=cluster", "data.engine=ffcv"):
        recipe = recipes.load("simclr/imagenet", [way])
        assert bool(needs_of(recipe, 2, 0, 1).reading) == through_ray(recipe, local=False)


@pytest.mark.parametrize(
    "changes",
    [[], ["tune.share.cpus=0.5"], ["tune.concurrent=1"], ["trainer.workers=2", "trainer.lanes=2"]],
)
def test_trials_get_what_the_sweep_gives_them(
    changes: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    from raycl.tune.search import _share
    from raycl.tune.space import space_of

    recipe = recipes.load("simclr/cifar10-sweep", changes)
    theirs = _share(space_of(recipe))
    ours = trials_of(recipe, nodes_of(read(two_cores(tmp_path))))
    assert ours and ours.count == theirs.fits and bool(ours.workers) == theirs.workers
    if not theirs.workers:
        assert {"CPU": ours.cpus, "GPU": ours.gpus} == theirs.resources


def test_trials_of_a_sweep() -> None:
    answer = ask(AWS, recipe="simclr/cifar10-sweep")
    assert "tune: 32 trials at a time, of 1 GPU and 12 CPUs each" in said(answer)
    # A node of 48 CPUs has room for three.
    answer = ask(AWS, "tune.share.cpus=14", recipe="simclr/cifar10-sweep")
    assert "tune: 24 trials at a time, of 1 GPU and 14 CPUs each" in said(answer)
    pairs = ["trainer.workers=2", "trainer.lanes=2"]
    answer = ask(AWS, *pairs, recipe="simclr/cifar10-sweep")
    assert "tune: 16 trials at a time, of 2 workers each" in said(answer)
    answer = ask(AWS, "tune.share.cpus=60", recipe="simclr/cifar10-sweep")
    assert answer.fits is False
    assert "tune.share: a trial is to have 1 GPU and 60 CPUs, and no node of" in said(answer)


# ---- prices


def test_own_prices_add_and_replace(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("m6i.xlarge: 1\ngpu: 2.5\n")
    answer = check(recipes.load("simclr/imagenet"), read(AWS), prices(own))
    assert answer.prices == {"head": 1.0, "gpu": 2.5, "cpu": 0.9492}
    assert answer.groups[0].cost.dollars == 6.0
    kuberay = read(KUBERAY / "raycluster.yaml")
    answer = check(recipes.load("simclr/imagenet"), kuberay, prices(own))
    assert "at least $0.00 without head (idle), with this recipe $5.00 without head" in said(answer)
    assert "no price is known of head, cpu: --prices FILE may name them" in said(answer)


def test_every_machine_of_our_files_has_a_price() -> None:
    for name in ("aws.yaml", "gcp.yaml", "azure.yaml"):
        assert {t.instance for t in read(CLUSTER / name).types} <= set(prices())


def test_an_unknown_machine_is_named(tmp_path: Path) -> None:
    config = (*GPU, "node_config", "InstanceType")
    answer = ask(edited(tmp_path, AWS, {config: "z9.huge"}))
    assert answer.prices["gpu"] is None and answer.groups[0].cost.without == ["gpu"]
    assert "with this recipe $0.19 without gpu, at most $3.99 without gpu" in said(answer)


@pytest.mark.parametrize(
    ("content", "words"),
    [("[1, 2]", "prices are lines such as"), ("gpu: free", "gpu: 'free' was given"),
     ("gpu: -1", "gpu: -1 was given"), ("gpu: true", "gpu: True was given"),
     ("gpu: [", "not valid YAML"), (None, "cannot be read: No such file")],
)  # fmt: skip
def test_wrong_prices(content: str | None, words: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    if content is not None:
        own.write_text(content)
    with pytest.raises(RayclError, match=re.escape(words)):
        prices(own)


# ---- files that are wrong


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("a: [", "not valid YAML"),
        ("just text", "neither a file of `ray up` (with provider) nor a KubeRay manifest"),
        ("kind: Pod\nspec: {}", "neither a file of `ray up`"),
        ("kind: RayJob\nspec: {clusterSelector: {}}", "neither a file of `ray up`"),
        ("provider: aws", "provider: 'aws' was given, allowed is a valid dictionary"),
        ("provider: {type: aws}", "head_node_type: 'nothing' was given"),
        (
            "provider: {type: aws}\nhead_node_type: x\navailable_node_types: {a: {}, b: {}}",
            "head_node_type: 'x' was given, it is one of available_node_types: a, b",
        ),
        (
            "provider: {type: aws}\nhead_node_type: a\n"
            "available_node_types: {a: {max_workers: many}}",
            "available_node_types.a.max_workers: 'many' was given, allowed is",
        ),
        ("kind: RayCluster\nspec: {}", "headGroupSpec: missing, this field is needed"),
    ],
)
def test_wrong_files(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RayclError, match=re.escape(words)):
        read(file)


def test_wrong_manifests(tmp_path: Path) -> None:
    source = KUBERAY / "raycluster.yaml"
    with pytest.raises(RayclError, match=r"gpu\.maxReplicas: missing, so there is no bound"):
        read(edited(tmp_path, source, {(*WORKERS, "maxReplicas"): ...}))
    limits = (*WORKERS, "template", "spec", "containers", 0, "resources", "limits")
    with pytest.raises(RayclError, match="gpu: CPUs: '4 cores' was given"):
        read(edited(tmp_path, source, {(*limits, "cpu"): "4 cores"}))
    twice = tmp_path / "twice.yaml"
    twice.write_text(f"{source.read_text()}\n---\n{source.read_text()}")
    with pytest.raises(RayclError, match="holds 2 Ray clusters, one is needed"):
        read(twice)


# ---- the command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["raycl", "cluster", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run(monkeypatch, str(AWS), "simclr/imagenet", "trainer.device=cuda") == 0
    shown = capsys.readouterr()
    assert re.search(r"gpu .* g5\.12xlarge .* 48 .* 4 .* \{tier: gpu\} .* 8 .* 5\.67", shown.out)
    assert "fits: 8 workers" in shown.out and not shown.err
    assert run(monkeypatch, str(ONPREM), "simclr/imagenet") == 0
    assert "unknown: needed are" in capsys.readouterr().out
    assert run(monkeypatch, str(AWS), "simclr/imagenet", *WIDE, "trainer.device=cuda") == 1
    assert "does not fit:" in capsys.readouterr().out
    for wrong, words in (
        (["/nowhere", "simclr/imagenet"], "/nowhere: cannot be read"),
        ([str(AWS), "simclr/imagnet"], "unknown recipe"),
        ([str(AWS), "simclr/imagenet", "--prices", "/nowhere"], "/nowhere: cannot be read"),
    ):
        assert run(monkeypatch, *wrong) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("file", [AWS, ONPREM, KUBERAY / "rayjob.yaml"], ids=lambda f: f.name)
def test_json_says_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(file), "simclr/imagenet", *DECODED, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    answer = ask(file, *DECODED)
    assert found["fits"] == answer.fits and found["notes"] == answer.notes
    assert [t["name"] for t in found["types"]] == [t.name for t in answer.types]
    assert [g["nodes"] for g in found["groups"]] == [g.nodes for g in answer.groups]
    assert found["most"]["dollars"] == answer.most.dollars


def test_no_ray_is_needed() -> None:
    code = (
        "import sys; from raycl.cluster.check import check; from raycl.cluster.cost import prices;"
        "from raycl.cluster.nodes import read; from raycl.recipe import load; from pathlib import "
        f"Path; check(load('simclr/imagenet'), read(Path({str(AWS)!r})), prices());"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
