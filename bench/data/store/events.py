"""What happens to a cell: events, the wish that it stops, its progress."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.data.store.files import explained, read_json, utc_now, write_json
from bench.spec import canonical_json


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a file, on a line of its own also where a killed writer left half a line."""
    line = canonical_json(value).encode() + b"\n"
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            torn = stream.tell() > 0 and _last_byte(stream.fileno()) != b"\n"
            stream.write(b"\n" + line if torn else line)


def _last_byte(descriptor: int) -> bytes:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
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
    append_line(folder / "events.jsonl", base | facts)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What happened to a cell, oldest first."""
    return read_lines(folder / "events.jsonl")


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
    with explained(path):
        temporary.write_text(json.dumps(progress))
        temporary.replace(path)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The last report of a cell: `phase`, `step`, `steps`, `losses`, `time`, `seconds_left`."""
    return read_json(folder / "progress.json")
