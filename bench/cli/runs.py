"""`bench run`, `plan`, `status`, `logs`: cells and how they stand."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from json import loads
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench import registry
from bench.cli import show
from bench.cli.app import app
from bench.cli.options import RESULTS, RUNS, Json, Results, Runs, Wait, Yes, request_of, requesting
from bench.cli.speak import Interrupted, build_table, say_costs, tell
from bench.run.costs import cost_of_records
from bench.spec import BenchError

if TYPE_CHECKING:
    from bench.run.cluster.driver import Submission
    from bench.run.grid import Grid, PlanRow, Request


@app.command()
@requesting
def run(asked: dict[str, Any], wait: Wait = False, yes: Yes = False, json: Json = False) -> int:
    """Pretrain, transfer, print the table; do nothing twice."""
    from bench import table as tables
    from bench.data.store import collected_warnings
    from bench.run import grid as grids
    from bench.run import launch
    from bench.run.cluster import watch

    began = time.monotonic()
    request, found = request_of(asked), registry.scan()
    voice = show.Voice(sys.stderr if json else sys.stdout)
    with collected_warnings() as early, show.Meter(sys.stderr) as meter:
        grid = grids.expand(request, found, meter)
        rows = grids.plan(grid, request.store)
    _announce(voice, request, grid, rows)
    waiting = sum(row.open or row.state == "running" for row in rows)
    with collected_warnings() as handed_over:
        submission = _submit(voice, grid, request, found, yes) if request.cluster is not None else None
    early += handed_over
    if submission is not None and submission.open and not wait:
        tell([], [*early, *stale(rows)])
        if json:
            show.say_json(show.submission_data(submission, grid))
        voice.say("`bench status` tells how they stand; the same command with --wait watches and prints the table")
        return 0
    with show.progress(voice, request.store, waiting) as watcher:
        if submission is not None:
            outcome = watch.watch(submission, grid, request.store, watcher)
        else:
            site, shares = request.site(found), request.cells_per_gpu
            outcome = launch.run(grid, request.store, site, request.jobs, watcher, cells_per_gpu=shares)
    if outcome.interrupted:
        to_go = show.counted(outcome.counts["missing"], "result")
        jobs = "; the jobs go on" if submission is not None else ""
        raise Interrupted(f"interrupted with {to_go} to go{jobs}; the same command goes on where this one stopped")
    with collected_warnings() as late:
        found_records = [(cell, request.store.read(cell.key)) for cell in grid.transfers]
    records = [{**record, "label": cell.pretrain.label} for cell, record in found_records if record is not None]
    warnings = list(dict.fromkeys([*early, *outcome.warnings, *late, *stale(rows)]))
    table = build_table(records, found, grid.methods, request.layout, unavailable=grid.unavailable)
    summary = show.summary(grid, outcome, request, time.monotonic() - began)
    if json:
        failures = [{"cell": cell.folder, "key": cell.key, **vars(how)} for cell, how in outcome.failures]
        more = {"failures": failures, "warnings": warnings, "table": loads(tables.render(table, "json"))}
        show.say_json(summary | {"costs": cost_of_records(records).data()} | more)
    else:
        voice.say()
        voice.say(tables.render(table, "text").rstrip("\n"))
        say_costs(voice, records)
        voice.say()
        voice.say(show.summary_line(summary), "green" if outcome.exit_code == 0 else "red")
    tell(outcome.failures, warnings, request.runs)
    return outcome.exit_code


def _announce(voice: show.Voice, request: Request, grid: Grid, rows: Sequence[PlanRow]) -> None:
    """One line of what will happen, the loud word on phantoms, and what has to be done for it."""
    from bench.run.grid import totals

    voice.say(show.intention(request, grid))
    if any(cell.phantom or cell.pretrain.phantom for cell in grid.transfers):
        voice.say("no data root configured: running on phantoms (generated images, not data)", "bold yellow")
    for what, why in grid.skipped:
        voice.say(f"left out: {what}: {why}", "yellow")
    for why in dict.fromkeys(grid.unavailable.values()):
        voice.say(f"not available: {why}", "yellow")
    voice.say(show.plan_line(totals(rows)))


def _submit(voice: show.Voice, grid: Grid, request: Request, found: registry.Registry, yes: bool) -> Submission:
    """Hands to Slurm what has neither result nor job, and says so."""
    from bench.run.cluster.driver import submit

    def consent(hours: float) -> bool:
        question = f"these cells may take {hours:.1f} GPU-hours; submit them?"
        return yes or (sys.stdin.isatty() and typer.confirm(question, err=True))

    submission = submit(grid, request, found, consent)
    for line in show.submission_lines(submission):
        voice.say(line)
    return submission


def stale(rows: Sequence[PlanRow]) -> list[str]:
    number = sum(row.state == "stale" for row in rows)
    if not number:
        return []
    cells = show.counted(number, "cell was", "cells were")
    return [
        f"{cells} made by an older source of method or task: kept, marked ‡ in tables; raise `version` to run it again"
    ]


@app.command()
@requesting
def plan(asked: dict[str, Any], json: Json = False) -> int:
    """Show what would run, what is cached, what it costs."""
    from bench.data.store import collected_warnings
    from bench.run.grid import expand, totals
    from bench.run.grid import plan as plan_grid

    request, found = request_of(asked), registry.scan()
    with collected_warnings() as warnings, show.Meter(sys.stderr) as meter:
        grid = expand(request, found, meter)
        rows = plan_grid(grid, request.store)
    if json:
        show.say_json(show.plan_data(grid, rows, totals(rows)) | {"warnings": warnings})
    else:
        voice = show.Voice(sys.stdout)
        show.plan_table(rows)
        voice.say()
        _announce(voice, request, grid, rows)
    tell([], [*warnings, *stale(rows)])
    return 0


@app.command()
def status(
    runs: Runs = RUNS,
    results: Results = RESULTS,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again while something runs.")] = False,
    json: Json = False,
) -> int:
    """Show every cell's state, why it is so and what it cost."""
    from bench.data.store import Store, collected_warnings
    from bench.run import upkeep
    from bench.run.costs import Costs

    if watch and json:
        raise BenchError("--watch draws for people and --json is for programs: give one of them")
    overview = upkeep.Overview(Store(runs.absolute(), results.absolute()))

    def draw() -> None:
        states = overview()
        if states:
            show.states(states, *upkeep.costs(states))
        else:
            show.say(f"nothing has run yet: there are no cells in {runs} and no records in {results}")

    def look() -> tuple[bool, str]:
        states = overview()
        return any(state.state in (upkeep.RUNNING, upkeep.QUEUED) for state in states), show.states_line(states)

    with collected_warnings() as warnings:
        if watch:
            show.redraw(look, draw)
        elif json:
            states = overview()
            own, _ = upkeep.costs(states)
            show.say_json([show.state_data(state, own.get(state.key, Costs())) for state in states])
        else:
            draw()
    tell([], warnings)
    return 0


@app.command()
def logs(
    cell: Annotated[str, typer.Argument(help="The start of a key, a folder's name, or TASK/METHOD.", metavar="CELL")],
    runs: Runs = RUNS,
    results: Results = RESULTS,
    follow: Annotated[bool, typer.Option("--follow", help="Go on while the cell is at work.")] = False,
) -> int:
    """Print what a cell wrote while it ran."""
    from bench.data.store import Store, live_owner

    store = Store(runs.absolute(), results.absolute())
    states = store.overview()
    logged = [state for state in states if (state.folder / "log.txt").is_file()]  # a record may come from elsewhere
    try:
        state = show.find_cell(cell, logged)
    except BenchError:
        state = show.find_cell(cell, states)
    path = state.folder / "log.txt"
    if not path.is_file() and not (follow and state.state == "running"):
        raise BenchError(f"{state.name} ({state.state}) has no log: there is no file {path}")
    show.follow(path, lambda: follow and live_owner(state.folder) is not None, sys.stdout)
    if follow:
        state = show.find_cell(state.key, store.overview())
    ending = f": {state.reason}" if state.reason else ""
    print(f"{state.name} is {state.state}{ending}", file=sys.stderr)
    return 0
