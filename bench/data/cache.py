"""Prepared arrays on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench import store
from bench.spec import BenchError, file_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


log = logging.getLogger("bench")

WHOLE_BYTES, BLOCK_BYTES, SAMPLED_BLOCKS = 1 << 28, 1 << 16, 256  # of a prepared array, when it is verified
WAIT_SECONDS = 0.1  # between two looks at a cache that another process is making


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


def _open_arrays(folder: Path) -> dict[str, Pixels] | None:
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
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return arrays


def _fill(folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]) -> None:
    import numpy as np

    folder.mkdir(parents=True)
    maps = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        for name, shape in shapes.items()
    }
    count = next(iter(shapes.values()))[0]

    def work(index: int) -> None:
        for name, pixels in make(index).items():
            maps[name][index] = pixels

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for future in [pool.submit(work, index) for index in range(count)]:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for item in maps.values():
        item.flush()
    about = {name: {"shape": shape, "sha256": _array_digest(folder / f"{name}.npy")} for name, shape in shapes.items()}
    (folder / "manifest.json").write_text(json.dumps({"arrays": about}))


def prepared(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]
) -> dict[str, Pixels]:
    """Arrays from the cache, made first where they are not there; a damaged cache is set aside, named and made again.

    One process makes them, others wait for it; one that is killed leaves nothing that passes for the cache.
    """
    while (arrays := _whole(folder)) is None:
        held = store.claim(folder.parent / "claims" / folder.name)
        if held is None:
            time.sleep(WAIT_SECONDS)
            continue
        try:
            if not folder.exists():
                _make(folder, shapes, make)
        finally:
            held.release()
    return arrays


def _whole(folder: Path) -> dict[str, Pixels] | None:
    """The arrays of a cache, or None where there is none yet; a damaged one is set aside."""
    if not folder.exists():
        return None
    arrays = _open_arrays(folder)
    if arrays is None:
        aside = folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            folder.rename(aside)
            log.warning("the cache %s was damaged; it was set aside as %s and is made again", folder, aside.name)
    return arrays


def _make(folder: Path, shapes: Mapping[str, tuple[int, ...]], make: Callable[[int], Mapping[str, Pixels]]) -> None:
    """Writes a cache aside and gives it its name when it is whole; for the holder of the claim."""
    temporary = folder.with_name(f"{folder.name}.making")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _fill(temporary, shapes, make)
        temporary.rename(folder)
    except BenchError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BenchError(
            f"{folder.parent} cannot be written ({error.strerror}): free some space or give another --runs"
        ) from None
