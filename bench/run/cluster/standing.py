"""What Slurm holds of a store, and the end of what it holds no longer."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench import registry
from bench.data.store import Store, read_json
from bench.registry import Registry
from bench.run.cell import failed_since
from bench.run.cluster import notes, slurm
from bench.run.cluster.deaths import bury, outcome_of
from bench.run.cluster.notes import Note
from bench.spec import BenchError, Cell, PretrainCell, TransferCell, cell_from_dict

SBATCH_SECONDS = 300.0  # after which an array without a number was never taken by Slurm


@dataclass
class Standing:
    """What Slurm holds of this store: cells whose job waits or runs, and tasks that are gone."""

    labels: dict[str, str] = field(default_factory=dict)  # key of a cell -> its task
    running: set[str] = field(default_factory=set)  # keys of cells whose task runs
    waiting: list[tuple[Note, int]] = field(default_factory=list)
    gone: list[tuple[Note, int]] = field(default_factory=list)

    def jobs(self, keys: Iterable[str]) -> list[str]:
        """Numbers of the jobs that hold some cells."""
        return list(dict.fromkeys(self.labels[key].partition("_")[0] for key in keys if key in self.labels))


def look(store: Store) -> Standing:
    """Asks Slurm about every array that is not closed; slurm.NoAnswer where it does not answer."""
    found, known = Standing(), notes.open_notes(store)
    if not known:
        return found
    queue = slurm.queue(note.user for note in known if note.user and _is_here(note))
    for note in filter(_is_here, known):
        note = note if note.job else _heard_of(note, queue)
        states = {task: queue.get((note.label(task), note.name)) for task in range(len(note.tasks))}
        if note.user in ("", slurm.user()):  # of others' jobs a cluster may tell nothing, also while they run
            found.gone += [(note, task) for task, state in states.items() if state is None]
        held = {task: state for task, state in states.items() if state is not None}
        order = read_json(note.folder / notes.ORDER) if held else None
        for task, state in held.items():
            keys = note.tasks[task] if order is None else _still_held(store, order["tasks"][task], note.since)
            found.labels |= dict.fromkeys(keys, note.label(task))
            if state == "RUNNING":
                found.running |= set(keys)
            elif state == "PENDING":
                found.waiting.append((note, task))
    return found


def _is_here(note: Note) -> bool:
    """Whether an array may be known to the cluster that answers here."""
    return not note.cluster or slurm.cluster() in ("", note.cluster)


def _still_held(store: Store, cells: Sequence[Mapping[str, Any]], since: float) -> list[str]:
    """Keys of the cells of a task that it still brings to an end: one that failed in it, it does not take again."""
    found = [cell_from_dict(cell) for cell in cells]
    return [cell.key for cell in found if failed_since(store, cell, since) is None]


def _heard_of(note: Note, queue: Mapping[tuple[str, str], str]) -> Note:
    """A note whose driver died before it learned the job's number, completed from the queue."""
    label = next((label for label, name in queue if name == note.name), "")
    return notes.noted(replace(note, job=label.partition("_")[0])) if label else note


def settle(store: Store, gone: Sequence[tuple[Note, int]], queued: Container[str] = ()) -> int:
    """Records how the cells ended whose task is gone, pretrainings first; returns how many died without a record.

    queued: keys of cells that another task holds by now. Arrays of which every task is gone and every cell settled are
    closed.
    """
    dead, open_tasks = 0, {(note.name, task) for note, task in gone}
    for note in sorted({note for note, _ in gone}, key=lambda note: (note.stage != PretrainCell.kind, note.since)):
        tasks = [task for task in range(len(note.tasks)) if (note.name, task) in open_tasks]
        order = read_json(note.folder / notes.ORDER)
        if not note.job and time.time() - note.since < SBATCH_SECONDS:
            continue  # somebody may be submitting it at this moment
        if order is None or not note.job:
            note.close()
            continue
        left = {task: _left(store, order["tasks"][task], note.since, queued) for task in tasks}
        unsettled = [task for task in tasks if left[task]]
        if unsettled:
            shelves = _shelves(order)
            ends = slurm.ends(note.job, [note.label(task) for task in unsettled], note.folder)
            for task in unsettled:
                label = note.label(task)
                buried = [bury(store, shelves, cell, note.since, ends[label], label, queued) for cell in left[task]]
                left[task] = [cell for cell, how in zip(left[task], buried, strict=True) if how is None]
                dead += sum(how is not None and how.ran for how in buried)
        if len(tasks) == len(note.tasks) and not any(left.values()):
            note.close()
    return dead


def _left(store: Store, cells: Sequence[Mapping[str, Any]], since: float, queued: Container[str]) -> list[Cell]:
    found = [cell_from_dict(cell) for cell in cells]
    return [cell for cell in found if cell.key not in queued and outcome_of(store, cell, since) is None]


def withdraw(standing: Standing, cells: Sequence[Cell]) -> None:
    """Takes waiting transfers out of the queue whose pretraining has no task any more, so that they wait for the next.

    cells: all that have no result yet. slurm.NoAnswer where Slurm does not do so.
    """
    again = {cell.key for cell in cells if isinstance(cell, PretrainCell) and cell.key not in standing.labels}
    orphans = {cell.key for cell in cells if isinstance(cell, TransferCell) and cell.pretrain.key in again}
    tasks = [(note, task) for note, task in standing.waiting if orphans.intersection(note.tasks[task])]
    if tasks:
        slurm.withdraw([note.label(task) for note, task in tasks])
        taken = {key for note, task in tasks for key in note.tasks[task]}
        standing.labels = {key: label for key, label in standing.labels.items() if key not in taken}


def _shelves(order: Mapping[str, Any]) -> Registry:
    try:
        return registry.scan(order["site"]["plugins"])
    except BenchError:
        return registry.scan()
