"""The main job as a user types it, at the smallest budget: every cell gets its record, and nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.registry import scan
from bench.spec import FILE

HOME = Path(__file__).resolve().parent.parent
SHELVES = scan()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(folder: Path, methods: str, tasks: str) -> dict[str, Any]:
    """The JSON summary of `bench run` in `folder`."""
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
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def pretrainings(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs" / "pretrain").iterdir())


def test_pretrainings_are_shared_and_nothing_is_done_twice(tmp_path: Path) -> None:
    first, *others = SHELVES.groups("task")["fundus_all"]
    run(tmp_path, "rd,moco", ",".join(others))
    shared = pretrainings(tmp_path)
    assert [name.partition("-")[0] for name in shared] == ["moco", "rd"]
    run(tmp_path, "rd,moco", f"{first},{','.join(others)}")
    assert pretrainings(tmp_path) == shared
    records = {path.name: path.read_bytes() for path in (tmp_path / "results" / "records").iterdir()}
    assert len(records) == 3 * (1 + len(others))  # with scratch
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.jsonl")}
    run(tmp_path, "rd,moco", "fundus_all")
    assert {path.name: path.read_bytes() for path in (tmp_path / "results" / "records").iterdir()} == records
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("events.jsonl")} == logs


def test_every_method_meets_every_task(tmp_path: Path) -> None:
    summary = run(tmp_path, "all", "all")
    records = [json.loads(path.read_text()) for path in (tmp_path / "results" / "records").iterdir()]
    cells = {(record["method"], record["task"]): record for record in records}
    absent = {(item["method"], item["task"]) for item in summary["unavailable"]}
    assert {method for method, _ in absent} <= {"supervised", "emmd", "imagenet"}  # no grades, pairs, weights
    rows = [name for name, spec in SHELVES.methods.items() if spec.weights != FILE]
    assert set(cells) == {(method, task) for method in rows for task in SHELVES.tasks} - absent
    assert len(absent) < len(cells) / 5
    for record in records:
        assert record["status"] == "done"
        assert record["phantom"] is True
        assert 0 <= record["score"] <= 1
        assert record["n_images"] > 0
