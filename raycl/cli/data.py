"""`raycl data`: make, check and look at data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycl.data.staging import Written

app = typer.Typer(
    help="Make, check and look at data sets.", no_args_is_help=True, rich_markup_mode=None
)


class Importer(StrEnum):
    digits = "digits"
    imagefolder = "imagefolder"
    npz = "npz"
    cifar10 = "cifar10"
    webdataset = "webdataset"
    parquet = "parquet"
    video = "video"
    segmentation = "segmentation"
    detection = "detection"
    features = "features"
    graph = "graph"


class WriteMode(StrEnum):
    raw = "raw"
    jpg = "jpg"
    smart = "smart"
    proportion = "proportion"


# How images are stored, and who writes: the same for every command that writes a data set.
WriteModeOption = Annotated[WriteMode | None, typer.Option(help="How images are stored.")]
MaxResolution = Annotated[int | None, typer.Option(help="Scale longer sides down to this.")]
JpegQuality = Annotated[int, typer.Option(help="Of JPEGs that are encoded here.")]
SmartThreshold = Annotated[
    int | None, typer.Option(help="smart: JPEG above so many bytes of pixels.")
]
CompressProbability = Annotated[float, typer.Option(help="proportion: share of JPEGs.")]
ShardSamples = Annotated[int | None, typer.Option(help="Samples of one shard.")]
ShardSize = Annotated[int, typer.Option(help="Or MiB of one shard, about.", min=1)]
Places = Annotated[list[str], typer.Argument(metavar="SRC... OUT", help="Sources and target.")]
Writers = Annotated[int, typer.Option(help="Shards at a time; above 1 a local Ray.", min=1)]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster that writes.")]


@app.command("import")
def import_(
    kind: Annotated[Importer, typer.Argument(help="What the source is.")],
    places: Annotated[list[str], typer.Argument(metavar="[SRC] OUT", help="Source and target.")],
    limit: Annotated[int | None, typer.Option(help="Only the first samples of train.")] = None,
    write_mode: WriteModeOption = None,
    max_resolution: MaxResolution = None,
    jpeg_quality: JpegQuality = 90,
    smart_threshold: SmartThreshold = None,
    compress_probability: CompressProbability = 0.5,
    shard_samples: ShardSamples = None,
    shard_size: ShardSize = 256,
    image_column: Annotated[
        str | None, typer.Option(help="parquet: column; webdataset: ending of members.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The same of labels, or a key of .json members.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="graph: nodes of sub-graphs; by default large ones are cut.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="features, by raycl embed: CSV of class, 1 if unseen, numbers."),
    ] = None,
    workers: Writers = 1,
    address: Address = None,
) -> None:
    """Turn foreign data into .beton shards. Stopped, it goes on when it is run again."""
    from raycl.data.encode import Storage
    from raycl.data.sink import import_dataset
    from raycl.errors import RayclError

    expected = 1 if kind is Importer.digits else 2
    if len(places) != expected:
        need = "OUT" if expected == 1 else "SRC OUT"
        raise RayclError(
            f"data import {kind.value}: {need} is needed, given was {' '.join(places)}"
        )
    source = places[0] if expected == 2 else None
    storage = Storage(
        write_mode=write_mode.value if write_mode else None,
        max_resolution=max_resolution,
        jpeg_quality=jpeg_quality,
        smart_threshold=smart_threshold,
        compress_probability=compress_probability,
        shard_samples=shard_samples,
        shard_bytes=shard_size << 20,
    )
    with writing(kind.value) as progress:
        written = import_dataset(
            kind.value,
            source,
            places[-1],
            limit=limit,
            storage=storage,
            image_column=image_column,
            label_column=label_column,
            window=window,
            classes=classes,
            workers=workers,
            address=address,
            progress=progress,
        )
    _list_written(written)


@contextmanager
def writing(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for a data set that is being written; Ctrl-C says what is kept."""
    from rich.console import Console
    from rich.progress import Progress

    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except KeyboardInterrupt as interrupt:
        typer.echo(str(interrupt) or "interrupted; nothing was left behind", err=True)
        sys.exit(130)


def _list_written(written: list[Written]) -> None:
    for part in written:
        classes = f", {len(part.classes)} classes" if part.classes else ""
        size = f"{part.bytes / 1e6:.1f} MB"
        typer.echo(f"{part.path}: {part.samples} samples in {part.shards} shards, {size}{classes}")


@app.command()
def reshard(
    places: Places,
    shard_samples: ShardSamples = None,
    shard_size: ShardSize = 256,
    workers: Writers = 1,
    address: Address = None,
) -> None:
    """Cut data sets into shards of another size; nothing is decoded."""
    from raycl.data import reshape

    sources, out = _sources(places, "reshard")
    with writing("reshard") as progress:
        written = reshape.reshard(
            sources,
            out,
            shard_samples=shard_samples,
            shard_bytes=shard_size << 20,
            workers=workers,
            address=address,
            progress=progress,
        )
    _list_written([written])


@app.command()
def concat(places: Places, workers: Writers = 1, address: Address = None) -> None:
    """Put data sets together, shard by shard."""
    from raycl.data import reshape

    sources, out = _sources(places, "concat")
    with writing("concat") as progress:
        written = reshape.concat(sources, out, workers=workers, address=address, progress=progress)
    _list_written([written])


@app.command()
def convert(
    places: Places,
    write_mode: WriteModeOption = None,
    max_resolution: MaxResolution = None,
    jpeg_quality: JpegQuality = 90,
    smart_threshold: SmartThreshold = None,
    compress_probability: CompressProbability = 0.5,
    shard_samples: ShardSamples = None,
    shard_size: ShardSize = 256,
    workers: Writers = 1,
    address: Address = None,
) -> None:
    """Store the images of data sets otherwise: raw, as JPEG, smaller."""
    from raycl.data import reshape
    from raycl.data.encode import Storage

    sources, out = _sources(places, "convert")
    storage = Storage(
        write_mode=write_mode.value if write_mode else None,
        max_resolution=max_resolution,
        jpeg_quality=jpeg_quality,
        smart_threshold=smart_threshold,
        compress_probability=compress_probability,
        shard_samples=shard_samples,
        shard_bytes=shard_size << 20,
    )
    with writing("convert") as progress:
        written = reshape.convert(
            sources, out, storage, workers=workers, address=address, progress=progress
        )
    _list_written([written])


@app.command()
def saliency(
    places: Places,
    detector: Annotated[
        str, typer.Option(help="package.module:function, from an image to its map.")
    ] = "raycl.data.saliency:detect",
    field: Annotated[str, typer.Option(help="The field of the images.")] = "image",
    shard_samples: ShardSamples = None,
    shard_size: ShardSize = 256,
    workers: Writers = 1,
    address: Address = None,
) -> None:
    """Add a field mask to data sets: how salient every pixel of an image is."""
    from raycl.data import reshape

    sources, out = _sources(places, "saliency")
    with writing("saliency") as progress:
        written = reshape.saliency(
            sources,
            out,
            detector,
            field=field,
            shard_samples=shard_samples,
            shard_bytes=shard_size << 20,
            workers=workers,
            address=address,
            progress=progress,
        )
    _list_written([written])


def _sources(places: list[str], command: str) -> tuple[list[str], str]:
    from raycl.errors import RayclError

    if len(places) < 2:
        raise RayclError(f"data {command}: SRC OUT is needed, given was {' '.join(places)}")
    return places[:-1], places[-1]


@app.command()
def info(data: list[str]) -> None:
    """What a data set holds."""
    from raycl.data import inspect
    from raycl.data.shards import Shards

    typer.echo(json.dumps(inspect.info(Shards(data)), indent=1))


@app.command()
def verify(
    data: list[str],
    threads: Annotated[int | None, typer.Option(help="All cores if not given.", min=1)] = None,
) -> None:
    """Decode every sample of every shard; lists all that is wrong and then ends with status 1."""
    from rich.console import Console
    from rich.progress import Progress

    from raycl.data import inspect

    # Lines go above the bar, and into a file where there is one.
    with Progress(console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("verify", total=1)
        samples, problems = inspect.verify(
            data, typer.echo, lambda share: bar.update(task, completed=share), threads=threads
        )
    typer.echo(f"{samples} samples, {problems} problems", err=True)
    if problems:
        sys.exit(1)


@app.command()
def preview(
    data: str,
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    recipe: Annotated[str, typer.Option(help="Whose views to draw.")] = "simclr/cifar10",
    override: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the recipe.")] = None,
    count: int = 8,
    seed: int = 0,
) -> None:
    """A contact sheet of samples and of the views that a recipe draws from them."""
    from raycl.data import inspect
    from raycl.data.shards import Shards
    from raycl.recipe import load

    streams = load(recipe, override or []).streams
    views = {name: view for stream in streams.values() for name, view in stream.images.items()}
    typer.echo(inspect.preview(Shards(data), views, out, seed=seed, count=count))
