"""Cells whose job is gone without a record: they get one, that says how the job ended and how far the cell had come."""

from __future__ import annotations

from collections.abc import Container

from bench.data.store import LOG, Store, live_owner, read_progress
from bench.registry import Registry
from bench.run.cell import CellOutcome, end_badly, failed_since
from bench.run.cluster import slurm
from bench.run.launch import blocked_by
from bench.spec import BLOCKED, DONE, FAILED, BenchError, Cell, PretrainCell, TransferCell


def outcome_of(store: Store, cell: Cell, since: float) -> CellOutcome | None:
    """How a cell ended: with its result, or badly since a time; None while neither is known."""
    return CellOutcome(DONE) if store.finished(cell) else failed_since(store, cell, since)


def bury(
    store: Store,
    shelves: Registry,
    cell: Cell,
    since: float,
    end: slurm.End,
    label: str,
    queued: Container[str] = (),
) -> CellOutcome | None:
    """Notes how a cell ended whose job (`label`) is over; None where somebody else is at work on it.

    queued: keys of cells that another task holds by now.
    """
    known = outcome_of(store, cell, since)
    if known is not None:
        return known
    if live_owner(store.folder(cell)) is not None:
        return None
    if isinstance(cell, TransferCell) and _lost(store, cell.pretrain, since, queued):
        return write(store, shelves, cell, BLOCKED, _orphaned(store, cell.pretrain, since))
    status, reason = slurm.explain(end, label)
    return write(store, shelves, cell, status, f"{reason} {_progress(store, cell)}")


def write(store: Store, shelves: Registry, cell: Cell, status: str, reason: str) -> CellOutcome:
    """Writes the record or state of a cell that ended badly."""
    try:
        end_badly(store, shelves, cell, status, reason)
    except BenchError as error:
        LOG.warning("how %s ended could not be recorded: %s", cell.folder, error)
    return CellOutcome(status, reason, ran=status != BLOCKED)


def _lost(store: Store, parent: PretrainCell, since: float, queued: Container[str]) -> bool:
    """Whether a pretraining has no encoder and nobody is about to make it."""
    if not parent.trained or store.finished(parent):
        return False
    if failed_since(store, parent, since) is not None:
        return True
    return parent.key not in queued and live_owner(store.folder(parent)) is None


def _orphaned(store: Store, parent: PretrainCell, since: float) -> str:
    known = failed_since(store, parent, since)
    return blocked_by(parent, known or CellOutcome(FAILED, "it has no encoder, and its job says nothing"))


def _progress(store: Store, cell: Cell) -> str:
    progress = read_progress(store.folder(cell))
    if progress is None:
        return "before the cell began"
    log = store.folder(cell) / "log.txt"
    return f"at {progress['phase']}, step {progress['step']} of {progress['steps']}; see {log}"
