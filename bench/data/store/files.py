"""Files that are whole or absent: written beside their place, flushed and renamed; damaged ones are set aside."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.spec import BenchError

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


# -------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError of writing `path` into a BenchError of one sentence."""
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
        raise BenchError(f"{path} cannot be written: {cause}; make room or name another folder") from error


def flush_folder(folder: Path) -> None:
    """Makes what was renamed in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_beside(path: Path, *parts: bytes | memoryview) -> Path:
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
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, *parts).replace(path)
        flush_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_bytes` of indented JSON, keys as given."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of one JSON object, or None where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# --------------------------------------------------------------------------------------------------------------- damage


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


def report_damage(path: Path, folder: Path | None, what: str, consequence: str) -> None:
    """Sets a damaged file aside and says so in a warning."""
    target = set_aside(path, folder)
    place = f"was moved to {target}" if target else "could not be moved away"
    LOG.warning("%s %s is damaged and %s; %s", what, path, place, consequence)
