"""The command `bench` itself; its subcommands hang themselves onto it."""

from __future__ import annotations

from typing import Annotated

import typer

from bench import show

app = typer.Typer(
    epilog="Start with `bench list methods`, `bench list tasks`, then `bench run --methods NAMES --tasks NAMES`.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if show.is_terminal() else None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from bench import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _bench(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Which way of pretraining without labels helps your medical image task, and is the difference real?"""
