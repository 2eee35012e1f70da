"""What was submitted, noted in the store: one folder per array below `runs/jobs`.

`array.json` is the order a job reads (site, cells of every task), written before sbatch is called; `note.json` says
which cells the array holds and, once Slurm has taken it, its job id. `closed` marks an array of which nothing is
expected any more. Slurm's job carries the folder's name, so that a number used twice is never taken for ours.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data.store import Store, read_json, utc_now, write_json
from bench.run.cluster import slurm
from bench.spec import Cell, cell_to_dict

ORDER, NOTE, CLOSED = "array.json", "note.json", "closed"


@dataclass(frozen=True)
class Note:
    """One array that was submitted, or is about to be."""

    folder: Path
    stage: str  # pretrain or transfer
    job: str  # Slurm's number; empty: sbatch was not heard of again
    since: float  # when, seconds since 1970; a failure after it was made by this array
    tasks: tuple[tuple[str, ...], ...]  # keys of the cells of each task
    user: str = ""  # who submitted it; how it ended is theirs to find out
    cluster: str = ""  # to which it was submitted

    @property
    def name(self) -> str:
        """Of the job, as squeue shows it."""
        return self.folder.name

    def label(self, task: int) -> str:
        """What Slurm calls one task."""
        return f"{self.job}_{task}" if len(self.tasks) > 1 else self.job

    def close(self) -> None:
        """Takes the array out of every later look."""
        (self.folder / CLOSED).touch()


def home(store: Store) -> Path:
    return store.runs / "jobs"


def open_notes(store: Store) -> list[Note]:
    """The arrays of which something may still come, oldest first."""
    found = []
    for path in home(store).glob(f"*/{NOTE}"):
        note = None if (path.parent / CLOSED).exists() else read_json(path)
        if note is not None:
            tasks = tuple(tuple(keys) for keys in note["tasks"])
            place = {"user": note.get("user", ""), "cluster": note.get("cluster", "")}
            found.append(Note(path.parent, note["stage"], note["job"], note["since"], tasks, **place))
    return sorted(found, key=lambda note: (note.since, note.name))


def write_note(
    store: Store, stage: str, since: float, tasks: Sequence[Sequence[Cell]], order: Mapping[str, Any]
) -> Note:
    """Writes the order of a new array and its note, without a job yet."""
    folder = home(store) / f"bench-{stage}-{secrets.token_hex(4)}"
    cells = [[cell_to_dict(cell) for cell in task] for task in tasks]
    write_json(folder / ORDER, {**order, "since": since, "tasks": cells})
    keys = tuple(tuple(cell.key for cell in task) for task in tasks)
    return noted(Note(folder, stage, "", since, keys, slurm.user(), slurm.cluster()))


def noted(note: Note) -> Note:
    """The note, written down."""
    facts = {name: value for name, value in vars(note).items() if name != "folder"}
    write_json(note.folder / NOTE, {**facts, "time": utc_now()})
    return note
