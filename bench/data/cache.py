"""Prepared arrays on disk: made once, on all cores, and mapped into memory from then on.

Items are written into their files as they are made and never mapped for writing, so that memory stays small whatever
the size. A cache gets its name when it is whole; whatever stops its making leaves nothing that passes for one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import store
from bench.spec import BenchError, Site, digest, file_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

log = logging.getLogger("bench")
Progress = Callable[[int, int], None]
"""Called with the number of items that are done and of all; what it raises stops the making."""

WHOLE_BYTES, BLOCK_BYTES, SAMPLED_BLOCKS = 1 << 28, 1 << 16, 256  # of a prepared array, when it is verified
WAIT_SECONDS = 0.1  # between two looks at a cache that another process is making
AHEAD = 4  # items per core that are under way at once
RESIDENT_BYTES = 1 << 29  # an array above this size gives its pages back after every look
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # file systems that cannot set space aside


@dataclass(frozen=True)
class Plan:
    """How a cache is made: `count` items, each a set of named arrays."""

    count: int
    items: Mapping[str, tuple[str, tuple[int, ...]]]  # name -> type and shape of one item
    make: Callable[[int], Mapping[str, Any]]  # from several threads
    about: Mapping[str, Any] = field(default_factory=dict)  # plain data kept beside the arrays


@dataclass(frozen=True)
class Prepared:
    """A cache as it was opened."""

    arrays: Mapping[str, Array]  # name -> (count, *shape), read-only
    about: Mapping[str, Any]


def cores() -> int:
    """Cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def folder_name(site: Site, name: str, *about: object) -> Path:
    """Where something called `name` is prepared that `about`, plain data, tells from all others."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-40:]
    return site.cache / f"{plain}-{digest(list(about))[:12]}"


def in_threads(work: Callable[[int], Any], count: int) -> Iterator[int]:
    """Calls `work` with 0 to count - 1 on all cores and tells after each how many are done; few are under way."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for index in range(count):
                waiting.append(pool.submit(work, index))
                if len(waiting) >= AHEAD * cores():
                    waiting.popleft().result()
                    yield index + 1 - len(waiting)
            while waiting:
                waiting.popleft().result()
                yield count - len(waiting)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


# ------------------------------------------------------------------------------------------------------------- reading


def take(array: Array, rows: Sequence[int]) -> Array:
    """A copy of some rows, read in the order in which they lie on disk; a large map gives its pages back afterwards."""
    read = sorted(set(rows))
    found = array[read]
    base: Any = array.base
    if isinstance(base, mmap.mmap) and array.nbytes > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
    if read == list(rows):
        return found
    place = {row: at for at, row in enumerate(read)}
    return found[[place[row] for row in rows]]


def _array_digest(path: Path) -> str:
    """SHA-256 of an array's file; of a large one of its size and of blocks spread over it."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_digest(path)
    blocks = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for index in range(SAMPLED_BLOCKS):
            stream.seek(index * (size - BLOCK_BYTES) // (SAMPLED_BLOCKS - 1))
            blocks.update(stream.read(BLOCK_BYTES))
    return blocks.hexdigest()


def _open(folder: Path) -> Prepared | None:
    """Prepared arrays, or None where the folder does not hold what its manifest says."""
    import numpy as np

    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        arrays = {}
        for name, about in manifest["arrays"].items():
            path = folder / f"{name}.npy"
            if _array_digest(path) != about["sha256"]:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return Prepared(arrays, manifest["about"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -------------------------------------------------------------------------------------------------------------- making


def prepared(folder: Path, plan: Callable[[], Plan], progress: Progress | None = None) -> Prepared:
    """Arrays from the cache, made as `plan` says where they are not there; a damaged cache is set aside and made again.

    One process makes them, others wait for it; one that is killed leaves nothing that passes for the cache.
    """
    tell = progress or (lambda done, count: None)
    while (found := _whole(folder)) is None:
        held = store.claim(folder.parent / "claims" / folder.name)
        if held is None:
            tell(0, 1)
            time.sleep(WAIT_SECONDS)
            continue
        try:
            if not folder.exists():
                _make(folder, plan(), tell)
        finally:
            held.release()
    return found


def _whole(folder: Path) -> Prepared | None:
    """The arrays of a cache, or None where there is none yet; a damaged one is set aside."""
    if not folder.exists():
        return None
    found = _open(folder)
    if found is None:
        aside = folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            folder.rename(aside)
            log.warning("the cache %s was damaged; it was set aside as %s and is made again", folder, aside.name)
    return found


def _make(folder: Path, plan: Plan, tell: Progress) -> None:
    """Writes a cache aside and gives it its name when it is whole; for the holder of the claim."""
    temporary = folder.with_name(f"{folder.name}.making")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _fill(temporary, plan, tell)
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BenchError(
            f"{folder.parent} cannot be written ({error.strerror}): free some space or give another --runs"
        ) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(folder: Path, plan: Plan, tell: Progress) -> None:
    import numpy as np

    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(_Rows(folder / f"{name}.npy", (plan.count, *shape), np.dtype(kind)))
            for name, (kind, shape) in plan.items.items()
        }

        def work(index: int) -> None:
            for name, value in plan.make(index).items():
                files[name].write(index, np.asarray(value))

        for done in in_threads(work, plan.count):
            tell(done, plan.count)
    arrays = {name: {"sha256": _array_digest(folder / f"{name}.npy")} for name in plan.items}
    store.write_json(folder / "manifest.json", {"arrays": arrays, "about": dict(plan.about)})


class _Rows:
    """A new `.npy` file whose rows are written in any order, from several threads; flushed when it is closed."""

    def __init__(self, path: Path, shape: tuple[int, ...], kind: Any) -> None:
        import numpy as np

        self._shape, self._kind = shape[1:], kind
        self._stride = int(np.prod(self._shape, dtype=np.int64)) * kind.itemsize
        self._stream = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)
        self._stream.flush()
        self._start = self._stream.tell()
        _reserve(self._stream.fileno(), self._start + shape[0] * self._stride)

    def write(self, index: int, value: Array) -> None:
        if value.shape != self._shape or value.dtype != self._kind:
            raise ValueError(f"an item of {self._kind} {self._shape} was planned, not {value.dtype} {value.shape}")
        content, at = memoryview(value.tobytes()), self._start + index * self._stride
        while content:
            written = os.pwrite(self._stream.fileno(), content, at)
            content, at = content[written:], at + written

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if failure[0] is None:
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()


def _reserve(descriptor: int, size: int) -> None:
    """Gives a file its size, and the disk space where the file system can: a full disk shows before the work."""
    reserve = getattr(os, "posix_fallocate", None)
    try:
        if reserve and size:
            reserve(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in _NO_RESERVATION:
            raise
    os.ftruncate(descriptor, size)
