"""`raycl tune`: search a recipe's fields, and what has come out."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Searching(TyperGroup):
    """`raycl tune RECIPE` is `raycl tune search RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["search", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Searching,
    help="Search the fields of a recipe: `raycl tune RECIPE [KEY=VALUE]...`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SweepArgument = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep's directory.")]


@app.command()
def search(
    recipe: Annotated[
        str | None, typer.Argument(help="Packaged name or YAML file with a section `tune`.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to override.")
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="Directory to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Sweep to go on with.")] = None,
) -> None:
    """Run a sweep; `search` may be left out."""
    from raycl import recipe as recipes
    from raycl.cli import new_run
    from raycl.errors import RayclError

    if resume is not None:
        if recipe is not None:
            raise RayclError("--resume takes recipe and space from the sweep; leave both out")
        if not (resume / "recipe.yaml").is_file():
            raise RayclError(f"--resume {resume}: not a sweep's directory")
        place, loaded = resume, recipes.load(resume)
    elif recipe is None:
        raise RayclError("RECIPE is missing; `raycl recipes` lists the packaged ones")
    else:
        loaded = recipes.load(recipe, overrides or [])
        place = sweep or new_run(recipe, "sweeps")
    typer.echo(f"sweep: {place}")
    _search(loaded, place)
    _table(place)
    typer.echo(f"next: raycl tune report {place}; raycl tune best {place} > best.yaml")


def _search(recipe: Any, place: Path) -> None:
    from raycl.tune.search import search as run

    handler = logging.StreamHandler()
    log = logging.getLogger("raycl")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        run(recipe, place)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: raycl tune --resume {place}", err=True)
        sys.exit(130)
    finally:
        log.removeHandler(handler)


def _table(place: Path) -> None:
    """The ten best trials, and what their repeats came to."""
    from rich.console import Console
    from rich.table import Table

    from raycl.sweep import read, settings_of, trials, winner

    tune = settings_of(place)
    rows = trials(read(place), tune, "search")
    best, repeats = winner(place, tune)
    fields = list(dict.fromkeys(name for row in rows for name in row.values))
    table = Table(title=f"{len(rows)} trials, by {tune.metric}")
    for head in ("trial", tune.metric, "epochs", *fields):
        table.add_column(head, overflow="fold")
    for row in [row for row in rows if row.measured][:10]:
        values = (_shown(row.values.get(name, "")) for name in fields)
        table.add_row(row.trial, f"{row.score(tune.metric):.4g}", str(row.epochs), *values)
    Console().print(table)
    again = ", ".join(f"{score:.4g}" for score in repeats)
    typer.echo(f"best: {best.trial}" + (f"; with other seeds {again}" if again else ""))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@app.command()
def best(sweep: SweepArgument) -> None:
    """Print the winner's recipe: `raycl tune best SWEEP > best.yaml`."""
    from raycl.sweep import best_recipe

    typer.echo(best_recipe(sweep), nl=False)


@app.command()
def report(sweep: SweepArgument) -> None:
    """Write SWEEP/report.html, also while the sweep runs."""
    from raycl.report.sweep import write_report

    typer.echo(write_report(sweep))
