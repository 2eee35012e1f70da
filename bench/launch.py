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
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from bench import registry
from bench.cell import (
    BUSY,
    INTERRUPTED,
    PARENT_LOST,
    STOP_SIGNALS,
    CellOutcome,
    child_main,
    end_badly,
    failed_since,
)
from bench.grid import Grid, memory_needed
from bench.registry import Registry
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
    cell_to_dict,
    site_to_dict,
)
from bench.store import LOG, Store, collected_warnings, live_owner

TICK_SECONDS = 0.2
POLL_SECONDS = 1.0  # how often a cell that another driver holds is looked at
RETRIES = 3  # of a transfer whose encoder is there and yet is not the one that was made
GRACE_SECONDS = 10.0  # for children to reach the next step when the run is interrupted
MEMORY_MARGIN, CONTEXT_BYTES = 1.15, 600_000_000  # on a GPU, beside what torch counts: fragments, and CUDA's own
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
    starved: bool = False  # killed by the kernel because memory was used up


class Executor(Protocol):
    """Where cells run: processes here, or the jobs of a cluster."""

    def free(self) -> int:
        """How many more cells it takes now."""

    def takes(self, cell: Cell) -> bool:
        """Whether a free place has the memory for this cell, as far as is known."""

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
    devices: tuple[str, ...]  # more than one: all its own
    process: Any
    connection: Connection
    kills: int  # by the kernel for want of memory, before it began


@dataclass(frozen=True)
class Packing:
    """What is known of the memory of cells that share a GPU."""

    memory: int  # bytes of one GPU
    shares: int  # cells that may share it
    needed: Callable[[Cell], int | None] = lambda cell: None  # bytes that cells like it took; None: never measured

    def of(self, cell: Cell) -> int:
        """Bytes to set aside for a cell: what its like took and some more, or its fair share."""
        known = self.needed(cell)
        return self.memory // self.shares if known is None else round(known * MEMORY_MARGIN) + CONTEXT_BYTES


class LocalExecutor:
    """A fresh process per cell, forked from a server that has imported the heavy packages once.

    Slots are handed out over the devices in turn; a pretraining that has several devices (`Site.ranks`) waits until as
    many neighbours are free and keeps them to itself. With `packing` a device gets another cell only where the memory
    of those on it and of the new one fit together; a cell that is alone on a device always runs.
    """

    def __init__(
        self,
        site: Site,
        jobs: int,
        since: float,
        devices: Sequence[str],
        main: Callable[..., None] = child_main,
        packing: Packing | None = None,
    ) -> None:
        self._site, self._since, self._devices, self._main = site, since, list(devices), main
        self._slots = list(range(jobs))
        self._children: list[_Child] = []
        self._packing = packing
        self._context = _context()

    def free(self) -> int:
        return len(self._slots)

    def takes(self, cell: Cell) -> bool:
        return self._place(cell) is not None

    def running(self) -> list[Cell]:
        return [child.cell for child in self._children]

    def _device(self, slot: int) -> str:
        return self._devices[slot % len(self._devices)]

    def _ranks(self, cell: Cell) -> int:
        return self._site.ranks if isinstance(cell, PretrainCell) else 1

    def _place(self, cell: Cell) -> tuple[int, tuple[str, ...]] | None:
        """The free slot whose device has the fewest cells, where the cell fits; None where it has to wait."""
        if self._ranks(cell) > 1 and self._devices != ["cpu"]:
            return self._block(self._ranks(cell))
        beside = {device: [c.cell for c in self._children if device in c.devices] for device in self._devices}
        taken = {device for child in self._children if len(child.devices) > 1 for device in child.devices}
        for slot in sorted(self._slots, key=lambda slot: (len(beside[self._device(slot)]), slot)):
            there, packing, device = beside[self._device(slot)], self._packing, self._device(slot)
            fits = not there or packing is None or sum(map(packing.of, [*there, cell])) <= packing.memory
            if fits and device not in taken:
                return slot, (device,)
        return None

    def _block(self, ranks: int) -> tuple[int, tuple[str, ...]] | None:
        """A free slot and neighbouring devices that nobody uses."""
        used = {device for child in self._children for device in child.devices}
        for first in range(0, len(self._devices) - ranks + 1, ranks):
            block = self._devices[first : first + ranks]
            if self._slots and not used & set(block):
                return self._slots[0], tuple(block)
        return None

    def submit(self, cell: Cell) -> None:
        place = self._place(cell)
        assert place is not None, "submit only what the executor takes"
        slot, devices = place
        self._slots.remove(slot)
        site = replace(self._site, device=devices[0], ranks=self._ranks(cell))
        ours, theirs = self._context.Pipe(duplex=False)
        arguments = (json.dumps(cell_to_dict(cell)), json.dumps(site_to_dict(site)), self._since, theirs)
        process = self._context.Process(target=self._main, args=arguments, name=cell.folder, daemon=False)
        kills = memory_kills()
        process.start()
        theirs.close()
        self._children.append(_Child(cell, slot, devices, process, ours, kills))

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
        return Ended(child.cell, outcome, exit_code, exit_code == -signal.SIGKILL and memory_kills() > child.kills)

    def stop(self, seconds: float) -> list[Ended]:
        ended, deadline = list[Ended](), time.monotonic() + seconds
        try:
            while self._children and time.monotonic() < deadline:
                for child in self._children:  # again and again: one that is just starting does not hear it yet
                    child.process.terminate()
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
    with _deaf():
        forkserver.ensure_running()
    return context


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started meanwhile ignores the signals that a cluster sends to every process of a job.

    The fork server has to outlive them: with it its children would die before they have written a checkpoint.
    """
    before: dict[int, Any] = {}
    with suppress(ValueError):  # signals belong to the main thread
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def memory_kills(group: Path | None = None) -> int:
    """How often the kernel killed a process of this control group because its memory was used up; 0 if not told."""
    with suppress(OSError, ValueError, StopIteration):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        place = group or Path("/sys/fs/cgroup") / own.removeprefix("0::").lstrip("/")
        events = dict(line.split() for line in (place / "memory.events").read_text().splitlines())
        return int(events.get("oom_kill", 0))
    return 0


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


def _ask_gpus(connection: Connection) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    connection.send([torch.cuda.get_device_properties(index).total_memory for index in range(count)])
    connection.close()


def visible_gpus() -> int:
    """GPUs that torch can use here."""
    return len(gpu_memories())


def gpu_memories() -> list[int]:
    """Bytes of every GPU that torch can use here, asked in another process so that this one stays light."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_ask_gpus, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return list(ours.recv())
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
    """Notes SIGINT, SIGTERM and SIGUSR2 instead of dying of them; where it is not `patient` a second one raises."""

    def __init__(self, patient: bool = False) -> None:
        self.number: int | None = None  # of the first one
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
        if not self.seen:
            self.number = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


MakeExecutor = Callable[[Site, float], Executor]


def local(
    jobs: int | None, cells_per_gpu: int = 1, needed: Callable[[Cell], int | None] = lambda cell: None
) -> MakeExecutor:
    """Processes here: `jobs` at a time, by default one per core, or `cells_per_gpu` per GPU as far as memory allows."""

    def make(site: Site, since: float) -> Executor:
        devices = _devices(site.device)
        if devices[0] == "cpu":
            return LocalExecutor(site, jobs or max(1, cpu_count() // (site.threads * site.ranks)), since, devices)
        if len(devices) < site.ranks:
            raise BenchError(f"--gpus-per-cell {site.ranks}, but there are {len(devices)} GPU(s) here; ask for fewer")
        packing = Packing(min(gpu_memories()), cells_per_gpu, needed) if cells_per_gpu > 1 else None
        return LocalExecutor(site, jobs or len(devices) * cells_per_gpu, since, devices, packing=packing)

    return make


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
    with collected_warnings() as warnings, _environment(site.threads):
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
