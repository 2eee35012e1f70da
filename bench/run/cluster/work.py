"""What a job does: the local queue over the cells of its task, and what is due when a signal comes.

SIGUSR2 is what Slurm sends before a time limit, and before a preemption where the cluster is set up so: the cells write
their checkpoints, and the job puts itself back into the queue. SIGTERM is the end, and whether there is another turn is
Slurm's decision: the cells write their checkpoints. Only where Slurm still counts the job as running does the SIGTERM
begin the grace time of a preemption, which ends well for nobody who waits for it: the job puts itself back here too. A
cell that is left over is taken up by the next turn, or by the next `bench run`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import registry
from bench.data.store import Store, live_owner, read_json
from bench.registry import Registry
from bench.run import executor, launch
from bench.run.cell import CellOutcome, failed_since
from bench.run.cluster import slurm
from bench.run.cluster.deaths import bury, outcome_of, write
from bench.run.cluster.notes import ORDER
from bench.run.grid import memory_needed
from bench.run.provenance import code_digest
from bench.spec import (
    BLOCKED,
    FAILED,
    TIMED_OUT,
    BenchError,
    Cell,
    PretrainCell,
    Site,
    cell_from_dict,
    file_digest,
    site_from_dict,
)

SIGNAL_SECONDS = 120  # before a time limit that the job is told
GRACE_SECONDS = 25.0  # for the cells' last checkpoints; Slurm's KillWait is 30 by default
PARENT_SECONDS = 20.0  # that a finished pretraining may take to be seen from another node
EARLY_SECONDS = 60  # that Slurm's signal may come before its time, sbatch(1)


@dataclass(frozen=True)
class Task:
    """The work of one task of an array, as submitit carries it."""

    folder: str  # of the array's note
    index: int

    def __call__(self) -> dict[str, int]:
        """Does it; counts of what became of the transfers."""
        return Job(Path(self.folder), self.index).run()

    def checkpoint(self) -> Any:
        """What submitit puts back where a signal comes before the work has begun: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Journal(launch.Silent):
    """Says in the job's log what begins and ends."""

    def started(self, cell: Cell) -> None:
        print(f"started {cell.folder}", flush=True)

    def ended(self, cell: Cell, outcome: CellOutcome) -> None:
        print(f"{outcome.status} {cell.folder} {outcome.reason}".rstrip(), flush=True)


def own_label(environment: Mapping[str, str]) -> str:
    """What Slurm calls this task."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


class Job:
    """One task of an array at work."""

    def __init__(self, folder: Path, index: int) -> None:
        self.began = time.monotonic()
        order = read_json(folder / ORDER)
        if order is None:
            raise BenchError(f"the order {folder / ORDER} cannot be read; run `bench run` again")
        self.order, self.since, self.label = order, float(order["since"]), own_label(os.environ)
        self.cells = [cell_from_dict(cell) for cell in order["tasks"][index]]
        self.site: Site = site_from_dict(order["site"])
        self.store = Store(self.site.runs, self.site.results)

    def run(self) -> dict[str, int]:
        """Brings the cells to their records, as far as this turn goes."""
        print(f"{slurm.TURN}, job {self.label}", file=sys.stderr, flush=True)
        if code_digest() != self.order["code"]:
            raise BenchError(
                f"job {self.label} found other code than was submitted; is something before it on the path?"
            )
        try:
            shelves = self._shelves()
        except BenchError as error:
            shelves = registry.scan()
            return self._give_up(shelves, str(error))
        journal = _Journal()
        with launch.Interrupt(patient=True) as interrupt:
            ready = self._with_parents(shelves, interrupt)
            try:
                outcome = launch.work_off(
                    ready, self.store, self.site, self.since, self._executor(), interrupt, journal, GRACE_SECONDS
                )
            except BenchError as error:  # the node has not what the profile asked for
                return self._give_up(shelves, str(error))
            for warning in outcome.warnings:
                print(f"warning: {warning}", flush=True)
            if interrupt.number is not None:
                self._leave(shelves, interrupt.number)
        return dict(outcome.counts)

    def _shelves(self) -> Registry:
        for path, known in self.order["files"]:
            if not Path(path).is_file() or file_digest(Path(path)) != known:
                raise BenchError(f"{path} was changed after the jobs were submitted; run `bench run` again")
        return registry.scan(self.site.plugins)

    def _executor(self) -> executor.MakeExecutor:
        slots, shares = self.order["slots"], self.order["cells_per_gpu"]
        return executor.local(slots, shares, memory_needed(self.store))

    def _left(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if outcome_of(self.store, cell, self.since) is None]

    def _give_up(self, shelves: Registry, reason: str) -> dict[str, int]:
        left = self._left(self.cells)
        for cell in left:
            write(self.store, shelves, cell, FAILED, f"job {self.label}: {reason}")
        return {FAILED: len(left)}

    # parents

    def _with_parents(self, shelves: Registry, interrupt: launch.Interrupt) -> list[Cell]:
        """The cells whose encoder is there; the others are recorded as blocked."""
        ready, blocked = list[Cell](), dict[str, CellOutcome | None]()
        for cell in self.cells:
            if isinstance(cell, PretrainCell) or not cell.pretrain.trained:
                ready.append(cell)
                continue
            if cell.pretrain.key not in blocked:
                blocked[cell.pretrain.key] = self._parent(shelves, cell.pretrain, interrupt)
            failure = blocked[cell.pretrain.key]
            if failure is None:
                ready.append(cell)
            elif outcome_of(self.store, cell, self.since) is None:
                reason = launch.blocked_by(cell.pretrain, failure)
                _Journal().ended(cell, write(self.store, shelves, cell, BLOCKED, reason))
        return ready

    def _parent(self, shelves: Registry, parent: PretrainCell, interrupt: launch.Interrupt) -> CellOutcome | None:
        """How a pretraining failed; None where its encoder is there (or this job is told to stop)."""
        deadline = time.monotonic() + PARENT_SECONDS
        while not self.store.finished(parent) and not interrupt.seen:
            known = failed_since(self.store, parent, self.since)
            if known is not None:
                return known
            if live_owner(self.store.folder(parent)) is not None:
                deadline = time.monotonic() + PARENT_SECONDS
            elif time.monotonic() > deadline:
                return self._dead_parent(shelves, parent)
            time.sleep(1.0)
        return None

    def _dead_parent(self, shelves: Registry, parent: PretrainCell) -> CellOutcome:
        job, label, folder = self.order["parents"].get(parent.key, ("", "", ""))
        end = slurm.ends(job, [label], Path(folder))[label] if label else slurm.End("")
        found = bury(self.store, shelves, parent, self.since, end, label or "of another run")
        return found or CellOutcome(FAILED, "another process took it up again")

    # signals

    def _leave(self, shelves: Registry, number: int) -> None:
        """After a signal: asks for another turn, or says why there is none."""
        left = self._left(self.cells)
        print(f"signal {signal.Signals(number).name}: {len(left)} of {len(self.cells)} cells left", flush=True)
        if not left or (number != signal.SIGUSR2 and not slurm.goes_on(self.label)):
            return
        turns = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        why = f"it was put back {turns} times already"
        if turns < self.order["requeues"]:
            try:
                slurm.requeue(self.label)
            except slurm.NoAnswer as error:
                why = f"the cluster does not put it back ({error})"
            else:
                print(f"put back into the queue, turn {turns + 2} follows", flush=True)
                return
        print(f"no further turn: {why}", flush=True)
        if time.monotonic() - self.began > self.order["minutes"] * 60 - self.order["signal"] - EARLY_SECONDS - 60:
            for cell in left:
                write(self.store, shelves, cell, TIMED_OUT, f"job {self.label} came to its time limit, and {why}")
