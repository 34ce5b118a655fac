"""raycl's loader against others: speed, quality, memory, and the way through Ray.

    python jobs/bench_loader.py [--only speed ...] [--rounds 5] [--images 2048] [--json FILE]

All sides read the same photographs (about 500x375, JPEG quality 90) and give two 224 crops of each,
scale (0.2, 1), ratio (3/4, 4/3), mirrored half of the time, as uint8. They run in turns, each turn
in a process of its own, with the files in the page cache; a side's first pass over the files is not
counted. Threads are those that decode: threads of raycl and FFCV, worker processes of a DataLoader,
CPUs of Ray. FFCV's decoder makes one view, so its two views are two pipelines over one field, the
fastest that its Loader does with images of different sizes. Peers that are not installed are left
out with a line that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from raycl.beton import IntField, RGBImageField, Writer
from raycl.data.loader import Loader
from raycl.data.order import Order, Pages
from raycl.data.plan import Plan, Source, from_table, local_bundles
from raycl.data.shards import Shards
from raycl.report.machine import versions, write_figures
from raycl.views.image import Crop, ImageView

SIZE, BATCH, SCALE, RATIO = 224, 64, (0.2, 1.0), (3 / 4, 4 / 3)
VIEW = ImageView(size=SIZE, interpolation="bilinear", crop=Crop(scale=SCALE, ratio=RATIO))
QUALITY, NOISE = 90, 3.5  # the noise of a sensor: it brings the files to some 55 KB
TARS = 4  # as many as a DataLoader has workers, or more
COPIES = 8  # of the shard, where an epoch has to be long
SHARE_OF_STORE = 10  # times as large as the object store is the data set that must not spill
STORE = 200_000_000  # bytes of it
PEERS = ("raycl", "ffcv", "torch", "torchvision", "ray", "webdataset", "lightly", "simplejpeg",
         "opencv-python", "pillow", "numpy", "numba", "pyarrow")  # fmt: skip

Pairs = Iterable[tuple[Any, Any]]  # two views of a batch: (N, S, S, 3) or (N, 3, S, S) uint8
Start = Callable[[], Pairs]  # begins a pass over all files


@dataclass(frozen=True)
class Row:
    """One figure; `bar` is what it must reach, or stay under where `most` is set."""

    section: str
    what: str
    value: float
    unit: str
    threads: int | None = None
    bar: float | None = None
    most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.most else self.value >= self.bar


@dataclass(frozen=True)
class Files:
    """The same photographs in every form that a side reads."""

    folder: Path
    images: int

    @property
    def jpegs(self) -> Path:
        return self.folder / "jpegs"

    @property
    def paths(self) -> list[str]:
        return sorted(str(path) for path in self.jpegs.glob("*/*.jpg"))

    @property
    def jpg(self) -> Path:
        return self.folder / "jpg.beton"

    @property
    def uniform(self) -> Path:
        return self.folder / "uniform.beton"

    @property
    def raw(self) -> Path:
        return self.folder / "raw.beton"

    def copies(self, count: int = COPIES) -> list[Path]:
        """The shard, linked under several names."""
        folder = self.folder / "many"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{copy:03}.beton" for copy in range(count)]
        for path in paths:
            if not path.exists():
                path.hardlink_to(self.jpg)
        return paths

    @property
    def tars(self) -> list[str]:
        return [str(self.folder / f"{index}.tar") for index in range(TARS)]


# The photographs


@cache
def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def picture(index: int, uniform: bool = False) -> np.ndarray:
    """A photograph (H, W, 3) uint8 that is like no other: part of a real one, seen differently."""
    random = np.random.default_rng(index)
    photo = Image.fromarray(random.choice(photographs()))
    width, height = (int(side * random.uniform(0.5, 0.9)) for side in photo.size)
    left, top = (
        int(random.uniform(0, a - b)) for a, b in zip(photo.size, (width, height), strict=True)
    )
    size = (random.integers(480, 521), random.integers(360, 391))
    part = photo.resize(
        (500, 375) if uniform else size,
        Image.Resampling.BICUBIC,
        (left, top, left + width, top + height),
    )
    pixels = np.asarray(part, np.float32)[:, :: random.choice([-1, 1])] / 255
    pixels = pixels ** random.uniform(0.7, 1.4) * random.uniform(0.85, 1.15, 3)
    pixels = pixels * 255 + random.normal(0, NOISE, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def jpeg(index: int, uniform: bool = False) -> bytes:
    import simplejpeg

    pixels = np.ascontiguousarray(picture(index, uniform))
    return simplejpeg.encode_jpeg(pixels, QUALITY, colorsubsampling="420")


def make(folder: Path, images: int) -> Files:
    """Makes the files once; a folder that is complete says so."""
    files = Files(folder / str(images), images)
    done = files.folder / "done"
    if done.exists():
        return files
    (files.jpegs / "0").mkdir(parents=True, exist_ok=True)
    fields = {"image": RGBImageField("jpg"), "label": IntField()}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool())
        betons = [stack.enter_context(Writer(p, fields)) for p in (files.jpg, files.uniform)]
        raw = stack.enter_context(Writer(files.raw, fields | {"image": RGBImageField("raw")}))
        tars = [stack.enter_context(tarfile.open(path, "w")) for path in files.tars]
        every = pool.imap(jpeg, range(images), 8)
        alike = pool.imap(partial(jpeg, uniform=True), range(images), 8)
        for index, contents in enumerate(zip(every, alike, strict=True)):
            for writer, content in zip(betons, contents, strict=True):
                writer.write({"image": content, "label": index})
            (files.jpegs / "0" / f"{index:06}.jpg").write_bytes(contents[0])
            member = tarfile.TarInfo(f"{index:06}.jpg")
            member.size = len(contents[0])
            tars[index % TARS].addfile(member, io.BytesIO(contents[0]))
            if index < images // 4:  # pixels are ten times as large
                raw.write({"image": decoded(contents[0]), "label": index})
    done.touch()
    return files


def decoded(content: bytes) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(content)


# The sides


def raycl_loader(data: Path | list[Path], threads: int, batch: int = BATCH) -> Loader:
    """The loader of a run on one worker, with two views and no colour."""
    shards = Shards(data)
    plan = Plan({"images": Source(shards, Order(len(shards), 1, batch), ("image",))})

    def bundles(epoch: int, start: int) -> Any:
        return local_bundles(plan, [0], epoch, start)

    views = {"images": {"view1": VIEW, "view2": VIEW}}
    return Loader(plan, views, [0], bundles, torch.device("cpu"), threads=threads)


def host_batches(loader: Loader, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches before they go to the device: uint8 crops, boxes, flips."""
    return (host.batch for host in loader.host(epoch))


def raycl(data: Path, threads: int) -> Start:
    loader, epochs = raycl_loader(data, threads), itertools.count()
    return lambda: ((b["view1"], b["view2"]) for b in host_batches(loader, next(epochs)))


def ffcv(data: Path, threads: int) -> Start:
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip

    def view() -> PipelineSpec:
        decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE, RATIO)
        return PipelineSpec("image", decoder, [RandomHorizontalFlip(0.5)])

    pipelines = {"image": None, "label": None, "view1": view(), "view2": view()}
    return Loader(str(data), BATCH, threads, True, OrderOption.RANDOM, pipelines=pipelines).__iter__


def ffcv_once(data: Path, threads: int) -> Start:
    """Decodes once, which FFCV can where all images have one size."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip
    from ffcv.transforms.random_resized_crop import RandomResizedCrop

    decoder = SimpleRGBImageDecoder()

    def cuts() -> list[Any]:
        return [RandomResizedCrop(SCALE, RATIO, SIZE), RandomHorizontalFlip(0.5)]

    pipelines = {
        "image": None,
        "label": None,
        "view1": PipelineSpec("image", decoder, cuts()),
        "view2": PipelineSpec(decoder, None, cuts()),
    }
    return Loader(str(data), BATCH, threads, True, OrderOption.RANDOM, pipelines=pipelines).__iter__


class Images(torch.utils.data.Dataset):
    def __init__(self, paths: list[str], views: Callable[[str], tuple[Any, Any]]) -> None:
        self.paths, self.views = paths, views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.views(self.paths[index])


def data_loader(data: Any, threads: int, shuffle: bool = True) -> Start:
    return torch.utils.data.DataLoader(
        data,
        BATCH,
        shuffle,
        num_workers=threads,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",
    ).__iter__


def v2_crop() -> Callable[[torch.Tensor], torch.Tensor]:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def pil_crop() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(SIZE, SCALE, RATIO)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def torchvision_once(files: Files, threads: int) -> Start:
    from torchvision.io import decode_jpeg, read_file

    crop = v2_crop()

    def views(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        image = decode_jpeg(read_file(path))
        return crop(image), crop(image)

    return data_loader(Images(files.paths, views), threads)


def torchvision_pil(files: Files, threads: int) -> Start:
    crop = pil_crop()

    def views(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(path) as image:
            image = image.convert("RGB")
        return crop(image), crop(image)

    return data_loader(Images(files.paths, views), threads)


def ray_data(files: Files, threads: int) -> Start:
    import ray.data

    start_ray(threads)
    crop = v2_crop()

    def views(row: dict[str, Any]) -> dict[str, Any]:
        image = torch.from_numpy(row["image"]).permute(2, 0, 1)
        return {"view1": crop(image).numpy(), "view2": crop(image).numpy()}

    data = ray.data.read_images(str(files.jpegs), mode="RGB").map(views)

    def begin() -> Pairs:
        for batch in data.iter_batches(batch_size=BATCH, batch_format="numpy", drop_last=True):
            yield batch["view1"], batch["view2"]

    return begin


def webdataset(files: Files, threads: int) -> Start:
    import webdataset as wds

    crop = pil_crop()
    data = wds.WebDataset(files.tars, shardshuffle=TARS).shuffle(256).decode("pil")
    data = data.to_tuple("jpg").map(lambda sample: (crop(sample[0]), crop(sample[0])))
    return data_loader(data, threads, shuffle=False)


def lightly(files: Files, threads: int) -> Start:
    from lightly.data import LightlyDataset
    from lightly.transforms.multi_view_transform import MultiViewTransform

    data = LightlyDataset(str(files.jpegs), transform=MultiViewTransform([pil_crop(), pil_crop()]))
    start = data_loader(data, threads)
    return lambda: (batch[0] for batch in start())


def decode_only(files: Files, threads: int) -> Start:
    """simplejpeg alone, from memory to memory: what no loader on the CPU can pass by much."""
    from simplejpeg import decode_jpeg

    contents = [Path(path).read_bytes() for path in files.paths]
    spans = [contents[first::threads] for first in range(threads)]
    empty = np.zeros((BATCH, SIZE, SIZE, 3), np.uint8)

    def decode(span: list[bytes]) -> None:
        buffer = np.empty((391 * 521 * 3,), np.uint8)
        for content in span:
            decode_jpeg(content, buffer=buffer)

    def begin() -> Pairs:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, spans))
        return itertools.repeat((empty, empty), len(contents) // BATCH)

    return begin


SIDES: dict[str, tuple[Callable[[Files, int], Start], str | None]] = {
    "raycl": (lambda files, threads: raycl(files.jpg, threads), None),
    "ffcv": (lambda files, threads: ffcv(files.jpg, threads), "ffcv"),
    "torchvision, decoded once": (torchvision_once, None),
    "torchvision, PIL": (torchvision_pil, None),
    "Ray Data, read_images": (ray_data, None),
    "WebDataset": (webdataset, "webdataset"),
    "lightly": (lightly, "lightly"),
    "decoding alone": (decode_only, None),
    "raycl, one size": (lambda files, threads: raycl(files.uniform, threads), None),
    "ffcv, one size, decoded once": (
        lambda files, threads: ffcv_once(files.uniform, threads),
        "ffcv",
    ),
    "raycl, raw": (lambda files, threads: raycl(files.raw, threads), None),
    "ffcv, raw": (lambda files, threads: ffcv(files.raw, threads), "ffcv"),
}


# Measuring


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a fresh process and returns its result."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_deliver, args=(results, function, arguments))
    process.start()
    process.join()
    if process.exitcode or results.empty():
        raise RuntimeError(f"{function.__name__}{arguments} failed")
    return results.get()


def _deliver(results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    results.put(function(*arguments))


def turn(side: str, files: Files, threads: int, seconds: float) -> tuple[float, float]:
    """Pairs/s of a side in whole passes of some seconds, and milliseconds of this process's CPU."""
    torch.set_num_threads(1)
    start = SIDES[side][0](files, threads)
    for views in start():
        for view in views:
            assert view.shape in ((BATCH, SIZE, SIZE, 3), (BATCH, 3, SIZE, SIZE))
            assert str(view.dtype).removeprefix("torch.") == "uint8"
    begin, cpu, pairs = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        pairs += sum(len(first) for first, _ in start())
    rate = pairs / (time.perf_counter() - begin)
    return rate, (time.process_time() - cpu) / pairs * 1000


def turns(
    sides: list[str], files: Files, threads: int, settings: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """What every side reached in each round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for round_, side in itertools.product(range(settings.rounds), sides):
        module = SIDES[side][1]
        if module and not find_spec(module):
            if not round_:
                print(f"{side}: left out, {module} is not installed", flush=True)
            continue
        result = alone(turn, side, files, threads, settings.seconds)
        print(f"round {round_}, {threads} threads, {side}: {result[0]:.0f} pairs/s", flush=True)
        found.setdefault(side, []).append(result)
    return found


def speed_rows(
    section: str,
    sides: list[str],
    bars: dict[str, float | None],
    files: Files,
    threads: int,
    settings: argparse.Namespace,
) -> Iterator[Row]:
    """Medians of all sides, and of the first one's ratio to each other, taken round by round."""
    found = turns(sides, files, threads, settings)
    own = [rate for rate, _ in found[sides[0]]]
    for side, results in found.items():
        rates, cpu = ([result[i] for result in results] for i in (0, 1))
        note = f"{min(rates):.0f} to {max(rates):.0f}; {statistics.median(cpu):.2f} ms CPU"
        yield Row(section, side, statistics.median(rates), "pairs/s", threads, note=note)
    for side, bar in bars.items():
        if side in found:
            ratio = statistics.median(a / b for a, (b, _) in zip(own, found[side], strict=True))
            yield Row(section, f"{sides[0]} / {side}", ratio, "x", threads, bar)


# Sections: each yields rows


def speed(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    bars: dict[str, float | None] = {
        "ffcv": 3.0,
        "torchvision, decoded once": 1.15,
        "torchvision, PIL": 3.0,
        "Ray Data, read_images": 5.0,
        "WebDataset": None,
        "lightly": None,
        "decoding alone": 0.7,
    }
    for threads in (1, 2):
        yield from speed_rows("speed", ["raycl", *bars], bars, files, threads, settings)
        same = ["raycl, one size", "ffcv, one size, decoded once"]
        yield from speed_rows("speed", same, {same[1]: None}, files, threads, settings)


def raw(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    for threads in (1, 2):
        sides = ["raycl, raw", "ffcv, raw"]
        yield from speed_rows("raw", sides, {sides[1]: 1.0}, files, threads, settings)


def quality(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    found = alone(psnr, files)
    for side, values in found.items():
        bar = 50.0 if side == "raycl" else None
        yield Row("quality", f"{side}, mean", float(np.mean(values)), "dB", bar=bar)
        fifth = float(np.percentile(values, 5))
        yield Row("quality", f"{side}, 5th percentile", fifth, "dB")
    if "ffcv" in found:
        for name, of in (("mean", np.mean), ("5th percentile", partial(np.percentile, q=5))):
            gain = float(of(found["raycl"]) - of(found["ffcv"]))
            yield Row("quality", f"raycl - ffcv, {name}", gain, "dB", bar=0.0)


def psnr(files: Files, images: int = 512) -> dict[str, np.ndarray]:
    """Of every crop against PIL's: decoded by PIL, cropped, resized bilinear with antialiasing."""
    from torchvision.io import decode_jpeg
    from torchvision.transforms.v2 import functional

    cut: dict[str, Callable[[bytes, list[int]], np.ndarray]] = {
        "torchvision": lambda content, box: functional.resized_crop(
            decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)),
            *box, [SIZE, SIZE], antialias=True,
        ).permute(1, 2, 0).numpy()
    }  # fmt: skip
    if find_spec("ffcv"):
        cut["ffcv"] = ffcv_crop
    loader = raycl_loader(files.jpg, 1)
    reader = Shards(files.jpg).reader(0)
    found: dict[str, list[float]] = {"raycl": [], **{side: [] for side in cut}}
    for batch in itertools.islice(host_batches(loader, 0), images // BATCH):
        for name, row in itertools.product(("view1", "view2"), range(BATCH)):
            content = bytes(reader.encoded(int(batch["id"][row]), "image"))
            box = batch[f"{name}.box"][row].tolist()
            top, left, height, width = box
            with Image.open(io.BytesIO(content)) as image:
                part = image.crop((left, top, left + width, top + height))
            expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            view = batch[name][row].numpy()
            if batch[f"{name}.flip"][row]:
                view = view[:, ::-1]
            found["raycl"].append(decibels(view, expected))
            for side, function in cut.items():
                found[side].append(decibels(function(content, box), expected))
    return {side: np.array(values) for side, values in found.items()}


def ffcv_crop(content: bytes, box: list[int]) -> np.ndarray:
    """What FFCV's decoder does, by the two functions that it calls."""
    from ffcv.libffcv import imdecode, resize_crop

    height, width = decoded(content).shape[:2]
    image = np.empty((height, width, 3), np.uint8)
    imdecode(np.frombuffer(content, np.uint8), image, height, width, height, width)
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    resize_crop(image, box[0], box[0] + box[2], box[1], box[1] + box[3], out)
    return out


def decibels(one: np.ndarray, two: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - two) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def through_ray(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    """Ray Data and streaming_split into a worker that does nothing, against the loader alone."""
    cores = len(os.sched_getaffinity(0))
    for threads, bar in ((1, 0.9), (cores, 0.8)):
        rates, shares, first, later = [], [], [], []
        for _ in range(settings.rounds):
            bare = alone(stream_alone, files, threads)
            seen = alone(stream_through_ray, files.copies(), threads)
            print(f"{threads} threads: alone {bare}, through Ray {seen}", flush=True)
            rates.append(seen["rate"])
            shares.append(seen["rate"] / bare["rate"])
            first.append(seen["first"])
            later.append(seen["later"])
        yield Row("ray", "raycl through Ray", statistics.median(rates), "pairs/s", threads)
        share = statistics.median(shares)
        yield Row("ray", "raycl through Ray / raycl alone", share, "x", threads, bar)
        seconds = statistics.median(first)
        yield Row("ray", "first batch of a group", seconds, "s", threads, 6.0, most=True)
        seconds = statistics.median(later)
        yield Row("ray", "first batch, later epochs", seconds, "s", threads, 1.0, most=True)


def stream(loader: Loader, epochs: int) -> dict[str, float]:
    """Pairs/s from the first batch of an epoch to its last, and the waits for first batches."""
    waits, rates = [], []
    for epoch in range(epochs):
        begin = time.perf_counter()
        batches = host_batches(loader, epoch)
        next(batches)
        reached = time.perf_counter()
        waits.append(reached - begin)
        pairs = sum(len(batch["id"]) for batch in batches)
        rates.append(pairs / (time.perf_counter() - reached))
    return {
        "rate": statistics.median(rates[1:]),
        "first": waits[0],
        "later": statistics.median(waits[1:]),
    }


def stream_alone(files: Files, threads: int) -> dict[str, float]:
    torch.set_num_threads(1)
    return stream(raycl_loader(files.copies(), threads), 2)


def stream_through_ray(
    data: list[Path], threads: int, epochs: int = 2, store: int = 0
) -> dict[str, float]:
    """The same in a worker of Ray Train, fed as by `raycl.train.trainer`."""
    import ray
    import ray.train.torch

    from raycl.data.source import PlannedData, warm_dataset
    from raycl.train.resources import decide

    start_ray(None, store)
    plan = raycl_loader(data, 1).plan
    share = decide(ray.cluster_resources()["CPU"], 0.0, [1], "cpu")

    def work(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        shard = ray.train.get_dataset_shard("train")
        loader = raycl_loader(data, threads)
        loader.bundles = lambda epoch, start: map(
            from_table,
            shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2),
        )
        Path(config["out"]).write_text(json.dumps(stream(loader, epochs)))
        ray.train.report({})

    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/figures.json"
        ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"out": out},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": share.worker_cpus}
            ),
            run_config=ray.train.RunConfig(storage_path=folder),
            datasets={"train": lambda: warm_dataset(plan)},
            dataset_config=PlannedData(plan, lambda: (0, 0), share.read_cpus),
        ).fit()
        found: dict[str, float] = json.loads(Path(out).read_text())
    if store:
        from ray._private.internal_api import memory_summary

        address = ray.get_runtime_context().gcs_address
        text = memory_summary(address, stats_only=True)
        found["spilled"] = float("Spilled" in text)
    return found


def start_ray(cpus: int | None, store: int = 0) -> None:
    """A local Ray for this process. Must come before Ray Train is imported by anyone."""
    import logging

    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    import ray
    import ray.data

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import it
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(
        "local",
        num_cpus=cpus,
        object_store_memory=store or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def order(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    for kind in ("shuffled", "pages"):
        seconds, memory = alone(seek, kind)
        yield Row("order", f"{kind}: seek and a batch", seconds, "s", bar=1.0, most=True)
        yield Row("order", f"{kind}: memory on top", memory, "MB", bar=200.0, most=True)


def seek(kind: str, samples: int = 10**9) -> tuple[float, float]:
    """Seconds to the ids of a step far into a run, and MB that it takes."""
    before = peak_memory()
    counts = np.full(-(-samples // 145), 145, np.int32)  # 8 MiB pages of 55 KB samples
    counts[-1] = samples - counts[:-1].sum(dtype=np.int64)
    begin = time.perf_counter()
    order = (
        Order(samples, 8, 256, draw=Pages(counts, 64))
        if kind == "pages"
        else Order(samples, 8, 256)
    )
    for lane in range(8):
        order.ids(7 * order.steps + order.steps // 2, lane)
    return time.perf_counter() - begin, peak_memory() - before


def memory(files: Files, settings: argparse.Namespace) -> Iterator[Row]:
    used = alone(epochs_of_memory, files)
    growth = max(used[2:]) - max(used[:2])
    note = " ".join(f"{value:.0f}" for value in used)
    yield Row("memory", "growth over ten epochs", growth, "MB", bar=30.0, most=True, note=note)
    size = files.jpg.stat().st_size
    data = files.copies(-(-SHARE_OF_STORE * STORE // size))
    total = size * len(data)
    seen = alone(stream_through_ray, data, 1, 2, STORE)
    note = f"an epoch of {total / 1e6:.0f} MB through a store of {STORE / 1e6:.0f} MB"
    yield Row("memory", "spilled", seen["spilled"], "", bar=0.0, most=True, note=note)


def epochs_of_memory(files: Files) -> list[float]:
    """Resident MB without the mapped files, after each of ten epochs."""
    loader = raycl_loader(files.jpg, 2)
    found = []
    for epoch in range(10):
        for _ in loader.epoch(epoch):
            pass
        found.append(status("RssAnon"))
    return found


def peak_memory() -> float:
    return status("VmHWM")


def status(name: str) -> float:
    """A figure of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1000


SECTIONS = {
    "speed": speed,
    "quality": quality,
    "raw": raw,
    "ray": through_ray,
    "order": order,
    "memory": memory,
}


def show(rows: list[Row]) -> None:
    table = Table("section", "figure", "threads", "value", "bar", "note")
    for row in rows:
        bar = "" if row.bar is None else f"{'<=' if row.most else '>='} {row.bar:g}"
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[row.reached]
        value = f"{row.value:.0f}" if row.value >= 100 else f"{row.value:.2f}"
        table.add_row(
            row.section, row.what, str(row.threads or ""), f"{value} {row.unit}", f"{bar} {mark}",
            row.note,
        )  # fmt: skip
    console = Console(width=150)
    console.print(table)
    console.print(", ".join(f"{k} {v or 'absent'}" for k, v in versions(PEERS).items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn, at least")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "raycl-bench"))
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    settings = parser.parse_args()
    files = make(settings.folder, settings.images)
    for path in files.folder.glob("*.*"):
        path.read_bytes()  # into the page cache
    sizes = [os.path.getsize(path) for path in files.paths]
    print(f"{files.images} JPEGs of {statistics.mean(sizes) / 1000:.1f} KB in {files.folder}")
    rows = [row for name in settings.only for row in SECTIONS[name](files, settings)]
    show(rows)
    if settings.json:
        figures = [asdict(row) | {"reached": row.reached} for row in rows]
        write_figures(settings.json, figures, PEERS)


if __name__ == "__main__":
    main()
