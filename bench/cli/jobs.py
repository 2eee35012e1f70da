"""`bench cancel`, `retry`, `gc`: stopping work, taking it up again, and clearing up after it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench import registry
from bench.cli import show
from bench.cli.app import app
from bench.cli.options import RESULTS, RUNS, Data, Json, Results, Runs, data_from_environment
from bench.cli.speak import Interrupted, tell
from bench.spec import DONE, BenchError, Site

if TYPE_CHECKING:
    from bench.data.store import CellState, Store
    from bench.run.launch import Outcome

Cells = Annotated[
    list[str] | None,
    typer.Argument(help="Starts of keys, folders' names, or TASK/METHOD.", metavar="CELLS", show_default=False),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]


def _store(runs: Path, results: Path) -> Store:
    from bench.data.store import Store

    return Store(runs.absolute(), results.absolute())


def _named(names: Sequence[str], states: Sequence[CellState]) -> list[CellState]:
    found = {(state := show.find_cell(name, states)).key: state for name in names}
    return list(found.values())


def _agreed(question: str, yes: bool) -> bool:
    """Whether the user wants it; BenchError where there is nobody to ask."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise BenchError("there is no terminal to ask on: add --yes")
    return typer.confirm(question, err=True)


# -------------------------------------------------------------------------------------------------------------- cancel


@app.command()
def cancel(cells: Cells = None, runs: Runs = RUNS, results: Results = RESULTS, yes: Yes = False) -> int:
    """Stop cells, here or in a cluster, at a checkpoint.

    Every cell that runs or waits in a cluster's queue, or those that are named. A cell that runs is asked to stop: it
    does so within a step, on whatever host, and its run counts it as failed. The next run goes on from the checkpoint.
    """
    from bench.run import upkeep

    store = _store(runs, results)
    waiting, standing = upkeep.queued(store)
    states = upkeep.with_waiting(store.overview(), waiting)
    chosen = _named(cells, states) if cells else [state for state in states if _goes_on(state)]
    idle = [state.name for state in chosen if not _goes_on(state)]
    if idle:
        raise BenchError(f"{idle[0]} neither runs nor waits in a queue; `bench status` shows what does")
    if not chosen:
        show.say("nothing runs or waits in a queue")
        return 0
    if not cells and not _agreed(f"stop {show.counted(len(chosen), 'cell')}?", yes):
        return 1
    jobs = upkeep.cancel(chosen, standing)
    running = sum(state.state == upkeep.RUNNING for state in chosen)
    if running:
        show.say(f"asked {show.counted(running, 'cell')} to stop; `bench status` shows when it has")
    if jobs:
        show.say(f"took {show.counted(len(jobs), 'job')} out of the queue: {', '.join(jobs)}")
    return 0


def _goes_on(state: CellState) -> bool:
    from bench.run.upkeep import QUEUED, RUNNING

    return state.state in (RUNNING, QUEUED)


# --------------------------------------------------------------------------------------------------------------- retry


@app.command()
def retry(
    cells: Cells = None,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed themselves.")] = False,
    blocked: Annotated[bool, typer.Option("--blocked", help="Those whose pretraining failed.")] = False,
    data: Data = None,
    runs: Runs = RUNS,
    results: Results = RESULTS,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Cells at a time.", metavar="N", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1.", metavar="NAME", show_default=False)
    ] = None,
    json: Json = False,
) -> int:
    """Run again what has no result, without naming it anew.

    All cells of the store that failed, are blocked or were interrupted, or those that are named or chosen; from their
    last checkpoints, on this machine, with the data and plug-ins they had.
    """
    from bench.data.store import collected_warnings
    from bench.run import executor, launch, upkeep
    from bench.run.grid.request import Request, check_request

    if cells and (failed or blocked):
        raise BenchError("name cells or give --failed or --blocked, not both")
    check_request(Request(data=data, jobs=jobs, device=device), registry.scan())
    began, store = time.monotonic(), _store(runs, results)
    with collected_warnings() as early:
        states = store.overview()
    chosen = _retried(cells, states) if cells else upkeep.unfinished(states, failed, blocked)
    root = data or data_from_environment()
    site = Site(store.runs, store.results, root and root.absolute(), device or "auto")
    again = upkeep.retry(store, chosen, site)
    voice = show.Voice(sys.stderr if json else sys.stdout)
    for name, why in again.left_out:
        voice.say(f"left out: {name}: {why}", "yellow")
    if again.cells:
        voice.say(f"again: {show.counted(len(again.cells), 'cell')}, pretrainings first")
    outcome = launch.Outcome()
    if again.cells:
        with show.progress(voice, store, len(again.cells)) as watcher, launch.Interrupt() as interrupt:
            made = executor.local(jobs)
            outcome = launch.work_off(again.cells, store, again.site, time.time(), made, interrupt, watcher)
    if outcome.interrupted:
        raise Interrupted("interrupted; `bench retry` goes on where it stopped")
    done = sum(store.finished(cell) for cell in again.cells)
    _conclude(voice, json, outcome, done, len(again.cells), time.monotonic() - began)
    tell(outcome.failures, [*early, *outcome.warnings], runs)
    return outcome.exit_code


def _retried(names: Sequence[str], states: Sequence[CellState]) -> list[CellState]:
    from bench.run.upkeep import RUNNING

    chosen = _named(names, states)
    for state in chosen:
        if state.state in (DONE, RUNNING):
            raise BenchError(f"{state.name} is {state.state}; only what has no result and does not run is tried again")
    return chosen


def _conclude(voice: show.Voice, json: bool, outcome: Outcome, done: int, asked: int, seconds: float) -> None:
    if json:
        failures = [{"cell": cell.folder, "key": cell.key, **vars(how)} for cell, how in outcome.failures]
        facts: dict[str, Any] = {"cells": asked, "done": done, "failures": failures, "seconds": round(seconds, 3)}
        show.say_json(facts | {"exit_code": outcome.exit_code})
    elif asked:
        tone = "green" if outcome.exit_code == 0 else "red"
        voice.say(f"{done} of {show.counted(asked, 'cell')} done in {show.seconds_text(seconds)}", tone)
    else:
        voice.say("there is nothing to run again")


# ------------------------------------------------------------------------------------------------------------------ gc


@app.command()
def gc(runs: Runs = RUNS, results: Results = RESULTS, yes: Yes = False, json: Json = False) -> int:
    """Delete checkpoints, damaged files and caches nobody needs.

    Checkpoints of cells that are done, damaged and half-written files, and images that were prepared for no cell of
    this store. Sizes are shown first. Encoders, records, scores and logs stay.
    """
    from bench.data.store import collected_warnings
    from bench.run import upkeep

    store = _store(runs, results)
    with collected_warnings() as warnings:
        found = upkeep.litter(store, registry.scan())
    sizes = [item.bytes for item in found]
    if json:
        rows = [
            {"what": item.what, "place": item.place, "files": [path.name for path in item.paths], "bytes": size}
            for item, size in zip(found, sizes, strict=True)
        ]
        show.say_json({"litter": rows, "bytes": sum(sizes), "deleted": yes})
    elif found:
        lines = [(show.bytes_text(size), item.what, item.place) for item, size in zip(found, sizes, strict=True)]
        show.columns(["size", "what", "in"], lines, right=["size"])
        show.say(f"\n{show.bytes_text(sum(sizes))} in {show.counted(len(found), 'place')}")
    else:
        show.say("there is nothing to clear up")
    tell([], warnings)
    if not found or (json and not yes):
        return 0
    if not _agreed("delete all this?", yes):
        return 1
    for item in found:
        item.remove()
    if not json:
        show.say("deleted")
    return 0
