"""`raycl cluster`: what a recipe would find on a cluster, before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raycl.cluster.check import Answer

app = typer.Typer(
    help="Look at clusters that are described in files.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="YAML of `ray up`, or KubeRay's manifest.")
    ],
    recipe: Annotated[str, typer.Argument(help="Packaged name, YAML file, or run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to override.")
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="YAML of node or instance types: dollars an hour.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a recipe can ever be placed on a cluster, on which nodes, and what they cost.

    Status 1: it cannot. Nothing is started or asked; Ray need not run.
    """
    from raycl.cluster import cost, nodes, words
    from raycl.cluster.check import check as answer_of
    from raycl.recipe import load

    offer, known = nodes.read(file), cost.prices(prices)
    answer = answer_of(load(recipe, overrides or []), offer, known)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(answer), indent=1))
    else:
        _table(answer)
        for line in words.lines(answer):
            typer.echo(line)
    if answer.fits is False:
        raise typer.Exit(1)


def _table(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    from raycl.cluster.reasons import shown

    table = Table(title=answer.file)
    for head in ("type", "instance", "CPUs", "GPUs", "labels", "at most", "$ an hour"):
        table.add_column(head, overflow="fold")
    for t in answer.types:
        numbers = ["?" if n is None else f"{n:g}" for n in (t.cpus, t.gpus)]
        price = answer.prices[t.name]
        dollars = "unknown" if price is None else f"{price:.2f}"
        table.add_row(t.name, t.instance, *numbers, shown(t.labels), str(t.most), dollars)
    Console().print(table)
