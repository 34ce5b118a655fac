"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import raycl

if TYPE_CHECKING:
    from raycl.data.staging import Written
    from raycl.recipe import Recipe

app = typer.Typer(
    help="Contrastive and self-supervised learning on Ray: pretrain, evaluate, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich costs half a second at every start
)
data_app = typer.Typer(
    help="Make, check and look at data sets.", no_args_is_help=True, rich_markup_mode=None
)
recipes_app = typer.Typer(
    help="List and show recipes.", invoke_without_command=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to override.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raycl {raycl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    pass


class Protocol(StrEnum):
    knn = "knn"
    linear = "linear"
    linear_sgd = "linear-sgd"
    classifier = "classifier"
    dense = "dense"
    localization = "localization"
    backgrounds = "backgrounds"
    geometry = "geometry"


class Importer(StrEnum):
    digits = "digits"
    imagefolder = "imagefolder"
    npz = "npz"
    cifar10 = "cifar10"
    webdataset = "webdataset"
    parquet = "parquet"
    video = "video"
    segmentation = "segmentation"


def main() -> None:
    """Entry point: a mistake of the user is one message and status 2."""
    from raycl.errors import RayclError

    try:
        app()
    except RayclError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


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


@app.command()
def pretrain(
    recipe: Annotated[
        str | None, typer.Argument(help="Packaged name, YAML file, or run directory.")
    ] = None,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run directory to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run directory to continue.")] = None,
) -> None:
    """Pretrain an encoder: `raycl pretrain simclr/cifar10 data.train=... trainer.workers=2`."""
    from raycl import recipe as recipes
    from raycl.errors import RayclError

    changes = list(overrides or [])
    if resume is not None:
        if recipe is not None and "=" in recipe:
            changes.insert(0, recipe)
        elif recipe is not None:
            raise RayclError("--resume takes the recipe from the run; leave RECIPE out")
        run, loaded = resume, recipes.load(resume, changes)
        if not (resume / "recipe.yaml").is_file():
            raise RayclError(f"--resume {resume}: not a run directory")
    elif recipe is None:
        raise RayclError("RECIPE is missing; `raycl recipes` lists the packaged ones")
    else:
        loaded = recipes.load(recipe, changes)
        run = run or _new_run(recipe)
    _pretrain(loaded, run)
    typer.echo(f"run: {run}")
    typer.echo(f"next: raycl evaluate {run}; raycl report {run}")


def _new_run(name: str) -> Path:
    import time

    stem = Path(name).with_suffix("").as_posix().strip("/").replace("/", "-")
    return Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _pretrain(recipe: Recipe, run: Path) -> None:
    from raycl.train.trainer import pretrain

    try:
        with _display(recipe) as listen:
            pretrain(recipe, run, listen)
    except KeyboardInterrupt:
        if (run / "recipe.yaml").is_file():
            typer.echo(f"interrupted; go on with: raycl pretrain --resume {run}", err=True)
            sys.exit(130)
        raise


@contextmanager
def _display(recipe: Recipe) -> Iterator[Any]:
    """One tidy line that tells how far a run is; plain lines where nobody watches a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    epochs = recipe.trainer.stop.epochs
    console = Console(stderr=True)
    known: dict[str, Any] = {}

    def text() -> str:
        parts = [f"loss {known['loss']:.3f}"] if "loss" in known else []
        if "knn" in known:
            parts.append(f"kNN {100 * known['knn']:.1f} %")
        if "images_per_second" in known:
            parts.append(f"{known['images_per_second']:.0f} images/s")
        if "wait_share" in known:
            causes = {
                k.partition("/")[2]: v for k, v in known.items() if k.startswith("wait_share/")
            }
            most = max(causes, key=causes.__getitem__, default="")
            why = f" ({most})" if causes.get(most, 0) >= 0.005 else ""
            parts.append(f"waiting {100 * known['wait_share']:.0f} %{why}")
        return "  ".join(parts)

    if not console.is_terminal:
        shown = -1

        def listen_plainly(record: dict[str, Any]) -> None:
            nonlocal shown
            known.update(record)
            if int(record["epoch"]) > shown:
                shown = int(record["epoch"])
                typer.echo(f"epoch {record['epoch']:.1f}/{epochs}  {text()}", err=True)

        yield listen_plainly
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("epoch {task.completed:.1f}/{task.total:g}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
    with bar:
        task = bar.add_task(recipe.method["name"], total=epochs, text="starting")

        def listen(record: dict[str, Any]) -> None:
            known.update(record)
            bar.update(task, completed=record["epoch"], text=text())

        yield listen


@app.command()
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    protocol: Annotated[
        list[Protocol] | None, typer.Option(help="Instead of the recipe's.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also raw pixels and the untrained encoder.")
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint, not the newest.")
    ] = False,
    name: Annotated[
        str, typer.Option(help="Of the file in RUN: other data need not replace what is there.")
    ] = "evaluation",
    against: Annotated[
        Path | None, typer.Option(help="A run whose features are compared instead, by linear CKA.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a run's encoder by protocols: weighted kNN, linear probes, few labels, dense maps."""
    from raycl.train.evaluation import compare
    from raycl.train.evaluation import evaluate as score

    if against is not None:
        cka = compare(run, against, overrides or [])
        typer.echo(json.dumps({"cka": cka}) if as_json else f"linear CKA: {cka:.3f}")
        return
    changes = [f"evaluation.protocols=[{','.join(protocol)}]"] if protocol else []
    settings = [*(overrides or []), *changes]
    result = score(run, settings, baselines=baselines, best=best, name=name, listen=_say)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _table(result["rows"])


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from raycl.report import scores

    keys = ("representation", "labels", "protocol", "metric")
    found = {tuple(row[key] for key in keys): row["score"] for row in rows}
    accuracies = all(row["metric"] == "accuracy" for row in rows)
    table = Table(title=f"{'accuracy' if accuracies else 'scores'} on the test set, %")
    table.add_column("representation")
    columns = list(dict.fromkeys(key[1:] for key in found))
    for labels, protocol, metric in columns:
        head = f"{scores.heading(protocol, metric)}\n{labels}"
        table.add_column(head, justify="right", overflow="fold")
    for name in dict.fromkeys(key[0] for key in found):
        cells = [(column[2], found.get((name, *column))) for column in columns]
        table.add_row(name, *("" if s is None else scores.shown(m, s) for m, s in cells))
    Console().print(table)


@app.command()
def report(run: RunArgument) -> None:
    """Write RUN/report.html: recipe, curves, accuracies, views and an embedding map in one file."""
    from raycl.errors import RayclError
    from raycl.report.page import write_report

    if not (run / "recipe.yaml").is_file():
        raise RayclError(f"{run}: holds no recipe.yaml, so it is no run directory")
    typer.echo(write_report(run))


@app.command()
def demo(
    run: Annotated[Path | None, typer.Option(help="Run directory to make.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Pretrain SimCLR on handwritten digits with two Ray workers, evaluate it, write a report."""
    from raycl import recipe as recipes
    from raycl.data.sink import Storage, import_dataset
    from raycl.report.page import write_report
    from raycl.train.evaluation import evaluate as score

    run = run or _new_run("demo")
    data = run.with_name(f"{run.name}-data")
    if not data.exists():
        import_dataset("digits", None, data, storage=Storage(shard_samples=512))
    typer.echo(f"data: {data} (scikit-learn's handwritten digits)", err=True)
    places = [f"data.train={data / 'train'}", f"data.test={data / 'test'}"]
    _pretrain(recipes.load("simclr/digits", [*places, f"trainer.seed={seed}"]), run)
    result = score(run, baselines=True, listen=_say)
    _table(result["rows"])
    typer.echo(f"report: {write_report(run)}")


@data_app.command("import")
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
    workers: Writers = 1,
    address: Address = None,
) -> None:
    """Turn images or clips into .beton shards. Stopped, it goes on when it is run again."""
    from raycl.data.sink import Storage, import_dataset
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
    with _writing(kind.value) as progress:
        written = import_dataset(
            kind.value,
            source,
            places[-1],
            limit=limit,
            storage=storage,
            image_column=image_column,
            label_column=label_column,
            workers=workers,
            address=address,
            progress=progress,
        )
    _list_written(written)


@contextmanager
def _writing(title: str) -> Iterator[Callable[[int, int], None]]:
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


@data_app.command()
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
    with _writing("reshard") as progress:
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


@data_app.command()
def concat(places: Places, workers: Writers = 1, address: Address = None) -> None:
    """Put data sets together, shard by shard."""
    from raycl.data import reshape

    sources, out = _sources(places, "concat")
    with _writing("concat") as progress:
        written = reshape.concat(sources, out, workers=workers, address=address, progress=progress)
    _list_written([written])


@data_app.command()
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
    from raycl.data.sink import Storage

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
    with _writing("convert") as progress:
        written = reshape.convert(
            sources, out, storage, workers=workers, address=address, progress=progress
        )
    _list_written([written])


@data_app.command()
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
    with _writing("saliency") as progress:
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


@data_app.command()
def info(data: list[str]) -> None:
    """What a data set holds."""
    from raycl.data import inspect
    from raycl.data.shards import Shards

    typer.echo(json.dumps(inspect.info(Shards(data)), indent=1))


@data_app.command()
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


@data_app.command()
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


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the packaged recipes."""
    if context.invoked_subcommand:
        return
    from raycl.recipe import packaged

    for name, path in packaged().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:24} {first.removeprefix('# ')}")


@recipes_app.command()
def show(name: str, overrides: Overrides = None) -> None:
    """Print a recipe with every field resolved."""
    from raycl.recipe import load

    typer.echo(load(name, overrides or []).to_yaml(), nl=False)


@recipes_app.command()
def schema(
    method: Annotated[str | None, typer.Option(help="Fill in this method's fields.")] = None,
) -> None:
    """Print the JSON Schema of recipes."""
    from raycl.recipe import schema as json_schema

    typer.echo(json.dumps(json_schema(method), indent=1))
