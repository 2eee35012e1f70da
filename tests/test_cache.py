"""The cache: made once, whole or not at all, and read without filling the memory."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import data, registry
from bench.data import cache
from bench.data.cache import Plan, in_threads, prepared, take
from bench.spec import BenchError, CellInterrupted, Site
from tests.conftest import pretrain_cell, transfer_cell

HOME = Path(__file__).resolve().parent.parent


def make(index: int) -> dict[str, Any]:
    return {"images": np.full((4, 5), index, np.uint8), "labels": np.int64(-index)}


ITEMS: dict[str, tuple[str, tuple[int, ...]]] = {"images": ("uint8", (4, 5)), "labels": ("int64", ())}


def whole(count: int = 50) -> Plan:
    return Plan(count, ITEMS, make, {"names": ["a", "ä"]})


def test_what_is_made_is_what_is_read(tmp_path: Path) -> None:
    made = prepared(tmp_path / "x", whole)
    np.testing.assert_array_equal(made.arrays["images"][:, 2, 3], np.arange(50))
    np.testing.assert_array_equal(made.arrays["labels"], -np.arange(50))
    assert made.about == {"names": ["a", "ä"]}
    assert isinstance(made.arrays["images"], np.memmap)
    assert not made.arrays["images"].flags.writeable


def test_it_is_made_once(tmp_path: Path) -> None:
    prepared(tmp_path / "x", whole)

    def again() -> Plan:
        raise AssertionError("it is there already")

    assert len(prepared(tmp_path / "x", again).arrays["images"]) == 50


def test_progress_is_told_and_ends_with_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepared(tmp_path / "x", whole, lambda done, count: told.append((done, count)))
    assert told[-1] == (50, 50)
    assert all(one <= other for one, other in itertools.pairwise(told))


def test_few_items_are_under_way_at_once() -> None:
    begun: list[int] = []
    for done in in_threads(begun.append, 200):
        assert len(begun) - done <= cache.AHEAD * cache.cores()
    assert sorted(begun) == list(range(200))


# ------------------------------------------------------------------------------------------------------------- damage


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("x*"))


def test_a_bad_item_leaves_nothing(tmp_path: Path) -> None:
    def bad(index: int) -> Mapping[str, Any]:
        if index == 17:
            raise BenchError("17.png is cut off")
        return make(index)

    with pytest.raises(BenchError, match=r"17\.png is cut off"):
        prepared(tmp_path / "x", lambda: Plan(50, ITEMS, bad))
    assert left(tmp_path) == []
    assert len(prepared(tmp_path / "x", whole).arrays["images"]) == 50


def test_an_item_of_another_shape_is_an_error(tmp_path: Path) -> None:
    odd = Plan(3, {"images": ("uint8", (4, 4)), "labels": ("int64", ())}, make)
    with pytest.raises(ValueError, match=r"uint8 \(4, 4\) was planned, not uint8 \(4, 5\)"):
        prepared(tmp_path / "x", lambda: odd)
    assert left(tmp_path) == []


def test_a_wish_to_stop_is_granted_and_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, count: int) -> None:
        if done > 10:
            raise CellInterrupted("asked to stop")

    with pytest.raises(CellInterrupted):
        prepared(tmp_path / "x", whole, stop)
    assert left(tmp_path) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BenchError, match=r"cannot be written \(No space left on device\): free some space"):
        prepared(tmp_path / "x", whole)
    assert left(tmp_path) == []


def test_an_unwritable_cache_is_one_sentence(tmp_path: Path, shelves: registry.Registry) -> None:
    (tmp_path / "runs").write_text("a file where a folder is expected")
    cell = transfer_cell(pretrain_cell(), next(iter(shelves.tasks)))
    with pytest.raises(BenchError, match="cannot be written"):
        data.open_dataset(cell, shelves, Site(tmp_path / "runs", tmp_path, None))


@pytest.mark.parametrize("where", ["start", "end", "manifest", "short"])
def test_a_damaged_cache_is_set_aside_named_and_made_again(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = np.array(prepared(tmp_path / "x", whole).arrays["images"])
    array = tmp_path / "x" / ("manifest.json" if where == "manifest" else "images.npy")
    content = bytearray(array.read_bytes())
    content[{"start": 3, "manifest": 1}.get(where, -100)] ^= 0xFF
    array.unlink()
    array.write_bytes(bytes(content[:-40] if where == "short" else content))
    with caplog.at_level(logging.WARNING, logger="bench"):
        again = prepared(tmp_path / "x", whole).arrays["images"]
    np.testing.assert_array_equal(before, again)
    assert "was damaged" in caplog.text
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_large_arrays_are_verified_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr(cache, "BLOCK_BYTES", 64)
    prepared(tmp_path / "x", lambda: whole(200))
    path = tmp_path / "x" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.unlink()
    path.write_bytes(bytes(content))
    assert cache._open(tmp_path / "x") is None


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from bench.data.cache import Plan, prepared

def make(index):
    time.sleep(0.02)
    return {"images": np.full((4, 5), index, np.uint8), "labels": np.int64(-index)}

items = {"images": ("uint8", (4, 5)), "labels": ("int64", ())}
prepared(Path(sys.argv[1]), lambda: Plan(2000, items, make), lambda done, count: print(done, flush=True))
"""


def test_one_that_is_killed_in_the_middle_leaves_nothing_that_passes_for_it(tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "x")], cwd=HOME, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert int(killed.stdout.readline()) > 0
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert left(tmp_path) == ["x.making"]
    began = time.monotonic()
    assert prepared(tmp_path / "x", whole).arrays["labels"][7] == -7
    assert time.monotonic() - began < 20  # the claim of the dead is not waited for
    assert left(tmp_path) == ["x"]


def _open(arguments: tuple[Path, int]) -> float:
    runs, size = arguments
    shelves = registry.scan()
    cell = transfer_cell(pretrain_cell(image_size=size), next(iter(shelves.tasks)))
    return float(data.open_dataset(cell, shelves, Site(runs, runs, None)).images.mean())


def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        one, other = pool.map(_open, [(tmp_path, 32)] * 2)
    assert one == other
    assert not list((tmp_path / "cache").glob("*making*"))


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("rows", [[0, 1, 2], [5, 3, 3, 40], [49], []])
def test_rows_are_taken_in_the_order_asked(rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = prepared(tmp_path / "x", whole).arrays["images"]
    for resident in (1 << 29, 0):  # kept, and given back after every look
        monkeypatch.setattr(cache, "RESIDENT_BYTES", resident)
        taken = take(images, rows)
        assert taken[:, 0, 0].tolist() == rows
        assert taken.flags.writeable


def resident_pages() -> int:
    """Resident bytes of this process that are backed by files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs proc(5)")
def test_a_large_map_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 20
    plan = Plan(64, {"images": ("uint8", (size,))}, lambda index: {"images": np.full(size, index, np.uint8)})
    images = prepared(tmp_path / "x", lambda: plan).arrays["images"]
    monkeypatch.setattr(cache, "RESIDENT_BYTES", 32 * size)
    before = resident_pages()
    for row in range(64):
        assert take(images, [row])[0, -1] == row
    assert resident_pages() - before < 8 * size
