"""The processes of one cell that is trained on several devices of this machine, one each, through Fabric's DDP.

The process that has the cell is rank 0: it alone reports and writes files. The others are started by it, do the same
steps on their part of the batch, and are ended by it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.spec import FAILED, OUT_OF_MEMORY, PRECISIONS, CellError, Site

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(minutes=30)  # for another process at one meeting point
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the second is a cluster's word for preemption or a limit near
LAST_WORDS_SECONDS = 3.0  # how long a process that was lost may still say why

_PR_SET_PDEATHSIG = 1  # prctl(2)

Work = Callable[["Fabric", Any], None]


def join(site: Site, rank: int, meeting: Path, precision: str) -> Fabric:
    """Fabric on this rank's device, once all ranks have come; `meeting` is a file that they share."""
    import torch.distributed as dist
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    class Place(LightningEnvironment):
        """This process among those of the cell, which start themselves."""

        creates_processes_externally = True  # type: ignore[assignment]

        def local_rank(self) -> int:
            return rank

        def node_rank(self) -> int:
            return 0

    kind, _, index = site.device.partition(":")
    first = int(index or 0)
    cuda = kind == "cuda"
    backend = "nccl" if cuda else "gloo"
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are here; the host's name may not resolve
    place = f"file://{meeting}"
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=site.ranks, timeout=PATIENCE)
    # not every parameter takes part in every stage; all buffers change alike in all ranks
    strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=True, broadcast_buffers=False)
    named: Any = PRECISIONS[precision]
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=list(range(first, first + site.ranks)) if cuda else site.ranks,
        strategy=strategy,
        precision=named,
        plugins=[Place()],
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """Takes this process out of the group it joined."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def bind_to_parent() -> None:
    """Ends this process at once when the one that started it is gone."""
    parent = parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _assist(
    work: Work, arguments: Any, site: Site, rank: int, meeting: Path, log: Path, words: Connection, precision: str
) -> None:
    """The whole life of a rank above 0; its last words are how it failed."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)  # rank 0 still needs it for the step that it ends with
    bind_to_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        fabric = join(site, rank, meeting, precision)
        work(fabric, arguments)
        fabric.barrier()  # no rank leaves while another still listens to it
    except Exception as error:
        traceback.print_exc()
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        first = next(iter(str(error).splitlines()), "")[:300]
        words.send((OUT_OF_MEMORY if memory else FAILED, f"{type(error).__name__}: {first}"))
        raise SystemExit(1) from None
    leave()


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started meanwhile ignores Ctrl-C and the signals that a cluster sends to every process of a job."""
    before: dict[int, Any] = {}
    with suppress(ValueError):  # signals belong to the main thread
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_server() -> None:
    """Starts this process's fork server, if it has none, such that signals to every process of a job do not end it.

    With it its children would die before they have written a checkpoint.
    """
    with _deaf():
        forkserver.ensure_running()


class Team:
    """The other ranks of a cell, from `with` on, where rank 0 gets its Fabric, until its end.

    Every rank above 0 calls `work(fabric, arguments)` in a process of its own and writes to `log`. Where one of them
    is lost, what stopped it becomes the CellError of the whole.
    """

    def __init__(self, site: Site, work: Work, arguments: Any, log: Path, precision: str = "32") -> None:
        self.site, self.work, self.arguments, self.log, self.precision = site, work, arguments, log, precision
        self.folder = Path(tempfile.mkdtemp(prefix="bench-ranks-"))
        self.helpers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Fabric:
        try:
            return self._start()
        except BaseException:
            self._end()
            raise

    def _start(self) -> Fabric:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([self.work.__module__, "lightning_fabric"])
        start_server()
        meeting = self.folder / "meeting"
        for rank in range(1, self.site.ranks):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (self.work, self.arguments, self.site, rank, meeting, self.log, theirs, self.precision)
            helper = context.Process(target=_assist, args=arguments, name=f"rank {rank}", daemon=True)
            helper.start()
            theirs.close()
            self.helpers.append((helper, ours))
        self.fabric = join(self.site, 0, meeting, self.precision)
        return self.fabric

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.fabric.barrier()
            elif isinstance(error, Exception) and not isinstance(error, CellError):
                self._blame(error)
        finally:
            self._end()

    def _blame(self, error: Exception) -> None:
        """Raises what a lost rank died of instead of what rank 0 saw of it."""
        for helper, _ in self.helpers:
            helper.join(LAST_WORDS_SECONDS / len(self.helpers))
        for rank, (helper, words) in enumerate(self.helpers, 1):
            if helper.exitcode:
                where = f"on device {rank + 1} of {self.site.ranks}"
                code = helper.exitcode
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                status, reason = FAILED, f"the process {how}"
                with suppress(EOFError, OSError):
                    if words.poll():
                        status, reason = words.recv()
                raise CellError(status, f"{where}: {reason}") from error

    def _end(self) -> None:
        for helper, _ in self.helpers:
            helper.kill()
        for helper, words in self.helpers:
            helper.join()
            words.close()
        leave()
        shutil.rmtree(self.folder, ignore_errors=True)
