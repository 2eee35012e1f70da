"""How the cells of a grid stand, and the time and disk still to be spent on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.data.store import Store, live_owner, settled
from bench.run.cell import timing_of
from bench.run.grid.cells import Grid
from bench.spec import DONE, Cell, PretrainCell, TransferCell

RECENT = 20  # measured cells an estimate looks back on


@dataclass(frozen=True)
class PlanRow:
    """One cell and how it stands: done, cached, stale, running, interrupted, failed before, new, not needed."""

    cell: Cell
    state: str
    reason: str
    seconds: float | None  # still to be spent; None: never measured here
    bytes: float | None  # on disk, still to be written; None: never measured here

    @property
    def open(self) -> bool:
        """Whether it would run."""
        return self.state in ("interrupted", "failed before", "new")


class _Estimates:
    """Medians of what cells took on a store: seconds (per step for a pretraining) and bytes."""

    def __init__(self, timings: Iterable[Mapping[str, Any]]) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._bytes: dict[str, list[float]] = {}
        for timing in timings:
            if {"of", "seconds", "bytes"} <= timing.keys():
                name = _name(timing["of"])
                self._seconds.setdefault(name, []).append(timing["seconds"])
                self._bytes.setdefault(name, []).append(timing["bytes"])

    def of(self, cell: Cell) -> tuple[float | None, float | None]:
        if isinstance(cell, PretrainCell) and cell.steps == 0:
            return 0.0, None  # weights that are only brought along
        name = _name(timing_of(cell))
        if name not in self._seconds:
            return None, None
        steps = cell.steps if isinstance(cell, PretrainCell) else 1
        return (
            steps * statistics.median(self._seconds[name][-RECENT:]),
            statistics.median(self._bytes[name][-RECENT:]),
        )


def memory_needed(store: Store) -> Callable[[Cell], int | None]:
    """Tells the most bytes that cells like one took on a GPU of this store; None where none was measured."""
    most: dict[str, list[int]] = {}
    for timing in store.timings():
        if {"of", "memory"} <= timing.keys() and timing.get("device") == "cuda":
            most.setdefault(_name(timing["of"]), []).append(timing["memory"])

    def needed(cell: Cell) -> int | None:
        known = most.get(_name(timing_of(cell)))
        return max(known[-RECENT:]) if known else None

    return needed


def _name(timing: Mapping[str, Any]) -> str:
    return repr(sorted(timing.items()))


def plan(grid: Grid, store: Store) -> list[PlanRow]:
    """How every cell stands, pretrainings first, with the time and disk that are still to be spent."""
    estimates = _Estimates(store.timings())
    transfers = [_plan_transfer(grid, store, cell, estimates) for cell in grid.transfers]
    needed = {row.cell.pretrain.key for row in transfers if isinstance(row.cell, TransferCell) and _unsettled(row)}
    pretrainings = [_plan_pretraining(grid, store, cell, estimates, cell.key in needed) for cell in grid.pretrainings]
    return pretrainings + transfers


def _unsettled(row: PlanRow) -> bool:
    return row.state not in (DONE, "stale")


def _unfinished(store: Store, cell: Cell, ended: Mapping[str, Any] | None) -> tuple[str, str]:
    """State and reason of a cell that has no result."""
    folder = store.folder(cell)
    owner = live_owner(folder)
    if owner is not None:
        return "running", f"on {owner['host']}, process {owner['pid']}"
    if ended is not None and ended["status"] != DONE:
        return "failed before", f"{ended['status']}: {ended['reason']}"
    return ("interrupted", "") if (folder / "cell.json").exists() else ("new", "")


def _plan_transfer(grid: Grid, store: Store, cell: TransferCell, estimates: _Estimates) -> PlanRow:
    record = store.read(cell.key)
    if record is not None and settled(record):
        return _settled_row(cell, DONE, grid.is_current(cell, record.get("sources")))
    return PlanRow(cell, *_unfinished(store, cell, record), *estimates.of(cell))


def _plan_pretraining(grid: Grid, store: Store, cell: PretrainCell, estimates: _Estimates, needed: bool) -> PlanRow:
    state = store.pretrained(cell)
    if state is not None:
        return _settled_row(cell, "cached", grid.is_current(cell, state.get("sources")))
    if not needed:
        return PlanRow(cell, "not needed", "all its transfers are done", 0.0, 0.0)
    return PlanRow(cell, *_unfinished(store, cell, store.state(cell)), *estimates.of(cell))


def _settled_row(cell: Cell, state: str, current: bool) -> PlanRow:
    reason = "" if current else "made by an older source of its method or task; kept, and marked in tables"
    return PlanRow(cell, state if current else "stale", reason, 0.0, 0.0)


def totals(rows: Iterable[PlanRow]) -> dict[str, Any]:
    """Counts by kind and state, and the seconds and bytes to be spent (None where a cell was never measured)."""
    rows = list(rows)
    counts: dict[str, dict[str, int]] = {"pretrain": {}, "transfer": {}}
    for row in rows:
        counts[row.cell.kind][row.state] = counts[row.cell.kind].get(row.state, 0) + 1
    todo = [row for row in rows if row.open]
    measured = [row for row in todo if row.seconds is not None]
    return {
        "counts": counts,
        "to_run": len(todo),
        "unmeasured": len(todo) - len(measured),
        "seconds": sum(row.seconds or 0.0 for row in measured),
        "bytes": sum(row.bytes or 0.0 for row in measured),
    }
