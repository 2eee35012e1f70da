"""Where work and results lie: records, claims, events, checkpoints. Every file is whole or absent.

`results/records/KEY.json` holds one record per transfer cell, `runs/pretrain|transfer/NAME/` the work of a cell. Files
are written beside their place, flushed and renamed; what turns out damaged is set aside, named in a warning, and made
again.

A cell is claimed by creating `claim.N` with the next free generation number N: the highest generation owns the cell,
and a hard link to a finished file makes the creation atomic on NFS too. No claim is ever deleted or reused, so a slow
contender can only collide with a later generation, never with an earlier one. A release adds `claim.N.released`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.spec import DONE, SCHEMA, BenchError, Cell, PretrainCell, TransferCell, canonical_json, cell_to_dict, digest

if TYPE_CHECKING:
    from torch import Tensor

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 120.0  # without a heartbeat an owner on another host counts as dead
_KINDS = ("pretrain", "transfer")
_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the permission is missing",
    errno.EPERM: "the permission is missing",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
}

LOG = logging.getLogger("bench")


class Damaged(BenchError):
    """A file whose content is not what was written."""


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings given meanwhile (damaged files set aside, sources gone stale), in order, instead of on stderr."""
    messages: list[str] = []
    handler = _Collector(messages)
    LOG.addHandler(handler)
    propagate, LOG.propagate = LOG.propagate, False
    try:
        yield messages
    finally:
        LOG.removeHandler(handler)
        LOG.propagate = propagate


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# -------------------------------------------------------------------------------------------------------- whole files


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an OSError of writing `path` into a BenchError of one sentence."""
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
        raise BenchError(f"{path} cannot be written: {cause}; make room or name another folder") from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, *parts: bytes | memoryview) -> Path:
    """The flushed temporary file that is to become `path`."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Replaces `path` by the parts, all or nothing; BenchError where the disk is full or the folder not writable."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, *parts).replace(path)
        _flush_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_bytes` of indented JSON, keys as given."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def set_aside(path: Path, folder: Path | None = None) -> Path | None:
    """Moves a damaged file to `NAME.damaged-N` (in `folder`, or where it lies); None if it cannot be moved."""
    home = folder or path.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            target = home / f"{path.name}.damaged-{number}"
            if not target.exists():
                return path.rename(target)
    except OSError:
        return None
    return None


def _report_damage(path: Path, folder: Path | None, what: str, consequence: str) -> None:
    target = set_aside(path, folder)
    place = f"was moved to {target}" if target else "could not be moved away"
    LOG.warning("%s %s is damaged and %s; %s", what, path, place, consequence)


# ------------------------------------------------------------------------------------------------------------- tensors


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Writes a safetensors file whose header holds `meta` (plain data) and a checksum of everything.

    `keep_previous` leaves what stood there as `NAME.previous.safetensors`: a good file exists at every instant.
    """
    from safetensors.torch import save

    blob = save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(blob[:8], "little")
    layout, data = json.loads(blob[8:start]), memoryview(blob)[start:]
    facts = {"meta": dict(meta), "sha256": _checksum(layout, meta, data)}
    header = json.dumps({"__metadata__": {"bench": canonical_json(facts)}, **layout}).encode()
    header += b" " * (-len(header) % 8)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_beside(path, len(header).to_bytes(8, "little"), header, data)
        if keep_previous and path.exists():
            path.replace(previous_of(path))
        temporary.replace(path)
        _flush_folder(path.parent)


def _checksum(layout: Mapping[str, Any], meta: Mapping[str, Any], data: memoryview) -> str:
    total = hashlib.sha256(canonical_json([layout, dict(meta)]).encode())
    total.update(data)
    return total.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a file `save_tensors` wrote; Damaged where one bit of it changed."""
    from safetensors.torch import load

    try:
        blob = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from error
    try:
        start = 8 + int.from_bytes(blob[:8], "little")
        layout = json.loads(blob[8:start])
        facts = json.loads(layout.pop("__metadata__")["bench"])
        whole = facts["sha256"] == _checksum(layout, facts["meta"], memoryview(blob)[start:])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged: it is not what was written")
    return load(blob), facts["meta"]


def previous_of(path: Path) -> Path:
    """Where `save_tensors(..., keep_previous=True)` leaves the file before."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole one of `path` and the file before it, or None; a damaged one is set aside with a warning."""
    for candidate, spare in ((path, previous_of(path)), (previous_of(path), None)):
        if not candidate.exists():
            continue
        try:
            return load_tensors(candidate)
        except Damaged:
            found = spare is not None and spare.exists()
            consequence = "the one before it is used" if found else "the cell starts again"
            _report_damage(candidate, None, "checkpoint", consequence)
    return None


# -------------------------------------------------------------------------------------------------------------- claims


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
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Lets the next contender in; safe to call twice."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
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
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _write_beside(folder / "claim", content)
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


# -------------------------------------------------------------------------------------------------------------- events


def _append_line(path: Path, value: Mapping[str, Any]) -> None:
    line = canonical_json(value).encode() + b"\n"
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            torn = stream.tell() > 0 and _last_byte(stream.fileno()) != b"\n"
            stream.write(b"\n" + line if torn else line)


def _last_byte(descriptor: int) -> bytes:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; a torn one is passed over."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return [item for item in found if isinstance(item, dict)]


def add_event(folder: Path, event: str, **facts: Any) -> None:
    """Appends `started`, `finished`, `failed` or `interrupted` to the cell's `events.jsonl`."""
    base = {"event": event, "time": utc_now(), "host": socket.gethostname(), "pid": os.getpid()}
    _append_line(folder / "events.jsonl", base | facts)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What happened to a cell, oldest first."""
    return _read_lines(folder / "events.jsonl")


def ask_to_stop(folder: Path) -> None:
    """Asks whoever works on a cell, or will in a run that has begun, to leave it; heard on every host."""
    write_json(folder / "cancelled.json", {"time": utc_now(), "host": socket.gethostname(), "pid": os.getpid()})


def asked_to_stop(folder: Path) -> float | None:
    """When somebody asked so, in seconds since 1970, or None."""
    asked = read_json(folder / "cancelled.json")
    return None if asked is None else datetime.fromisoformat(asked["time"]).timestamp()


def forget_stop(folder: Path) -> None:
    """Takes the wish back: a later run was started."""
    (folder / "cancelled.json").unlink(missing_ok=True)


def write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Replaces the cell's `progress.json`; not flushed, for it is only looked at."""
    path = folder / "progress.json"
    temporary = path.with_name(".progress.json.tmp")
    with _explained(path):
        temporary.write_text(json.dumps(progress))
        temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of one JSON object, or None where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The last report of a cell: `phase`, `step`, `steps`, `losses`, `time`, `seconds_left`."""
    return read_json(folder / "progress.json")


# --------------------------------------------------------------------------------------------------------------- store


@dataclass(frozen=True)
class CellState:
    """One cell as `status` shows it."""

    kind: str
    name: str  # of its folder, or of the record where the folder is gone
    key: str
    state: str  # running, interrupted, or a record's status
    reason: str
    folder: Path
    choices: Mapping[str, Any]  # the cell as plain data, or the record
    progress: Mapping[str, Any] | None


@dataclass(frozen=True)
class Store:
    """The two folders everything lies in."""

    runs: Path
    results: Path

    def prepare(self) -> None:
        """Makes the folders and proves that they can be written to; BenchError otherwise."""
        for folder in (self.runs, self.results / "records"):
            probe = folder / ".writable"
            write_bytes(probe, b"x" * 4096)
            probe.unlink(missing_ok=True)

    # records

    def record_path(self, key: str) -> Path:
        return self.results / "records" / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """The record of a cell, or None; a damaged one is set aside with a warning and counts as missing."""
        return self._read_record(self.record_path(key))

    def _read_record(self, path: Path) -> dict[str, Any] | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}; name another --results folder") from error
        try:
            record = json.loads(content)
            whole = isinstance(record, dict) and record["cell_key"] == path.stem and _seal(record) == record["seal"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            _report_damage(path, self.results / "quarantine", "record", "the cell counts as missing and is run again")
            return None
        return record  # type: ignore[no-any-return]

    def done(self, key: str) -> dict[str, Any] | None:
        """The record of a cell that has its result, in this schema."""
        record = self.read(key)
        return record if record is not None and settled(record) else None

    def write(self, record: Mapping[str, Any]) -> bool:
        """Writes a record, once: a cell that has its result keeps it (False). One of another schema is set aside."""
        path = self.record_path(record["cell_key"])
        known = self.read(record["cell_key"])
        if known is not None and known.get("schema") != SCHEMA:
            target, schema = set_aside(path, self.results / "quarantine"), known.get("schema")
            LOG.warning("record %s has schema %s, not %s; it is kept as %s", path, schema, SCHEMA, target)
        elif known is not None and known["status"] == DONE:
            return False
        write_json(path, {**record, "seal": _seal(record)})
        return True

    def records(self) -> list[dict[str, Any]]:
        """Every whole record, ordered by key."""
        paths = sorted((self.results / "records").glob("*.json"))
        return [record for record in map(self._read_record, paths) if record is not None]

    # cells

    def folder(self, cell: Cell) -> Path:
        """The work folder of a cell."""
        return self.runs / cell.folder

    def encoder(self, cell: PretrainCell) -> Path:
        """Where a finished pretraining leaves its encoder."""
        return self.folder(cell) / "encoder.safetensors"

    def note(self, cell: Cell, where: Mapping[str, Any] | None = None) -> None:
        """Leaves a cell's choices in its folder, and `where` its data and plug-ins are, so that it can be run again."""
        path, known = self.folder(cell) / "cell.json", read_json(self.folder(cell) / "cell.json")
        wanted = cell_to_dict(cell) | {"key": cell.key, "where": dict(where or (known or {}).get("where") or {})}
        if known is None or known.get("where") != wanted["where"]:
            write_json(path, wanted)

    def begin(self, cell: Cell, where: Mapping[str, Any] | None = None) -> Claim | None:
        """Claims a cell and leaves its choices beside its work; None while another live process has it."""
        folder = self.folder(cell)
        held = claim(folder)
        if held is None:
            return None
        try:
            sweep(folder)
            self.note(cell, where)
        except BaseException:
            held.release()
            raise
        return held

    def state(self, cell: PretrainCell) -> dict[str, Any] | None:
        """What a pretraining left when it last ended (`status`, `reason`, ...), or None."""
        path = self.folder(cell) / "state.json"
        state = _read_state(path)
        if state is None and path.exists():
            _report_damage(path, None, "state", "the pretraining is taken up again from its last checkpoint")
        return state

    def pretrained(self, cell: PretrainCell) -> dict[str, Any] | None:
        """The state of a pretraining whose encoder is there."""
        state = self.state(cell)
        if state is None or state.get("status") != DONE:
            return None
        try:
            size = self.encoder(cell).stat().st_size
        except OSError:
            return None
        if size != state.get("encoder_bytes"):
            self.discard_encoder(cell)
            return None
        return state

    def discard_encoder(self, cell: PretrainCell) -> None:
        """Sets a damaged encoder aside with a warning; its pretraining is taken up again."""
        _report_damage(self.encoder(cell), None, "encoder", "its pretraining is taken up again")

    def finished(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return (self.done(cell.key) if isinstance(cell, TransferCell) else self.pretrained(cell)) is not None

    # measured times

    def add_timing(self, timing: Mapping[str, Any]) -> None:
        """Notes how long a cell took, for `plan`."""
        _append_line(self.runs / "timings.jsonl", timing)

    def timings(self) -> list[dict[str, Any]]:
        """What cells took on this store, oldest first."""
        return _read_lines(self.runs / "timings.jsonl")

    # status

    def overview(self) -> list[CellState]:
        """Every cell this store knows, by folder and by record, pretrainings first."""
        cells = [state for kind in _KINDS for state in self._working(kind)]
        known = {state.key for state in cells}
        return cells + [self._recorded(record) for record in self.records() if record["cell_key"] not in known]

    def _working(self, kind: str) -> Iterator[CellState]:
        for path in sorted((self.runs / kind).glob("*/cell.json")):
            choices = read_json(path)
            if choices is None or "key" not in choices:
                continue
            folder, key = path.parent, choices["key"]
            ended = self.read(key) if kind == "transfer" else _read_state(folder / "state.json")
            owner = live_owner(folder)
            if owner is not None:
                state, reason = "running", f"on {owner['host']}, process {owner['pid']}"
            elif ended is None:
                state, reason = "interrupted", "not finished; the next run continues it"
            else:
                state, reason = ended["status"], ended.get("reason") or ""
            progress = read_progress(folder) if state in ("running", "interrupted") else None
            yield CellState(kind, folder.name, key, state, reason, folder, choices, progress)

    def _recorded(self, record: Mapping[str, Any]) -> CellState:
        key = record["cell_key"]
        name = f"{record.get('task', '?')}-{record.get('method', '?')}-{key[:12]}"
        folder = self.runs / "transfer" / name
        state, reason = record.get("status", "?"), record.get("reason") or ""
        if record.get("schema") != SCHEMA:
            reason = f"schema {record.get('schema')}, this version reads {SCHEMA}"
        return CellState("transfer", name, key, state, reason, folder, record, None)


def _read_state(path: Path) -> dict[str, Any] | None:
    """What a pretraining left, or None where it is missing or does not say how the pretraining ended."""
    state = read_json(path)
    if state is None or not {"key", "status", "reason", "finished"} <= state.keys():
        return None
    needed = {"encoder_bytes", "encoder_sha256", "sources", "seconds_per_step"} if state["status"] == DONE else set()
    return state if needed <= state.keys() else None


def settled(record: Mapping[str, Any]) -> bool:
    """Whether a record holds a result, in this schema."""
    return record.get("schema") == SCHEMA and record["status"] == DONE


def _seal(record: Mapping[str, Any]) -> str:
    """The checksum that a record carries of itself."""
    return digest({name: value for name, value in record.items() if name != "seal"})
