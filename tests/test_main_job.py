"""The main job at the smallest budget: every cell gets its record, nothing is done twice, and every plug-in is met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.data.store import Store
from bench.registry import scan
from bench.run import launch
from bench.run.grid import Grid, Request, expand
from bench.spec import Site, TransferCell, derive

HOME = Path(__file__).resolve().parent.parent
SHELVES = scan()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


# --------------------------------------------------------------------------------------------------------- as one types


def run(folder: Path, methods: str, tasks: str) -> None:
    """`bench run` in `folder`."""
    command = [sys.executable, "-m", "bench", "run", "--methods", methods, "--tasks", tasks, "--budget", "smoke"]
    environment = {name: value for name, value in os.environ.items() if name != "BENCH_DATA"}
    environment |= {"PYTHONPATH": str(HOME)}
    done = subprocess.run(
        [*command, "--device", "cpu", "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def pretrainings(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs" / "pretrain").iterdir())


def test_pretrainings_are_shared_and_nothing_is_done_twice(tmp_path: Path) -> None:
    group = [SHELVES.tasks[name] for name in SHELVES.groups("task")["fundus_all"]]
    first, *others = [task.name for task in sorted(group, key=lambda task: task.train + task.test)][:3]
    run(tmp_path, "rd,moco", ",".join(others))
    shared = pretrainings(tmp_path)
    assert [name.partition("-")[0] for name in shared] == ["moco", "rd"]
    run(tmp_path, "rd,moco", f"{first},{','.join(others)}")
    assert pretrainings(tmp_path) == shared
    records = {path.name: path.read_bytes() for path in (tmp_path / "results" / "records").iterdir()}
    assert len(records) == 3 * (1 + len(others))  # with scratch
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.jsonl")}
    run(tmp_path, "rd,moco", f"{','.join(others)},{first}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "records").iterdir()} == records
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.jsonl")} == logs


# ------------------------------------------------------------------------------------------------------ every plug-in


def kind_of(task: str) -> tuple[str, int]:
    """What is asked, and of images of how many dimensions."""
    spec = SHELVES.tasks[task]
    return getattr(spec, "truth", "mask"), getattr(spec, "dims", 2)


def covering(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Of all (method, task): each method with one task of every kind that it fits, each task with some method.

    Which one, a hash decides, so that a new plug-in leaves nearly all other pairs as they were.
    """

    def first(choices: list[tuple[str, str]]) -> tuple[str, str]:
        return max(choices, key=lambda pair: derive(0, *pair))

    groups: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
    for method, task in pairs:
        groups.setdefault((method, kind_of(task)), []).append((method, task))
    chosen = {first(choices) for choices in groups.values()}
    met = {task for _, task in chosen}
    groups = {}
    for method, task in pairs:
        if task not in met:
            groups.setdefault((task,), []).append((method, task))
    return chosen | {first(choices) for choices in groups.values()}


def reduced(grid: Grid, wanted: set[tuple[str, str]]) -> Grid:
    """The part of a grid that makes some (method, task)."""
    transfers = tuple(cell for cell in grid.transfers if pair_of(cell) in wanted)
    needed = {cell.pretrain.key for cell in transfers}
    return replace(
        grid, transfers=transfers, pretrainings=tuple(cell for cell in grid.pretrainings if cell.key in needed)
    )


def pair_of(cell: TransferCell) -> tuple[str, str]:
    return cell.pretrain.method, cell.task


def test_every_method_and_every_task_end_in_a_record(tmp_path: Path) -> None:
    """All pairs are a matter of hours soon: `python tests/benchmarks/cross.py` runs them."""
    site = Site(tmp_path / "runs", tmp_path / "results", None)
    whole = expand(Request("all", "all", budget="smoke", runs=site.runs, results=site.results), SHELVES)
    grid = reduced(whole, covering([pair_of(cell) for cell in whole.transfers]))
    missed = set(SHELVES.methods) - {cell.pretrain.method for cell in grid.transfers}
    assert all(SHELVES.methods[name].weights for name in missed)  # files or libraries that a test does not have
    assert {cell.task for cell in grid.transfers} == set(SHELVES.tasks)
    assert len(whole.unavailable) < len(whole.transfers) / 5
    store = Store(site.runs, site.results)
    outcome = launch.run(grid, store, site, jobs=2)
    assert outcome.failures == []
    records = {(record["method"], record["task"]): record for record in store.records()}
    assert set(records) == {pair_of(cell) for cell in grid.transfers}
    for record in records.values():
        assert record["status"] == "done"
        assert record["phantom"] is True
        assert record["n_images"] > 0
        assert 0 <= record["score"] <= 1 or kind_of(record["task"])[0] != "mask"
