"""A watch over submitted cells, until each has its record or nobody works on it any more."""

from __future__ import annotations

import time
from dataclasses import replace

from bench import registry
from bench.data.store import LOG, Store, collected_warnings, live_owner
from bench.run import launch
from bench.run.cell import CellOutcome
from bench.run.cluster import notes, slurm
from bench.run.cluster.deaths import outcome_of, write
from bench.run.cluster.driver import Submission
from bench.run.cluster.standing import look, settle
from bench.run.executor import TICK_SECONDS
from bench.run.grid import Grid
from bench.spec import BLOCKED, DONE, FAILED, Cell, TransferCell

POLL_SECONDS = 2.0  # between two looks at the store
QUEUE_SECONDS = 15.0  # between two questions to Slurm


class Watch:
    """Follows the cells of a submission until each has its record, whoever runs them."""

    def __init__(self, submission: Submission, grid: Grid, store: Store, observer: launch.Observer) -> None:
        self.store, self.observer, self.outcome = store, observer, launch.Outcome()
        self.open = {cell.key: cell for cell in submission.open}
        self.since = {key: note.since for note in notes.open_notes(store) for keys in note.tasks for key in keys}
        self.began = time.time()
        self.standing = submission.standing
        self.absent: set[str] = set()  # keys without a job at the last question
        self.started: set[str] = set()
        self.seen: dict[str, int] = {}
        self.asked = 0.0
        self.outcome.counts[DONE] = sum(cell.key not in self.open for cell in grid.transfers)

    def run(self, interrupt: launch.Interrupt) -> launch.Outcome:
        """Watches until all is settled or a signal comes; the jobs go on in either case."""
        while self.open and not interrupt.seen:
            looked = time.monotonic()
            self.look_at_cells()
            if self.open and time.monotonic() - self.asked > QUEUE_SECONDS:
                self.ask()
            running = [self.open[key] for key in self.started if key in self.open]
            self.observer.tick(running, [])
            pause = max(POLL_SECONDS, 5 * (time.monotonic() - looked))  # a slow file system is left in peace
            while self.open and not interrupt.seen and time.monotonic() - looked < pause:
                time.sleep(TICK_SECONDS)
        self.outcome.interrupted = interrupt.seen
        return self.outcome

    def look_at_cells(self) -> None:
        """Takes what has ended since the last look."""
        for key, cell in list(self.open.items()):
            if key in self.standing.running and key not in self.started and live_owner(self.store.folder(cell)):
                self.started.add(key)
                self.observer.started(cell)
            if not self._changed(cell):
                continue
            how = outcome_of(self.store, cell, self.since.get(key, self.began))
            if how is not None:
                self._settle(cell, replace(how, ran=how.status != BLOCKED))

    def _changed(self, cell: Cell) -> bool:
        """Whether the file that says how a cell ended is another than at the last look."""
        transfer = isinstance(cell, TransferCell)
        path = self.store.record_path(cell.key) if transfer else self.store.folder(cell) / "state.json"
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return False
        before, self.seen[cell.key] = self.seen.get(cell.key), stamp
        return before != stamp

    def ask(self) -> None:
        """Asks Slurm what is left in the queue; what was absent twice and has no record has died."""
        try:
            self.standing = look(self.store)
        except slurm.NoAnswer as error:
            LOG.warning("Slurm does not answer (%s); asked again", error)
            return
        finally:
            self.asked = time.monotonic()
        absent = {key for key in self.open if key not in self.standing.labels}
        twice, self.absent = absent & self.absent, absent
        if not twice:
            return
        gone = [(note, task) for note, task in self.standing.gone if twice.intersection(note.tasks[task])]
        settle(self.store, gone, self.standing.labels)
        self.look_at_cells()
        for key in twice & set(self.open):
            cell = self.open[key]
            if live_owner(self.store.folder(cell)) is None:
                write(self.store, registry.scan(), cell, FAILED, "no job holds it any more; run `bench run` again")
                self._settle(cell, CellOutcome(FAILED, "no job holds it any more"))

    def _settle(self, cell: Cell, how: CellOutcome) -> None:
        del self.open[cell.key]
        if isinstance(cell, TransferCell):
            self.outcome.counts[how.status] += 1
            self.outcome.transferred += how.ran
        else:
            self.outcome.pretrained += how.ran and how.status == DONE
        if how.status != DONE:
            self.outcome.failures.append((cell, how))
        self.observer.ended(cell, how)


def watch(submission: Submission, grid: Grid, store: Store, observer: launch.Observer) -> launch.Outcome:
    """Waits for a submission; what it returns is what a run on this machine returns."""
    with launch.Interrupt() as interrupt, collected_warnings() as warnings:
        outcome = Watch(submission, grid, store, observer).run(interrupt)
    outcome.warnings += warnings
    outcome.counts["missing"] = len(grid.transfers) - sum(outcome.counts.values())
    outcome.counts = +outcome.counts
    return outcome
