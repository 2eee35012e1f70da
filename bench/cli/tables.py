"""`bench table`: methods by tasks, from records alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import registry
from bench.cli import complete, show
from bench.cli.app import app
from bench.cli.options import RESULTS, RUNS, Results
from bench.cli.speak import build_table, say_costs, tell, warn
from bench.spec import BenchError


def _only(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", help=f"Only {what}.", show_default=False, metavar=name.upper())


@app.command()
def table(
    layout: Annotated[
        str | None,
        typer.Argument(
            help="See `bench list tables`; none: methods by tasks.",
            metavar="LAYOUT",
            autocompletion=complete.one("tables"),
        ),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="text, md, csv, latex or json.", metavar="NAME")] = "text",
    against: Annotated[
        str | None, typer.Option(help="published: the printed numbers beside ours.", show_default=False, metavar="WHAT")
    ] = None,
    results: Results = RESULTS,
    methods: Annotated[str | None, _only("methods", "these methods (as for `run`)")] = None,
    tasks: Annotated[str | None, _only("tasks", "these tasks (as for `run`)")] = None,
    backbone: Annotated[str | None, _only("backbone", "this backbone")] = None,
    budget: Annotated[str | None, _only("budget", "this budget")] = None,
    protocol: Annotated[str | None, _only("protocol", "this protocol")] = None,
    corpus: Annotated[str | None, _only("corpus", "this corpus")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Another metric than the first of every task.", show_default=False, metavar="NAME"),
    ] = None,
    std: Annotated[
        bool, typer.Option("--std", help="Standard deviations over seeds instead of 95 % intervals.")
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the table into a .png, .pdf or .svg too.", show_default=False, metavar="FILE"),
    ] = None,
) -> int:
    """Print methods by tasks, from records alone."""
    from bench import table as tables
    from bench.data.store import Store, collected_warnings

    if against not in (None, "published"):
        raise BenchError(f"--against knows published, not {against!r}")
    if against and layout is None:
        raise BenchError("--against published needs a layout that was published; `bench list tables` shows them")
    found = registry.scan()
    with collected_warnings() as warnings:
        records = Store(RUNS.absolute(), results.absolute()).records()
    chosen = {"backbone": backbone, "budget": budget, "protocol": protocol, "corpus": corpus}
    records = show.only(records, found, methods, tasks, chosen)
    order = sorted(found.methods, key=lambda name: found.methods[name].trains)  # baselines first
    made = build_table(records, found, order, layout, against, metric=metric, intervals=not std)
    if figure is not None:
        tables.draw(made, figure)
    print(tables.render(made, format_), end="")
    if format_ in ("text", "md"):
        say_costs(show.Voice(sys.stdout), records, "- " if format_ == "md" else "")
    if not results.is_dir():
        warn(f"there is no folder {results}; `bench run` records results there")
    tell([], warnings)
    return 0
