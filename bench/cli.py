"""argv in, exit code out: the command `bench`.

Exit codes: 0 every cell has a record, 1 some cell failed or the program did, 2 the request was wrong, 130 interrupted.
Errors are one line on standard error. Nothing here imports torch; each command imports what it needs when called.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench import registry, show
from bench.spec import BenchError, MethodSpec

if TYPE_CHECKING:
    from bench.grid import Grid, PlanRow, Request
    from bench.registry import Registry
    from bench.table import Table

ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # wherever the installed typer keeps its click


class Interrupted(Exception):
    """The user stopped a run; the message says how far it came."""


app = typer.Typer(
    epilog="Start with `bench list methods`, `bench list tasks`, then `bench run --methods NAMES --tasks NAMES`.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if show.is_terminal() else None,
)


# -------------------------------------------------------------------------------------------------------------- options

WHAT, LENGTH, PLACE = "What is compared", "How long and how large", "Where it runs"


def _option(kind: Any, name: str, text: str, panel: str, default: str = "", metavar: str | None = None) -> Any:
    """An option that is None where it was not given; `default` is what the help says then happens."""
    shown = f"{text} (default: {default})" if default else text
    return Annotated[kind, typer.Option(name, help=shown, rich_help_panel=panel, show_default=False, metavar=metavar)]


Text, Whole, Folder = str | None, int | None, Path | None

# What `run` and `plan` share. The command line wins over --profile, and both over the defaults of `bench.grid.Request`.
REQUEST: dict[str, Any] = {
    "methods": _option(Text, "--methods", "Names, groups, all, gl*bs, !exclusions, ./files.py.", WHAT, metavar="A,B"),
    "tasks": _option(Text, "--tasks", "Names, groups, all, gl*bs, !exclusions, ./files.py.", WHAT, metavar="A,B"),
    "seeds": _option(Whole, "--seeds", "Repetitions.", WHAT, "1", "N"),
    "backbone": _option(Text, "--backbone", "See `bench list backbones`.", WHAT, "tiny_vgg16", "NAME"),
    "protocol": _option(Text, "--protocol", "How encoders are judged: finetune or linear.", WHAT, "finetune", "NAME"),
    "corpus": _option(Text, "--corpus", "Images to pretrain on: NAME or folder:PATH.", WHAT, "the task's own", "NAME"),
    "label_fraction": _option(Text, "--label-fraction", "Shares of the labels to use.", WHAT, "1", "F,F"),
    "set": _option(
        list[str] | None, "--set", "A hyper-parameter: METHOD.FIELD=VALUE (repeatable).", WHAT, metavar="SET"
    ),
    "budget": _option(Text, "--budget", "smoke, quick or paper.", LENGTH, "quick", "NAME"),
    "steps": _option(Whole, "--steps", "Pretraining steps, on top of the budget.", LENGTH, metavar="N"),
    "image_size": _option(Whole, "--image-size", "Side of the images in pixels.", LENGTH, metavar="PX"),
    "batch_size": _option(Whole, "--batch-size", "Images per pretraining step.", LENGTH, metavar="N"),
    "data": _option(Folder, "--data", "Data root, or BENCH_DATA; none: phantoms.", PLACE, metavar="DIR"),
    "runs": _option(Folder, "--runs", "Checkpoints and logs.", PLACE, "./runs", "DIR"),
    "results": _option(Folder, "--results", "Records.", PLACE, "./results", "DIR"),
    "jobs": _option(Whole, "--jobs", "Cells at a time.", PLACE, "one per core, or per GPU", "N"),
    "device": _option(Text, "--device", "cpu, cuda, cuda:1.", PLACE, "the GPU where there is one", "NAME"),
    "checkpoint_seconds": _option(
        float | None, "--checkpoint-seconds", "Least seconds between two checkpoints of a cell.", PLACE, "30", "S"
    ),
    "skip_missing": _option(bool | None, "--skip-missing", "Leave out tasks whose data is absent.", PLACE),
    "profile": _option(
        Folder, "--profile", "TOML file of these options; the command line wins.", PLACE, metavar="FILE"
    ),
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Runs = Annotated[Path, typer.Option("--runs", help="Checkpoints and logs.", metavar="DIR")]
Results = Annotated[Path, typer.Option("--results", help="Records.", metavar="DIR")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Data root, or BENCH_DATA.", metavar="DIR", show_default=False)
]
RUNS, RESULTS = Path("runs"), Path("results")


def _requesting(command: Callable[..., int]) -> Callable[..., int]:
    """Gives `command(asked, ...)` the options of REQUEST beside its own; `asked` holds those that were given."""

    def wrapper(**values: Any) -> int:
        asked = {name: values.pop(name) for name in REQUEST}
        return command({name: value for name, value in asked.items() if value not in (None, [])}, **values)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)
        for name, kind in REQUEST.items()
    ]
    wrapper.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


def _request(asked: dict[str, Any]) -> Request:
    """The request of a command line: what was given, on top of the profile, on top of BENCH_DATA."""
    from bench.grid import Request, load_profile, parse_fractions

    given = dict(asked)
    profile = given.pop("profile", None)
    if "label_fraction" in given:
        given["label_fractions"] = parse_fractions(given.pop("label_fraction"))
    if "set" in given:
        given["set"] = tuple(given["set"])
    merged = {"data": _data_from_environment()} | (load_profile(profile) if profile else {}) | given
    for name in ("methods", "tasks"):
        if not merged.get(name):
            raise BenchError(f"name some {name} with --{name}, separated by commas; `bench list {name}` shows them")
    return Request(**merged)


def _data_from_environment() -> Path | None:
    text = os.environ.get("BENCH_DATA", "")
    return Path(text).expanduser() if text else None


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


# ---------------------------------------------------------------------------------------------------------------- runs


@app.command()
@_requesting
def run(asked: dict[str, Any], json: Json = False) -> int:
    """Pretrain, transfer, print the table; do nothing twice."""
    from bench import grid as grids
    from bench import launch
    from bench import table as tables
    from bench.store import collected_warnings

    began = time.monotonic()
    request, found = _request(asked), registry.scan()
    voice = show.Voice(sys.stderr if json else sys.stdout)
    with collected_warnings() as early:
        grid = grids.expand(request, found)
        rows = grids.plan(grid, request.store)
    _announce(voice, request, grid, rows)
    waiting = sum(row.open or row.state == "running" for row in rows)
    with show.progress(voice, request.store, waiting) as watcher:
        outcome = launch.run(grid, request.store, request.site(found), request.jobs, watcher)
    if outcome.interrupted:
        to_go = show.counted(outcome.counts["missing"], "result")
        raise Interrupted(f"interrupted with {to_go} to go; the same command goes on where this one stopped")
    with collected_warnings() as late:
        records = [record for cell in grid.transfers if (record := request.store.read(cell.key)) is not None]
    warnings = list(dict.fromkeys([*early, *outcome.warnings, *late, *_stale(rows)]))
    table = _build(records, found, grid.methods)
    summary = show.summary(grid, outcome, request, time.monotonic() - began)
    if json:
        failures = [{"cell": cell.folder, "key": cell.key, **vars(how)} for cell, how in outcome.failures]
        more = {"failures": failures, "warnings": warnings, "table": loads(tables.render(table, "json"))}
        show.say_json(summary | more)
    else:
        voice.say()
        voice.say(tables.render(table, "text"))
        voice.say(show.summary_line(summary), "green" if outcome.exit_code == 0 else "red")
    _tell(outcome.failures, warnings)
    return outcome.exit_code


def _announce(voice: show.Voice, request: Request, grid: Grid, rows: Sequence[PlanRow]) -> None:
    """One line of what will happen, the loud word on phantoms, and what has to be done for it."""
    from bench.grid import totals

    voice.say(show.intention(request, grid))
    if request.data is None:
        voice.say("no data root configured: running on phantoms (generated images, not data)", "bold yellow")
    for what, why in grid.skipped:
        voice.say(f"left out: {what}: {why}", "yellow")
    voice.say(show.plan_line(totals(rows)))


def _stale(rows: Sequence[PlanRow]) -> list[str]:
    number = sum(row.state == "stale" for row in rows)
    if not number:
        return []
    cells = show.counted(number, "cell was", "cells were")
    return [
        f"{cells} made by an older source of method or task: kept, marked ‡ in tables; raise `version` to run it again"
    ]


def _tell(failures: Sequence[Any], warnings: Sequence[str], shown: int = 10) -> None:
    for warning in warnings:
        _warn(warning)
    own = [(cell, how) for cell, how in failures if how.status != "blocked"]
    for cell, how in own[:shown]:
        _warn(f"{show.cell_name(cell)}: {how.status}: {how.reason}; see `bench logs {cell.key[:12]}`")
    if len(own) > shown:
        _warn(f"{len(own) - shown} more failed; see `bench status`")


def _warn(sentence: str) -> None:
    sys.stdout.flush()
    yellow, plain = ("\033[33m", "\033[0m") if show.is_coloured(sys.stderr) else ("", "")
    print(f"{yellow}warning:{plain} {' '.join(sentence.split())}", file=sys.stderr)


@app.command()
@_requesting
def plan(asked: dict[str, Any], json: Json = False) -> int:
    """Show what would run, what is cached, what it costs."""
    from bench.grid import expand, totals
    from bench.grid import plan as plan_grid
    from bench.store import collected_warnings

    request, found = _request(asked), registry.scan()
    with collected_warnings() as warnings:
        grid = expand(request, found)
        rows = plan_grid(grid, request.store)
    if json:
        show.say_json(show.plan_data(grid, rows, totals(rows)) | {"warnings": warnings})
    else:
        voice = show.Voice(sys.stdout)
        show.plan_table(rows)
        voice.say()
        _announce(voice, request, grid, rows)
    _tell([], [*warnings, *_stale(rows)])
    return 0


@app.command()
def status(runs: Runs = RUNS, results: Results = RESULTS, json: Json = False) -> int:
    """Show every cell's state and why it is so."""
    from bench.store import Store, collected_warnings

    with collected_warnings() as warnings:
        states = Store(runs.absolute(), results.absolute()).overview()
    if json:
        show.say_json([show.state_data(state) for state in states])
    elif states:
        show.states(states)
    else:
        show.say(f"nothing has run yet: there are no cells in {runs} and no records in {results}")
    _tell([], warnings)
    return 0


@app.command()
def logs(
    cell: Annotated[str, typer.Argument(help="The start of a key, a folder's name, or TASK/METHOD.", metavar="CELL")],
    runs: Runs = RUNS,
    results: Results = RESULTS,
) -> int:
    """Print what a cell wrote while it ran."""
    from bench.store import Store

    state = show.find_cell(cell, Store(runs.absolute(), results.absolute()).overview())
    path = state.folder / "log.txt"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise BenchError(f"{state.name} ({state.state}) has no log: there is no file {path}") from None
    sys.stdout.write(text)
    ending = f": {state.reason}" if state.reason else ""
    print(f"{state.name} is {state.state}{ending}", file=sys.stderr)
    return 0


# -------------------------------------------------------------------------------------------------------------- tables


def _only(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", help=f"Only {what}.", show_default=False, metavar=name.upper())


@app.command()
def table(
    layout: Annotated[
        str | None, typer.Argument(help="See `bench list tables`; none: methods by tasks.", metavar="LAYOUT")
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
) -> int:
    """Print methods by tasks, from records alone."""
    from bench import table as tables
    from bench.store import Store, collected_warnings

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
    print(tables.render(_build(records, found, order, layout, against), format_), end="")
    if not results.is_dir():
        _warn(f"there is no folder {results}; `bench run` records results there")
    _tell([], warnings)
    return 0


def _build(
    records: Sequence[Any], found: Registry, order: Sequence[str], layout: str | None = None, against: str | None = None
) -> Table:
    from bench import table as tables

    return tables.build(
        records,
        tables.load_layout(layout) if layout else tables.default_layout(records, found.tasks, order),
        published=tables.load_published(layout) if layout and against else None,
        current_sources={
            "method": {name: spec.origin.sha256 for name, spec in found.methods.items()},
            "task": {name: spec.origin.sha256 for name, spec in found.tasks.items()},
        },
        notes={name: spec.note for name, spec in found.methods.items() if spec.note},
    )


# ----------------------------------------------------------------------------------------------------- what is on offer

KINDS = ("methods", "tasks", "groups", "corpora", "backbones", "tables")


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", metavar="KIND")],
    json: Json = False,
) -> int:
    """List methods, tasks, corpora, backbones or tables."""
    if kind not in KINDS:
        raise BenchError(f"`bench list` knows {', '.join(KINDS)}, not {kind!r}{registry.suggest(kind, KINDS)}")
    found = registry.scan()
    rows = show.offered(kind, found)
    if json:
        show.say_json(rows)
    elif rows:
        show.rows(rows)
    else:
        show.say(f"there are no {kind}")
    for why in found.broken.values() if kind in ("methods", "tasks", "groups", "corpora") else ():
        _warn(f"a plug-in file cannot be used: {why}")
    return 0


@app.command("show")
def show_(
    name: Annotated[str, typer.Argument(help="A method, task or corpus.", metavar="NAME")],
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Draw a task's or corpus's images and masks into this PNG.", metavar="FILE"),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> int:
    """Show one method, task or corpus in full, or its images as a picture."""
    kind, spec = show.find_plugin(name, registry.scan())
    if sheet is not None:
        from bench import sheet as sheets

        if isinstance(spec, MethodSpec):
            raise BenchError(f"{name} is a method and has no images; --sheet draws a task or a corpus")
        sheets.write(spec, data or _data_from_environment(), sheet)
        show.say(f"{sheet} written")
    elif json:
        show.say_json({"plugin": kind, **show.declaration(spec)})
    else:
        show.plugin(kind, spec)
    return 0


@app.command()
def doctor(data: Data = None, runs: Runs = RUNS, results: Results = RESULTS, json: Json = False) -> int:
    """Look at Python, torch, GPU, Slurm, disk and data."""
    checks = show.doctor(registry.scan(), runs, results, data or _data_from_environment())
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
    from bench import scaffold

    found = registry.scan()
    path = scaffold.new(kind, name, Path.cwd(), found)
    inside = path.parent == Path(registry.__file__).resolve().parent.parent / scaffold.FOLDERS[kind]
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    asked = name if inside else f"./{shown}"
    show.say(f"wrote {shown}: it works as it is; the lines marked EDIT are yours")
    example = {"method": f"--methods {asked} --tasks TASK", "task": f"--methods METHOD --tasks {asked}"}[kind]
    show.say(f"try it: bench run {example} --budget smoke" + (f"; test it: pytest -k {name}" if inside else ""))
    return 0


# ------------------------------------------------------------------------------------------------------------ the door


STOPPED = "interrupted; the same command goes on where it stopped"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; every error becomes one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = typer.main.get_command(app).main(words, prog_name="bench", standalone_mode=False)
        return _fail(STOPPED, 130) if code == 130 else int(code or 0)  # typer's word for KeyboardInterrupt, as is Abort
    except BenchError as error:
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(STOPPED, 130)
    except ClickException as error:
        return _fail(_usage(error, words), 2)
    except BrokenPipeError:  # `bench list tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130 if words[0] == "run" else 0  # a run that lost its listener may have cells to go
    except Exception as error:
        if os.environ.get("BENCH_DEBUG") == "1":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"{reason} (this is a fault of bench; the traceback is in {_keep_traceback(words)})", 1)


def _fail(sentence: str, code: int) -> int:
    sys.stdout.flush()
    red, plain = ("\033[31m", "\033[0m") if show.is_coloured(sys.stderr) else ("", "")
    print(f"{red}error:{plain} {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _usage(error: Any, words: Sequence[str]) -> str:
    message = error.format_message().rstrip(".")
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((f" {word}" for word in words if word in known), "")
    return f"{message[:1].lower()}{message[1:]}; see `bench{command} --help`"


def _keep_traceback(words: Sequence[str]) -> Path:
    """Writes the current traceback into the runs folder, or a temporary one, and returns the file."""
    given = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--runs"]
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path(given[-1]) if given else RUNS, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"bench {' '.join(words)}\n\n{traceback.format_exc()}", encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path(os.devnull)
