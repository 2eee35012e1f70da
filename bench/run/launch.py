"""Runs a grid: a queue of cells on this machine, pretrainings first, each cell in a process of its own.

Several drivers may work on one store at once, here or elsewhere: a cell that another one holds is waited for, and its
result taken. What is done is never done again; what failed or was blocked is tried again by the next run.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from bench import registry
from bench.data.store import LOG, Store, collected_warnings, live_owner
from bench.registry import Registry
from bench.run.cell import BUSY, INTERRUPTED, PARENT_LOST, CellOutcome, end_badly, failed_since
from bench.run.executor import TICK_SECONDS, Ended, Executor, MakeExecutor, environment, local
from bench.run.grid import Grid, memory_needed
from bench.run.ranks import STOP_SIGNALS
from bench.spec import (
    BLOCKED,
    DONE,
    FAILED,
    OUT_OF_MEMORY,
    STATUSES,
    BenchError,
    Cell,
    PretrainCell,
    Site,
    TransferCell,
)

POLL_SECONDS = 1.0  # how often a cell that another driver holds is looked at
RETRIES = 3  # of a transfer whose encoder is there and yet is not the one that was made
GRACE_SECONDS = 10.0  # for children to reach the next step when the run is interrupted


# --------------------------------------------------------------------------------------------------------- what is told


class Observer(Protocol):
    """Who watches a run; called from the driver's only thread."""

    def started(self, cell: Cell) -> None:
        """A process for the cell was started."""

    def ended(self, cell: Cell, outcome: CellOutcome) -> None:
        """The cell is settled for this run, by this driver or by another (`outcome.ran` is False)."""

    def tick(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        """Several times a second: cells in processes of this driver, and cells that another driver works on."""


class Silent:
    """An observer that looks away."""

    def started(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, outcome: CellOutcome) -> None: ...

    def tick(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> None: ...


@dataclass
class Outcome:
    """What became of a grid."""

    counts: Counter[str] = field(default_factory=Counter)  # of transfers by status; `missing` where interrupted
    failures: list[tuple[Cell, CellOutcome]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pretrained: int = 0  # by this run
    transferred: int = 0  # by this run
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 every cell has its result, 1 some cell failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failures else 0


# --------------------------------------------------------------------------------------------------------------- queue


class _Queue:
    """What is ready, what waits for its parent or for another driver, and what is settled."""

    def __init__(
        self, cells: Sequence[Cell], store: Store, shelves: Registry, since: float, observer: Observer
    ) -> None:
        self.store, self.shelves, self.since, self.observer = store, shelves, since, observer
        self.outcome = Outcome()
        self.ready: list[Cell] = []
        self.elsewhere: dict[str, Cell] = {}  # by key: held by another driver
        self.polled = -math.inf
        self.children: dict[str, list[TransferCell]] = {}  # by key of a pretraining that is not there yet
        self.losses: Counter[str] = Counter()  # how often a cell's encoder was found damaged
        self.open = 0
        pending = [cell for cell in cells if isinstance(cell, TransferCell) and not self._known(cell)]
        trainings = [cell for cell in cells if isinstance(cell, PretrainCell) and not store.finished(cell)]
        missing = {cell.key for cell in trainings}
        for cell in pending:
            if cell.pretrain.key in missing:
                self.children.setdefault(cell.pretrain.key, []).append(cell)
        trainings.sort(key=lambda cell: -cell.steps * cell.batch_size * cell.image_size**2)
        self.ready += trainings
        self.ready += [cell for cell in pending if cell.pretrain.key not in missing]
        self.open = len(trainings) + len(pending)

    def _known(self, cell: TransferCell) -> bool:
        if self.store.done(cell.key) is None:
            return False
        self.outcome.counts[DONE] += 1
        return True

    def next(self) -> Cell | None:
        """A cell to start now, or None; one that another driver holds is put aside."""
        while self.ready:
            cell = self.ready.pop(0)
            if live_owner(self.store.folder(cell)) is None:
                return cell
            self.elsewhere[cell.key] = cell
        return None

    def poll(self) -> None:
        """Looks at the cells that other drivers hold."""
        if not self.elsewhere or time.monotonic() - self.polled < POLL_SECONDS:
            return
        self.polled = time.monotonic()
        for key, cell in list(self.elsewhere.items()):
            if live_owner(self.store.folder(cell)) is not None:
                continue
            del self.elsewhere[key]
            taken = CellOutcome(DONE) if self.store.finished(cell) else failed_since(self.store, cell, self.since)
            if taken is None:
                self.ready.insert(0, cell)
            else:
                self.settle(cell, taken)

    def ended(self, item: Ended) -> None:
        """Takes what came of a process."""
        cell, outcome = item.cell, item.outcome
        if outcome is None:
            outcome = self._died(item)
        elif (
            outcome.status in STATUSES and outcome.status != DONE and failed_since(self.store, cell, self.since) is None
        ):
            self._fail(cell, outcome.status, outcome.reason)
        self.outcome.warnings += outcome.warnings
        if outcome.status == BUSY:
            self.elsewhere[cell.key] = cell
        elif outcome.status == PARENT_LOST and isinstance(cell, TransferCell):
            self._await_parent(cell)
        elif outcome.status != INTERRUPTED:
            self.settle(cell, outcome)
        elif not self.outcome.interrupted:
            self.ready.append(cell)

    def _died(self, item: Ended) -> CellOutcome:
        """The outcome of a process that ended without a word: its record, where it still wrote one, or a failure."""
        cell, exit_code = item.cell, item.exit_code
        taken = CellOutcome(DONE, ran=True) if self.store.finished(cell) else failed_since(self.store, cell, self.since)
        if taken is not None or live_owner(self.store.folder(cell)) is not None:
            return taken or CellOutcome(BUSY)
        if item.starved:
            return self._fail(cell, OUT_OF_MEMORY, "killed by the kernel because the memory was used up")
        if exit_code is not None and exit_code < 0:
            reason = f"killed by signal {-exit_code}" + (" (out of memory?)" if exit_code == -signal.SIGKILL else "")
        else:
            reason = f"the process ended with exit code {exit_code} and without a word"
        reason += f"; see {self.store.folder(cell) / 'log.txt'}"
        return self._fail(cell, FAILED, reason)

    def _fail(self, cell: Cell, status: str, reason: str) -> CellOutcome:
        try:
            end_badly(self.store, self.shelves, cell, status, reason)
        except BenchError as error:
            LOG.warning("the failure of %s could not be recorded: %s", cell.folder, error)
        return CellOutcome(status, reason, ran=status != BLOCKED)

    def _await_parent(self, cell: TransferCell) -> None:
        """Makes the encoder again that a transfer found gone or damaged; twice in one run is a failure."""
        parent = cell.pretrain
        if self.store.finished(parent):  # made again meanwhile
            self.losses[cell.key] += 1
            if self.losses[cell.key] < RETRIES:
                self.ready.append(cell)
                return
            reason = f"its encoder {self.store.encoder(parent)} is damaged and cannot be moved away; remove it by hand"
            self.settle(cell, self._fail(cell, FAILED, reason))
            return
        waiting = self.children.setdefault(parent.key, [])
        waiting.append(cell)
        if len(waiting) > 1:
            return
        self.losses[parent.key] += 1
        self.open += 1
        if self.losses[parent.key] > 1:
            reason = "its encoder was damaged or deleted twice during this run; check the disk"
            self.settle(parent, self._fail(parent, FAILED, reason))
        else:
            self.ready.insert(0, parent)

    def settle(self, cell: Cell, outcome: CellOutcome) -> None:
        """Closes a cell for this run; a pretraining frees or blocks its transfers."""
        self.open -= 1
        if isinstance(cell, TransferCell):
            self.outcome.counts[outcome.status] += 1
            self.outcome.transferred += outcome.ran
        else:
            self.outcome.pretrained += outcome.ran and outcome.status == DONE
        if outcome.status != DONE:
            self.outcome.failures.append((cell, outcome))
        self.observer.ended(cell, outcome)
        for child in self.children.pop(cell.key, []):
            if outcome.status == DONE:
                self.ready.append(child)
            else:
                reason = blocked_by(cell, outcome)
                self.settle(child, self._fail(child, BLOCKED, reason))


def blocked_by(cell: Cell, outcome: CellOutcome) -> str:
    """Why the transfers of a pretraining are blocked that ended without an encoder."""
    verb = f"ran {outcome.status}" if outcome.status == OUT_OF_MEMORY else outcome.status
    return f"its pretraining {cell.folder} {verb}: {outcome.reason}"


class Interrupt:
    """Notes SIGINT, SIGTERM and SIGUSR2 instead of dying of them; where it is not `patient` a second one raises.

    A cluster that preempts a job may say so with SIGTERM first; SIGUSR2, which says more, takes its place.
    """

    def __init__(self, patient: bool = False) -> None:
        self.number: int | None = None  # of the first one, or SIGUSR2
        self._patient = patient
        self._before: dict[int, Any] = {}

    @property
    def seen(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Interrupt:
        with suppress(ValueError):  # signals belong to the main thread; a run in another one cannot have them
            for number in (signal.SIGINT, *STOP_SIGNALS):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and not self._patient:
            raise KeyboardInterrupt
        if not self.seen or number == signal.SIGUSR2:
            self.number = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run(
    grid: Grid,
    store: Store,
    site: Site,
    jobs: int | None = None,
    observer: Observer | None = None,
    make_executor: MakeExecutor | None = None,
    cells_per_gpu: int = 1,
) -> Outcome:
    """Brings every cell of a grid to its record; BenchError where the folders or the device cannot be used.

    jobs: cells at a time; None: one per core (one thread each, so that no number depends on it), or one per GPU.
    """
    since = time.time()
    store.prepare()
    made = make_executor or local(jobs, cells_per_gpu, memory_needed(store))
    with Interrupt() as interrupt:
        with collected_warnings() as early:
            cells = needed_cells(grid, store)
        outcome = work_off(cells, store, site, since, made, interrupt, observer)
    outcome.warnings = list(dict.fromkeys([*early, *outcome.warnings]))
    outcome.counts["missing"] = len(grid.transfers) - sum(outcome.counts.values())
    outcome.counts += Counter()  # drops zeros
    return outcome


def needed_cells(grid: Grid, store: Store) -> list[Cell]:
    """Every transfer, and the pretrainings without an encoder that an unfinished transfer waits for."""
    wanted = {cell.pretrain.key for cell in grid.transfers if store.done(cell.key) is None}
    missing = [cell for cell in grid.pretrainings if cell.key in wanted and not store.finished(cell)]
    return [*missing, *grid.transfers]


def work_off(
    cells: Sequence[Cell],
    store: Store,
    site: Site,
    since: float,
    make_executor: MakeExecutor,
    interrupt: Interrupt,
    observer: Observer | None = None,
    grace: float = GRACE_SECONDS,
) -> Outcome:
    """Brings cells to their records, pretrainings first, until all are settled or `interrupt` has seen a signal.

    since: seconds since 1970; a failure after it is taken as it is. grace: seconds for the cells' last checkpoints.
    """
    with collected_warnings() as warnings, environment(site.threads):
        queue = _Queue(cells, store, registry.scan(site.plugins), since, observer or Silent())
        if queue.open:
            _drive(queue, make_executor(site, since), interrupt, grace)
        queue.outcome.warnings += warnings
    return queue.outcome


def _drive(queue: _Queue, executor: Executor, interrupt: Interrupt, grace: float) -> None:
    try:
        while queue.open and not interrupt.seen:
            while executor.free() and (cell := queue.next()) is not None:
                if not executor.takes(cell):
                    queue.ready.insert(0, cell)
                    break
                executor.submit(cell)
                queue.observer.started(cell)
            for item in executor.wait(TICK_SECONDS):
                if item.outcome is not None or not interrupt.seen:
                    queue.ended(item)
            queue.poll()
            queue.observer.tick(executor.running(), list(queue.elsewhere.values()))
    finally:
        queue.outcome.interrupted = interrupt.seen
        for item in executor.stop(grace if executor.running() else 0.0):
            if item.outcome is not None:
                queue.ended(item)
