"""Who works on a cell: at most one live process, whatever dies and however many hosts share the folder.

A cell is claimed by creating `claim.N` with the next free generation number N: the highest generation owns the cell,
and a hard link to a finished file makes the creation atomic on NFS too. No claim is ever deleted or reused, so a slow
contender can only collide with a later generation, never with an earlier one. A release adds `claim.N.released`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench.data.store.files import explained, utc_now, write_beside
from bench.spec import canonical_json

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 120.0  # without a heartbeat an owner on another host counts as dead


@cache
def _machine() -> str:
    """This host, boot and process namespace: where process ids mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; "" where the system does not tell, None if it is dead."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # fields 3 and 22 of proc(5)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


@dataclass
class Claim:
    """The right to work on one cell, kept alive by a thread that touches the claim file."""

    path: Path
    lost: threading.Event = field(default_factory=threading.Event)  # set when another took over
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        return int(self.path.suffix[1:])

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            if self.path.with_suffix(f".{self.generation + 1}").exists():
                self.lost.set()
                return
            with contextlib.suppress(OSError):  # the next beat makes it good
                os.utime(self.path)

    def release(self) -> None:
        """Lets the next contender in; safe to call twice."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # without it the claim ends with this process
            self.path.with_name(f"{self.path.name}.released").touch()


def _generation(folder: Path) -> int:
    """The highest claim of a cell; 0 where there is none."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return 0
    return max((int(name[6:]) for name in names if name.startswith("claim.") and name[6:].isdigit()), default=0)


def _live_owner(folder: Path, generation: int, now: float) -> dict[str, Any] | None:
    path = folder / f"claim.{generation}"
    if generation == 0 or path.with_name(f"{path.name}.released").exists():
        return None
    try:
        beat = path.stat().st_mtime
        owner = json.loads(path.read_text())
        pid, started, machine = owner["pid"], owner["started"], owner["machine"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError):
        owner, machine, pid, started = {"host": "unknown", "pid": 0}, None, 0, None
    if machine == _machine():
        return owner if _started(pid) == started else None
    return owner if now - beat < STALE_SECONDS else None


def live_owner(folder: Path) -> dict[str, Any] | None:
    """Who works on the cell of `folder` now (`host`, `pid`, ...), or None."""
    return _live_owner(folder, _generation(folder), time.time())


def _create_claim(folder: Path, generation: int, content: bytes, temporary: Path) -> bool:
    path = folder / f"claim.{generation}"
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # NFS may report the loss of a race that was won
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        try:
            with path.open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            return False
    return True


def claim(folder: Path) -> Claim | None:
    """Claims the cell of `folder`; None while another live process has it."""
    owner = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
    content = canonical_json(owner | {"time": utc_now()}).encode()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = write_beside(folder / "claim", content)
        try:
            generation = _generation(folder)
            now = temporary.stat().st_mtime  # the file server's clock, which also stamps the heartbeats
            if _live_owner(folder, generation, now) is not None:
                return None
            won = _create_claim(folder, generation + 1, content, temporary)
        finally:
            temporary.unlink(missing_ok=True)
    return Claim(folder / f"claim.{generation + 1}") if won else None


def sweep(folder: Path) -> None:
    """Removes what killed writers left half written; only for the holder of the claim."""
    for path in folder.glob(".*.tmp"):
        if not path.name.startswith(".claim"):
            path.unlink(missing_ok=True)
