"""`raycl submit`: a command of raycl as a job of a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

HERE = ("submit", "demo", "cluster", "recipes")  # commands that are of no use on a cluster
PLACES = {"pretrain": "run", "search": "sweep"}  # what a command makes, and which option says where


def submit(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="Of its dashboard: http://127.0.0.1:8265.")],
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="As `raycl` takes it here.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the logs and fetch the report.")
    ] = True,
    install: Annotated[
        Path | None, typer.Option(help="requirements.txt of what the cluster's image lacks.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Where its report is written; by default NAME.html.")
    ] = None,
) -> None:
    """Run COMMAND on a cluster, in a copy of this directory: `raycl submit ADDRESS pretrain ..`."""
    from raycl.cluster.jobs import Jobs
    from raycl.errors import RayclError

    if install is not None and not install.is_file():
        raise RayclError(f"--install {install}: no such file")
    place = _checked(context, command)
    jobs = Jobs(address, Path.cwd(), install)
    job = jobs.submit(command)
    typer.echo(f"job: {job}", err=True)
    typer.echo(f"logs: ray job logs --follow --address {address} {job}", err=True)
    typer.echo(f"stop: ray job stop --address {address} {job}", err=True)
    if not wait:
        return
    try:
        status = jobs.follow(job, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        typer.echo(f"the job goes on; it is stopped by: ray job stop {job}", err=True)
        sys.exit(130)
    if place and not status:
        page = report or Path(f"{Path(place).name}.html")
        page.write_bytes(jobs.report(place))
        typer.echo(f"report: {page}", err=True)
    sys.exit(status)


def _checked(context: typer.Context, words: list[str]) -> str | None:
    """Parses a command as it will be there; returns the directory that it makes.

    Raises:
        RayclError: the command or its recipe is wrong, or says not where to write.
    """
    from raycl import recipe as recipes
    from raycl.errors import RayclError

    if words[0] in HERE:
        raise RayclError(f"{words[0]} runs here, not on a cluster")
    command: Any = context.find_root().command
    name: Any = "raycl"
    rest, parsed = words, None
    while isinstance(command, TyperGroup):
        parsed = command.make_context(name, [*rest], parent=parsed)
        name, command, rest = command.resolve_command(
            parsed, [*parsed._protected_args, *parsed.args]
        )
    parsed = command.make_context(name, [*rest], parent=parsed)
    given = parsed.params
    if name not in PLACES:
        return None
    if given["resume"] is not None:
        return str(given["resume"])
    if given["recipe"] is None:
        raise RayclError("RECIPE is missing; `raycl recipes` lists the packaged ones")
    path, place = Path(given["recipe"]), given[PLACES[name]]
    if path.is_absolute() and path.is_file():
        raise RayclError(f"{path}: give it relative to this directory, which is uploaded")
    if path.exists() or not path.is_absolute():  # a run of the cluster is known there alone
        recipes.load(given["recipe"], given["overrides"] or [])
    if place is None:
        raise RayclError(
            f"--{PLACES[name]}: give a directory that all hosts of the cluster share, or any with "
            "trainer.storage=s3://..."
        )
    return str(place)
