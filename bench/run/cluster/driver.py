"""Submission, on the login node: what has neither result nor job becomes arrays, what has is left alone.

One driver at a time submits to a store, so that two that are started together submit every cell once.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.data.store import Claim, Store, claim
from bench.registry import Registry
from bench.run import launch
from bench.run.cluster import notes, slurm
from bench.run.cluster.arrays import Array, arrays_of, gpu_hours
from bench.run.cluster.notes import Note
from bench.run.cluster.snapshot import take
from bench.run.cluster.standing import Standing, look, settle, withdraw
from bench.run.cluster.work import SIGNAL_SECONDS, Task
from bench.run.grid import Grid, Request, plan
from bench.run.grid.profile import Cluster, Needs
from bench.spec import BenchError, Cell, PretrainCell, Site, file_digest, site_to_dict

LOCK = "submitting"  # the claim of the driver that submits, below the jobs' folder
LOCK_SECONDS = 0.5


@dataclass(frozen=True)
class Submission:
    """What a run handed over to Slurm."""

    arrays: tuple[tuple[Note, Array], ...]  # by this run
    standing: Standing  # before it
    open: tuple[Cell, ...]  # cells of the grid without a result: new, or in the queue already
    dead: int  # cells whose job was found gone, and that are submitted again

    @property
    def jobs(self) -> list[str]:
        return [note.job for note, _ in self.arrays]

    def new(self, kind: str) -> int:
        """Cells of a kind that were submitted."""
        return sum(len(array.cells) for _, array in self.arrays if array.stage == kind)

    @property
    def queued(self) -> list[Cell]:
        """Cells that were in the queue before."""
        return [cell for cell in self.open if cell.key in self.standing.labels]


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Waits until no other driver submits to the store."""
    held: Claim | None = None
    while (held := claim(notes.home(store) / LOCK)) is None:
        time.sleep(LOCK_SECONDS)
    try:
        yield
    finally:
        held.release()


def _open_cells(grid: Grid, store: Store) -> list[Cell]:
    return [cell for cell in launch.needed_cells(grid, store) if not store.finished(cell)]


def submit(grid: Grid, request: Request, shelves: Registry, consent: Callable[[float], bool]) -> Submission:
    """Submits every cell that has no result and no job; BenchError where Slurm refuses or `consent` is not given.

    consent: asked with the GPU-hours that are to be spent where the profile sets a limit and they are above it.
    """
    assert request.cluster is not None
    cluster, store, ranks = request.cluster.with_names(shelves), request.store, request.gpus_per_cell
    store.prepare()
    if not _open_cells(grid, store):
        return Submission((), Standing(), (), 0)
    standing = _look(store)
    wanted = arrays_of(_new(_open_cells(grid, store), standing), cluster, standing.labels, ranks)
    _check_ranks(wanted, ranks)
    _ask(wanted, cluster, grid, store, consent)
    with _alone(store):
        standing = _look(store)
        dead = settle(store, standing.gone, standing.labels)
        cells = _open_cells(grid, store)
        _withdraw(standing, cells)
        wanted = arrays_of(_new(cells, standing), cluster, standing.labels, ranks)
        made = _submit_all(wanted, request, cluster, shelves, standing) if wanted else ()
    return Submission(tuple(made), standing, tuple(cells), dead)


def _look(store: Store) -> Standing:
    try:
        slurm.queue()  # also where nothing is noted yet: before cells are gone through, not after
        return look(store)
    except slurm.NoAnswer as error:
        why = f"the profile asks for Slurm, which does not answer here ({error})"
        raise BenchError(f"{why}; run the command on a login node") from error


def _withdraw(standing: Standing, cells: Sequence[Cell]) -> None:
    try:
        withdraw(standing, cells)
    except slurm.NoAnswer as error:
        raise BenchError(f"transfers that wait for a failed pretraining cannot be submitted again: {error}") from error


def _check_ranks(arrays: Sequence[Array], ranks: int) -> None:
    for array in arrays:
        if array.stage == PretrainCell.kind and 0 < array.needs.gpus < ranks:
            have = f"the profile's jobs have gpus = {array.needs.gpus}"
            raise BenchError(f"--gpus-per-cell {ranks}, but {have}; change one or the other")


def _new(cells: Iterable[Cell], standing: Standing) -> list[Cell]:
    return [cell for cell in cells if cell.key not in standing.labels]


def _ask(arrays: Sequence[Array], cluster: Cluster, grid: Grid, store: Store, consent: Callable[[float], bool]) -> None:
    if cluster.max_gpu_hours is None or not any(array.needs.gpus for array in arrays):
        return
    hours = gpu_hours(arrays, {row.cell.key: row.seconds for row in plan(grid, store)})
    if hours > cluster.max_gpu_hours and not consent(hours):
        raise BenchError(
            f"these cells may take {hours:.1f} GPU-hours, more than the profile's max_gpu_hours = "
            f"{cluster.max_gpu_hours:g}; nothing was submitted; say --yes, or ask for less"
        )


def _submit_all(
    arrays: Sequence[Array], request: Request, cluster: Cluster, shelves: Registry, standing: Standing
) -> list[tuple[Note, Array]]:
    store, site = request.store, request.site(shelves)
    copied = take(site.runs, site.plugins)
    files = [(path, file_digest(Path(path))) for path in copied.plugins]
    site = replace(site, plugins=copied.plugins)
    made: list[tuple[Note, Array]] = []
    homes = dict(standing.labels)  # key of a cell -> its task
    folders = {note.job: str(note.folder) for note in notes.open_notes(store)}
    for array in arrays:
        parents = {key: homes[key] for key in array.parents}
        order = {
            "code": copied.code,
            "site": site_to_dict(_site_for(site, array)),
            "files": files,
            "slots": array.slots,
            "cells_per_gpu": array.needs.cells_per_gpu,
            "minutes": array.needs.minutes,
            "signal": _signal_seconds(array.needs),
            "requeues": cluster.requeues,
            "parents": {key: (job := label.partition("_")[0], label, folders[job]) for key, label in parents.items()},
        }
        note = notes.write_note(store, array.stage, time.time(), array.tasks, order)
        note = _sbatch(note, array, cluster, copied.folder, list(parents.values()))
        folders[note.job] = str(note.folder)
        homes |= {cell.key: note.label(task) for task, cells in enumerate(array.tasks) for cell in cells}
        made.append((note, array))
    return made


def _site_for(site: Site, array: Array) -> Site:
    """Where cells of an array run: a pretraining may be spread over several devices, a transfer is not."""
    ranks = site.ranks if array.stage == PretrainCell.kind else 1
    return replace(site, device="cuda" if array.needs.gpus else "cpu", ranks=ranks)


def _signal_seconds(needs: Needs) -> int:
    return min(SIGNAL_SECONDS, needs.minutes * 60 // 4)


def _sbatch(note: Note, array: Array, cluster: Cluster, code: Path, after: Sequence[str]) -> Note:
    """Hands an array to Slurm and notes its number."""
    import submitit

    executor = submitit.AutoExecutor(folder=note.folder, cluster="slurm", slurm_max_num_timeout=10**6)
    executor.update_parameters(**parameters(note, array.needs, cluster, code, after))
    try:
        with executor.batch():
            jobs = [executor.submit(Task(str(note.folder), index)) for index in range(len(array.tasks))]
    except Exception as error:  # submitit passes on what sbatch said, in exceptions of several kinds
        note.close()
        said = " ".join(str(error).split()) or type(error).__name__
        raise BenchError(f"sbatch refused an array of {len(array.tasks)} tasks: {said[-400:]}") from error
    return notes.noted(replace(note, job=str(jobs[0].job_id).partition("_")[0]))


def parameters(note: Note, needs: Needs, cluster: Cluster, code: Path, after: Sequence[str]) -> dict[str, Any]:
    """What submitit is told of an array."""
    turns: dict[str, Any] = {"requeue": True} if cluster.requeues else {"no-requeue": True}
    setup = [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONSAFEPATH=1"]
    setup += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment]
    found: dict[str, Any] = {
        "name": note.name,
        "timeout_min": needs.minutes,
        "cpus_per_task": needs.cpus,
        "slurm_array_parallelism": cluster.parallel,
        "slurm_signal_delay_s": _signal_seconds(needs),
        "slurm_setup": [*cluster.setup, *setup],
        "slurm_srun_args": [f"--cpus-per-task={needs.cpus}"],  # which srun no longer takes from sbatch since 22.05
        "slurm_additional_parameters": {**turns, **dict(needs.options)},
    }
    texts = {"partition": needs.partition, "account": needs.account, "qos": needs.qos}
    found |= {f"slurm_{name}": text for name, text in texts.items() if text}
    if needs.gpus:
        found["gpus_per_node"] = needs.gpus
    if needs.memory is not None:
        found["mem_gb"] = needs.memory
    if after:
        found["slurm_dependency"] = f"afterany:{':'.join(dict.fromkeys(after))}"
    return found
