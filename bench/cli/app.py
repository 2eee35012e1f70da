"""The command `bench` itself; its subcommands hang themselves onto it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bench.cli import show

ORDER = (
    "run",
    "plan",
    "status",
    "logs",
    "cancel",
    "retry",
    "gc",
    "table",
    "data",
    "list",
    "show",
    "doctor",
    "new",
    "guide",
)  # of the help


class _Ordered(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=_Ordered,
    epilog="Start with `bench list methods`, `bench list tasks`, then `bench run --methods NAMES --tasks NAMES`.",
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
