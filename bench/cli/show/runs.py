"""What was asked for, what it would cost and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.cli.show.amounts import bytes_text, counted, seconds_text, tally
from bench.cli.show.terminal import columns
from bench.spec import Cell, PretrainCell, TransferCell

if TYPE_CHECKING:
    from bench.run.grid import Grid, PlanRow, Request
    from bench.run.launch import Outcome


def cell_name(cell: Cell) -> str:
    """A cell as a person calls it."""
    if isinstance(cell, PretrainCell) and cell.weights:
        return f"weights of {cell.label}"
    if isinstance(cell, PretrainCell):
        return f"{cell.label} on {cell.corpus}, seed {cell.seed}"
    labels = f", {cell.label_fraction:.0%} of the labels" if cell.label_fraction < 1 else ""
    return f"{cell.task} from {cell.pretrain.label}, seed {cell.seed}{labels}"


def intention(request: Request, grid: Grid) -> str:
    """What was asked for, in one line."""
    fractions = [f"{fraction:.0%}" for fraction in request.label_fractions]
    longest = max((cell.pretrain for cell in grid.transfers), key=lambda cell: cell.steps)
    parts = [
        f"{_few(grid.methods)} on {_few(grid.tasks)}",
        counted(request.seeds, "seed"),
        f"budget {longest.budget}",
        request.backbone,
        ", ".join(dict.fromkeys(cell.protocol for cell in grid.transfers)),
        *([f"labels {', '.join(fractions)}"] if fractions != ["100%"] else []),
    ]
    return " · ".join(parts)


def _few(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def plan_line(sums: Mapping[str, Any]) -> str:
    """Counts by state, and the time and disk that are to be spent, in one line."""
    parts = [
        f"{counted(sum(states.values()), word)} ({tally(states)})"
        for kind, word in (("pretrain", "pretraining"), ("transfer", "transfer"))
        if (states := sums["counts"][kind])
    ]
    if not sums["to_run"]:
        return f"{', '.join(parts)}: nothing to train"
    if sums["unmeasured"] == sums["to_run"]:
        return f"{', '.join(parts)}; time and disk unknown, nothing like it was run here before"
    more = f", and {counted(sums['unmeasured'], 'cell')} never measured here" if sums["unmeasured"] else ""
    cost = f"about {seconds_text(sums['seconds'])} of work on one device, {bytes_text(sums['bytes'])}"
    return f"{', '.join(parts)}; {cost}{more}"


def plan_table(rows: Sequence[PlanRow]) -> None:
    """One line per method and task, their seeds and label fractions together."""
    together: dict[tuple[str, ...], list[PlanRow]] = {}
    for row in rows:
        together.setdefault((*_who(row.cell), row.state, row.reason), []).append(row)
    lines, measured = [], any(row.open and row.seconds is not None for row in rows)
    for (kind, label, place, state, reason), members in together.items():
        seconds, size = (_total([getattr(row, name) for row in members]) for name in ("seconds", "bytes"))
        cost = (seconds_text(seconds), bytes_text(size)) if members[0].open and measured else ("", "")
        lines.append((kind, label, place, len(members), state, *cost, reason))
    columns(["cell", "method", "on", "cells", "state", "time", "disk", "why"], lines, right=["cells", "time", "disk"])


def _who(cell: Cell) -> tuple[str, str, str]:
    if isinstance(cell, PretrainCell):
        return cell.kind, cell.label, cell.corpus
    return cell.kind, cell.pretrain.label, cell.task


def _total(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def plan_data(grid: Grid, rows: Sequence[PlanRow], sums: Mapping[str, Any]) -> dict[str, Any]:
    """The plan for programs: a row per cell."""
    cells = [
        {
            "kind": row.cell.kind,
            "key": row.cell.key,
            "folder": row.cell.folder,
            "method": row.cell.method if isinstance(row.cell, PretrainCell) else row.cell.pretrain.method,
            "label": _who(row.cell)[1],
            "corpus": (row.cell.corpus if isinstance(row.cell, PretrainCell) else row.cell.pretrain.corpus) or None,
            "task": row.cell.task if isinstance(row.cell, TransferCell) else None,
            "label_fraction": row.cell.label_fraction if isinstance(row.cell, TransferCell) else None,
            "seed": row.cell.seed,
            "phantom": row.cell.phantom,
            "state": row.state,
            "reason": row.reason,
            "seconds": row.seconds,
            "bytes": row.bytes,
        }
        for row in rows
    ]
    skipped = [{"what": what, "why": why} for what, why in grid.skipped]
    return {"totals": dict(sums), "cells": cells, "skipped": skipped, "unavailable": unavailable(grid)}


def unavailable(grid: Grid) -> list[dict[str, str]]:
    return [{"method": method, "task": task, "why": why} for (method, task), why in grid.unavailable.items()]


def summary(grid: Grid, outcome: Outcome, request: Request, seconds: float) -> dict[str, Any]:
    """What became of a run, for programs and for the last line."""
    return {
        "cells": len(grid.transfers),
        "counts": dict(outcome.counts),
        "pretrained": outcome.pretrained,
        "transferred": outcome.transferred,
        "phantom": any(cell.phantom for cell in grid.transfers),
        "seconds": round(seconds, 3),
        "records": str(request.results / "records"),
        "exit_code": outcome.exit_code,
        "skipped": [{"what": what, "why": why} for what, why in grid.skipped],
        "unavailable": unavailable(grid),
    }


def summary_line(facts: Mapping[str, Any]) -> str:
    """How many results there are, and what this run did for them."""
    done = f"{facts['counts'].get('done', 0)} of {counted(facts['cells'], 'result')} in {facts['records']}"
    rest = {name: number for name, number in facts["counts"].items() if name != "done"}
    bad = f" ({tally(rest)})" if rest else ""
    took = seconds_text(facts["seconds"])
    if not facts["pretrained"] and not facts["transferred"]:
        why = "nothing new was trained" if bad else "nothing was trained: every result was there already"
        return f"{done}{bad}; {why} ({took})"
    trained = f"{counted(facts['pretrained'], 'pretraining')} and {counted(facts['transferred'], 'transfer')}"
    return f"{done}{bad}; {trained} run in {took}"
