"""Runs a grid: a queue of cells on this machine, pretrainings first, each cell in a process of its own.

Several drivers may work on one store at once, here or elsewhere: a cell that another one holds is waited for, and its
result taken. What is done is never done again; what failed or was blocked is tried again by the next run.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from bench import registry
from bench.cell import BUSY, INTERRUPTED, PARENT_LOST, CellOutcome, child_main, end_badly, failed_since
from bench.grid import Grid
from bench.registry import Registry
from bench.spec import (
    BLOCKED,
    DONE,
    FAILED,
    OUT_OF_MEMORY,
    STATUSES,
    BenchError,
    Cell,
    Site,
    TransferCell,
    cell_to_dict,
    site_to_dict,
)
from bench.store import LOG, Store, collected_warnings, live_owner

TICK_SECONDS = 0.2
POLL_SECONDS = 1.0  # how often a cell that another driver holds is looked at
RETRIES = 3  # of a transfer whose encoder is there and yet is not the one that was made
GRACE_SECONDS = 10.0  # for children to reach the next step when the run is interrupted
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# imported once by the fork server, so that a cell starts in milliseconds
PRELOAD = ("bench.pretrain", "bench.transfer", "lightning_fabric", "lightly.loss", "lightly.models")


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


# ------------------------------------------------------------------------------------------------------------ executor


@dataclass
class Ended:
    """A cell whose process is over; `outcome` None where it died without a word."""

    cell: Cell
    outcome: CellOutcome | None
    exit_code: int | None


class Executor(Protocol):
    """Where cells run: processes here, or the jobs of a cluster."""

    def free(self) -> int:
        """How many more cells it takes now."""

    def submit(self, cell: Cell) -> None:
        """Starts a cell."""

    def running(self) -> list[Cell]:
        """The cells that were started and have not ended."""

    def wait(self, seconds: float) -> list[Ended]:
        """The cells that ended, after at most so long."""

    def stop(self, seconds: float) -> list[Ended]:
        """Asks all cells to stop, and ends those that have not after so long."""


@dataclass
class _Child:
    cell: Cell
    slot: int
    process: Any
    connection: Connection


class LocalExecutor:
    """A fresh process per cell, forked from a server that has imported the heavy packages once."""

    def __init__(
        self, site: Site, jobs: int, since: float, devices: Sequence[str], main: Callable[..., None] = child_main
    ) -> None:
        self._site, self._since, self._devices, self._main = site, since, list(devices), main
        self._slots = list(range(jobs))
        self._children: list[_Child] = []
        self._context = _context()

    def free(self) -> int:
        return len(self._slots)

    def running(self) -> list[Cell]:
        return [child.cell for child in self._children]

    def submit(self, cell: Cell) -> None:
        slot = self._slots.pop(0)
        site = replace(self._site, device=self._devices[slot % len(self._devices)])
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (json.dumps(cell_to_dict(cell)), json.dumps(site_to_dict(site)), self._since, theirs)
        process = self._context.Process(target=self._main, args=arguments, name=cell.folder, daemon=False)
        process.start()
        theirs.close()
        self._children.append(_Child(cell, slot, process, ours))

    def wait(self, seconds: float) -> list[Ended]:
        if not self._children:
            time.sleep(seconds)
            return []
        ready = set(wait([child.process.sentinel for child in self._children], timeout=seconds))
        return [self._reap(child) for child in list(self._children) if child.process.sentinel in ready]

    def _reap(self, child: _Child) -> Ended:
        outcome = None
        with suppress(EOFError, OSError):
            if child.connection.poll():
                outcome = child.connection.recv()
        child.connection.close()
        child.process.join()
        exit_code = child.process.exitcode
        child.process.close()
        self._children.remove(child)
        self._slots = sorted([*self._slots, child.slot])
        return Ended(child.cell, outcome, exit_code)

    def stop(self, seconds: float) -> list[Ended]:
        for child in self._children:
            child.process.terminate()
        ended, deadline = list[Ended](), time.monotonic() + seconds
        try:
            while self._children and time.monotonic() < deadline:
                ended += self.wait(TICK_SECONDS)
        finally:
            for child in self._children:
                child.process.kill()
        while self._children:
            ended += self.wait(TICK_SECONDS)
        return ended


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What must be set before the fork server starts: threads per cell, and what cuBLAS needs to be deterministic."""
    wanted = {name: str(threads) for name in THREAD_VARIABLES} | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _count_gpus(connection: Connection) -> None:
    import torch

    connection.send(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    connection.close()


def visible_gpus() -> int:
    """GPUs that torch can use here, asked in another process so that this one stays light."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_count_gpus, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        raise BenchError("torch cannot be imported here; `bench doctor` says more") from None
    finally:
        process.join()


def cpu_count() -> int:
    """Cores this process may use, by affinity and by the control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    return cores


def _devices(wanted: str) -> list[str]:
    """The devices that cells are handed out to; BenchError for one that is not here."""
    if wanted == "cpu":
        return ["cpu"]
    kind, colon, index = wanted.partition(":")
    if wanted not in ("auto", "cuda") and not (kind == "cuda" and colon and index.isdigit()):
        raise BenchError(f"unknown device {wanted!r}: give cpu, cuda or cuda:N")
    gpus = visible_gpus()
    if colon:
        if int(index) >= gpus:
            raise BenchError(f"there is no {wanted}: torch sees {gpus} GPU(s) here")
        return [wanted]
    if gpus == 0 and wanted == "cuda":
        raise BenchError("--device cuda, but torch sees no GPU here; give --device cpu, and see `bench doctor`")
    return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]


# --------------------------------------------------------------------------------------------------------------- queue


class _Queue:
    """What is ready, what waits for its parent or for another driver, and what is settled."""

    def __init__(self, grid: Grid, store: Store, shelves: Registry, since: float, observer: Observer) -> None:
        self.store, self.shelves, self.since, self.observer = store, shelves, since, observer
        self.outcome = Outcome()
        self.ready: list[Cell] = []
        self.elsewhere: dict[str, Cell] = {}  # by key: held by another driver
        self.polled = -math.inf
        self.children: dict[str, list[TransferCell]] = {}  # by key of a pretraining that is not there yet
        self.losses: Counter[str] = Counter()  # how often a cell's encoder was found damaged
        self.open = 0
        pending = [cell for cell in grid.transfers if not self._known(cell)]
        missing = {cell.pretrain.key for cell in pending if cell.pretrain.trained and not store.finished(cell.pretrain)}
        for cell in pending:
            if cell.pretrain.key in missing:
                self.children.setdefault(cell.pretrain.key, []).append(cell)
        trainings = [cell for cell in grid.pretrainings if cell.key in missing]
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
            outcome = self._died(cell, item.exit_code)
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

    def _died(self, cell: Cell, exit_code: int | None) -> CellOutcome:
        """The outcome of a process that ended without a word: its record, where it still wrote one, or a failure."""
        taken = CellOutcome(DONE, ran=True) if self.store.finished(cell) else failed_since(self.store, cell, self.since)
        if taken is not None or live_owner(self.store.folder(cell)) is not None:
            return taken or CellOutcome(BUSY)
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
                reason = f"its pretraining {cell.folder} {_verb(outcome.status)}: {outcome.reason}"
                self.settle(child, self._fail(child, BLOCKED, reason))


def _verb(status: str) -> str:
    return f"ran {status}" if status == OUT_OF_MEMORY else status


class _Interrupt:
    """Notes SIGINT and SIGTERM instead of dying of them; a second one is passed on as KeyboardInterrupt."""

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        with suppress(ValueError):  # signals belong to the main thread; a run in another one cannot have them
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


MakeExecutor = Callable[[Site, float], Executor]


def _local(jobs: int | None) -> MakeExecutor:
    def make(site: Site, since: float) -> Executor:
        devices = _devices(site.device)
        count = jobs or (len(devices) if devices[0] != "cpu" else max(1, cpu_count() // site.threads))
        return LocalExecutor(site, count, since, devices)

    return make


def run(
    grid: Grid,
    store: Store,
    site: Site,
    jobs: int | None = None,
    observer: Observer | None = None,
    make_executor: MakeExecutor | None = None,
) -> Outcome:
    """Brings every cell of a grid to its record; BenchError where the folders or the device cannot be used.

    jobs: cells at a time; None: one per core (one thread each, so that no number depends on it), or one per GPU.
    """
    since = time.time()
    store.prepare()
    with collected_warnings() as warnings, _Interrupt() as interrupt, _environment(site.threads):
        queue = _Queue(grid, store, registry.scan(site.plugins), since, observer or Silent())
        if queue.open:
            _drive(queue, (make_executor or _local(jobs))(site, since), interrupt)
        outcome = queue.outcome
        outcome.warnings += warnings
    outcome.counts["missing"] = len(grid.transfers) - sum(outcome.counts.values())
    outcome.counts += Counter()  # drops zeros
    return outcome


def _drive(queue: _Queue, executor: Executor, interrupt: _Interrupt) -> None:
    try:
        while queue.open and not interrupt.seen:
            while executor.free() and (cell := queue.next()) is not None:
                executor.submit(cell)
                queue.observer.started(cell)
            for item in executor.wait(TICK_SECONDS):
                if item.outcome is not None or not interrupt.seen:
                    queue.ended(item)
            queue.poll()
            queue.observer.tick(executor.running(), list(queue.elsewhere.values()))
    finally:
        queue.outcome.interrupted = interrupt.seen
        for item in executor.stop(GRACE_SECONDS if executor.running() else 0.0):
            if item.outcome is not None:
                queue.ended(item)
