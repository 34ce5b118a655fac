"""The command line: parses, calls one function, prints. Heavy imports wait for their command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import raycl
from raycl.cli import cluster, data, submit, tune

if TYPE_CHECKING:
    from raycl.recipe import Recipe

app = typer.Typer(
    help="Contrastive and self-supervised learning on Ray: pretrain, tune, evaluate, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich costs half a second at every start
)
recipes_app = typer.Typer(
    help="List and show recipes.", invoke_without_command=True, rich_markup_mode=None
)
app.add_typer(data.app, name="data")
app.add_typer(tune.app, name="tune")
app.add_typer(cluster.app, name="cluster")
app.add_typer(recipes_app, name="recipes")
# What comes after the address is the other command's.
app.command(context_settings={"allow_interspersed_args": False})(submit.submit)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to override.")
]

DataArgument = Annotated[str, typer.Argument(help="Shard, directory, glob or URI.")]
OutArgument = Annotated[str, typer.Argument(help="Directory or URI to make.")]
Best = Annotated[bool, typer.Option("--best", help="The best checkpoint, not the newest.")]
Actors = Annotated[
    int | None, typer.Option(help="Actors of a GPU or core each; by default all.", min=1)
]
Rows = Annotated[int, typer.Option(help="Samples of a file.", min=1)]


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
    detection = "detection"
    zero_shot = "zero_shot"
    nodes = "nodes"
    graphs = "graphs"
    clusters = "clusters"
    dense = "dense"
    localization = "localization"
    backgrounds = "backgrounds"
    geometry = "geometry"


def main() -> None:
    """Entry point: a mistake of the user is one message and status 2."""
    from raycl.errors import RayclError

    try:
        app()
    except RayclError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


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
        run = run or new_run(recipe)
    typer.echo(f"run: {run}")
    _pretrain(loaded, run)
    typer.echo(f"next: raycl evaluate {run}; raycl report {run}")


def new_run(name: str, among: str = "runs") -> Path:
    import time

    stem = Path(name).with_suffix("").as_posix().strip("/").replace("/", "-")
    return Path(among) / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


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
        losses = {k: v for k, v in known.items() if k == "loss" or k.endswith(".loss")}
        parts = [f"{k.replace('.', ' ')} {v:.3f}" for k, v in losses.items()]
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
                shown = int(record["epoch"]) + epochs // 100  # a hundred lines will do
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
    best: Best = False,
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
def embed(
    run: RunArgument,
    data: DataArgument,
    out: OutArgument,
    overrides: Overrides = None,
    best: Best = False,
    workers: Actors = None,
    part: Rows = 8192,
) -> None:
    """Write an encoder's features of a data set as Parquet. Stopped, it goes on when run again."""
    _write(run, data, out, overrides, best=best, workers=workers, part=part, predict=False)


@app.command()
def predict(
    run: RunArgument,
    data: DataArgument,
    out: OutArgument,
    overrides: Overrides = None,
    best: Best = False,
    workers: Actors = None,
    part: Rows = 8192,
) -> None:
    """Write the classes that a fine-tuned classifier gives a data set, as `embed` writes features.

    A row has class, probability and logits.
    """
    _write(run, data, out, overrides, best=best, workers=workers, part=part, predict=True)


def _write(
    run: Path, data: str, out: str, overrides: list[str] | None, *, predict: bool, **settings: Any
) -> None:
    from raycl.cli.data import writing
    from raycl.train.embed import embed as write

    with writing("predict" if predict else "embed") as progress:
        done = write(
            run, data, out, overrides or [], predict=predict, progress=progress, **settings
        )
    what = "logits" if predict else "features"
    typer.echo(f"{out}: {done.samples} samples of {done.dim} {what} in {done.parts} files")


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
    from raycl.data.encode import Storage
    from raycl.data.sink import import_dataset
    from raycl.report.page import write_report
    from raycl.train.evaluation import evaluate as score

    run = run or new_run("demo")
    data = run.with_name(f"{run.name}-data")
    if not data.exists():
        import_dataset("digits", None, data, storage=Storage(shard_samples=512))
    typer.echo(f"data: {data} (scikit-learn's handwritten digits)", err=True)
    places = [f"data.train={data / 'train'}", f"data.test={data / 'test'}"]
    _pretrain(recipes.load("simclr/digits", [*places, f"trainer.seed={seed}"]), run)
    result = score(run, baselines=True, listen=_say)
    _table(result["rows"])
    typer.echo(f"report: {write_report(run)}")


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
