"""`bench list`, `show`, `doctor`, `new`: what there is, whether it can run, and adding to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import registry
from bench.cli import complete, show
from bench.cli.app import app
from bench.cli.options import RESULTS, RUNS, Data, Json, Results, Runs, data_from_environment
from bench.cli.speak import warn
from bench.spec import BenchError, CorpusSpec, TaskSpec, suggest

PLUGINS = ("methods", "tasks", "datasets", "corpora", "protocols", "metrics", "backbones")
KINDS = ("methods", "tasks", "groups", "datasets", "corpora", "protocols", "metrics", "backbones", "tables")


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", metavar="KIND", autocompletion=complete.of(KINDS)
        ),
    ],
    json: Json = False,
) -> int:
    """List what there is of a kind."""
    if kind not in KINDS:
        raise BenchError(f"`bench list` knows {', '.join(KINDS)}, not {kind!r}{suggest(kind, KINDS)}")
    found = registry.scan()
    rows = show.offered(kind, found)
    if json:
        show.say_json(rows)
    elif rows:
        show.rows(rows)
    else:
        show.say(f"there are no {kind}")
    for why in found.broken.values() if kind != "tables" else ():
        warn(f"a plug-in file cannot be used: {why}")
    return 0


@app.command("show")
def show_(
    name: Annotated[
        str,
        typer.Argument(
            help="A method, task, corpus or another plug-in.", metavar="NAME", autocompletion=complete.one(*PLUGINS)
        ),
    ],
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Draw a task's or corpus's images and masks into this PNG.", metavar="FILE"),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> int:
    """Show one plug-in in full, or the images of a task or corpus as a picture."""
    kind, spec = show.find_plugin(name, registry.scan())
    if sheet is not None:
        from bench.cli import sheet as sheets

        if not isinstance(spec, (TaskSpec, CorpusSpec)):
            raise BenchError(f"{name} is a {kind} and has no images; --sheet draws a task or a corpus")
        sheets.write(name, spec, data or data_from_environment(), sheet)
        show.say(f"{sheet} written")
    elif json:
        show.say_json({"plugin": kind, **show.declaration(spec)})
    else:
        show.plugin(kind, spec)
    return 0


@app.command()
def doctor(data: Data = None, runs: Runs = RUNS, results: Results = RESULTS, json: Json = False) -> int:
    """Look at Python, torch, GPU, Slurm, disk and data."""
    checks = show.doctor(registry.scan(), runs, results, data or data_from_environment())
    if json:
        show.say_json([vars(check) for check in checks])
        return 0
    show.columns(["what", "state", "found"], [(check.name, check.state, check.detail) for check in checks])
    problems = sum(check.state == "problem" for check in checks)
    show.say(
        f"\n{show.counted(problems, 'problem')} found" if problems else "\nready to run", "red" if problems else "green"
    )
    return 0


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="method or task.", metavar="method|task")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.", metavar="NAME")],
) -> int:
    """Write a small method or task to start from."""
    from bench.cli import scaffold

    found = registry.scan()
    path = scaffold.new(kind, name, Path.cwd(), found)
    inside = path.parent == registry.HOME / scaffold.FOLDERS[kind]
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    asked = name if inside else f"./{shown}"
    show.say(f"wrote {shown}: it works as it is; the lines marked EDIT are yours")
    example = {"method": f"--methods {asked} --tasks TASK", "task": f"--methods METHOD --tasks {asked}"}[kind]
    show.say(f"try it: bench run {example} --budget smoke" + (f"; test it: pytest -k {name}" if inside else ""))
    return 0
