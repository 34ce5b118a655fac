"""What a worker sees does not depend on where the shards lie, nor on how the network behaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raycl.data import index
from raycl.data.plan import from_table
from raycl.data.shards import Shards
from raycl.data.source import dataset
from raycl.errors import RayclError
from tests.conftest import Cluster
from tests.data.conftest import SECRET, Bucket
from tests.data.servers import Proxy, web
from tests.data.test_loader import loader_of, photos
from tests.data.test_plan import plan_of


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_batches_from_a_bucket_are_those_from_a_directory(
    tmp_path: Path, bucket: Bucket, cache_gb: float
) -> None:
    local = photos(tmp_path / "set")
    for path in sorted((tmp_path / "set").glob("*.beton")):
        index.write(path)
    shards = Shards(bucket.upload(tmp_path / "set"), cache_gb=cache_gb)
    bucket.proxy.faults.extend(["500", "cut", "", "500", "500", "500"])
    for epoch in range(2):
        batches = zip(loader_of(local).epoch(epoch), loader_of(shards).epoch(epoch), strict=True)
        for one, two in batches:
            assert one.keys() == two.keys()
            for name, value in one.items():
                assert torch.equal(value, two[name])
    assert len(bucket.proxy.faults) < 6


def test_credentials_that_expire_in_a_run(tmp_path: Path, bucket: Bucket) -> None:
    photos(tmp_path / "set")
    shards = Shards(bucket.upload(tmp_path / "set"))
    bucket.proxy.always = "expired"
    with pytest.raises(RayclError, match=r"have expired .*AWS_PROFILE") as error:
        list(loader_of(shards).epoch(0))
    assert SECRET not in str(error.value)


def test_read_tasks_of_ray_read_remote_shards(tmp_path: Path, cluster: Cluster) -> None:
    local = photos(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"shards": ["0.beton", "1.beton"]}))
    with web(tmp_path) as address, Proxy(address).running() as proxy:
        shards = Shards(proxy.url, cache_gb=0)
        proxy.faults.extend(["500", "cut"])
        data = dataset(plan_of(shards), read_cpus=0.5)
        tables = list(data.iter_batches(batch_size=None, batch_format="pyarrow"))
        assert not proxy.faults
    images = {}
    for columns in map(from_table, tables):
        images |= dict(zip(columns["id"].tolist(), map(bytes, columns["image"]), strict=True))
    images.pop(-1, None)
    assert len(images) == 40
    expected = local.payloads(np.arange(40), ["image"])["image"]
    assert [images[i] for i in range(40)] == [bytes(image) for image in expected]
