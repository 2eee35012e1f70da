"""Where the cells of a queue run on this machine: a process each, handed out over cores or GPUs as memory allows."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bench.run.cell import CellOutcome, child_main
from bench.run.ranks import start_server
from bench.spec import BenchError, Cell, PretrainCell, Site, cell_to_dict, site_to_dict

TICK_SECONDS = 0.2
MEMORY_MARGIN, CONTEXT_BYTES = 1.15, 600_000_000  # on a GPU, beside what torch counts: fragments, and CUDA's own
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# imported once by the fork server, so that a cell starts in milliseconds
PRELOAD = ("bench.run.pretrain", "bench.run.transfer", "lightning_fabric", "lightly.loss", "lightly.models")


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
    start_server()
    return context


def memory_kills(group: Path | None = None) -> int:
    """How often the kernel killed a process of this control group because its memory was used up; 0 if not told."""
    with suppress(OSError, ValueError, StopIteration):
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        place = group or Path("/sys/fs/cgroup") / own.removeprefix("0::").lstrip("/")
        events = dict(line.split() for line in (place / "memory.events").read_text().splitlines())
        return int(events.get("oom_kill", 0))
    return 0


@contextmanager
def environment(threads: int) -> Iterator[None]:
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


def devices(wanted: str) -> list[str]:
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


MakeExecutor = Callable[[Site, float], Executor]


def local(
    jobs: int | None, cells_per_gpu: int = 1, needed: Callable[[Cell], int | None] = lambda cell: None
) -> MakeExecutor:
    """Processes here: `jobs` at a time, by default one per core, or `cells_per_gpu` per GPU as far as memory allows."""

    def make(site: Site, since: float) -> Executor:
        places = devices(site.device)
        if places[0] == "cpu":
            return LocalExecutor(site, jobs or max(1, cpu_count() // (site.threads * site.ranks)), since, places)
        if len(places) < site.ranks:
            raise BenchError(f"--gpus-per-cell {site.ranks}, but there are {len(places)} GPU(s) here; ask for fewer")
        packing = Packing(min(gpu_memories()), cells_per_gpu, needed) if cells_per_gpu > 1 else None
        return LocalExecutor(site, jobs or len(places) * cells_per_gpu, since, places, packing=packing)

    return make
