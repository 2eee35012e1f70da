"""Every method on every task, on phantoms at the smallest budget: which pairs fail, and how long it takes.

    python tests/benchmarks/cross.py [--methods all] [--tasks all] [--budget smoke] [--jobs 2] [--folder DIR]

The tests run a part of these pairs in which every method and every task is met; this runs all (about 20 minutes on two
cores for 35 methods and 14 tasks). With --folder it goes on from what lies there. One JSON line; exit code 1 where a
pair failed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import registry
from bench.data.cache import cores
from bench.run import launch
from bench.run.grid import Request, expand
from bench.spec import Site


def measure(folder: Path, methods: str, tasks: str, budget: str, jobs: int) -> dict[str, Any]:
    site = Site(folder / "runs", folder / "results", None)
    request = Request(methods, tasks, budget=budget, runs=site.runs, results=site.results)
    began = time.perf_counter()
    grid = expand(request, registry.scan())
    outcome = launch.run(grid, request.store, site, jobs=jobs)
    failed = {cell.folder: f"{ended.status}: {ended.reason}" for cell, ended in outcome.failures}
    return {
        "benchmark": "cross",
        "methods": len(grid.methods),
        "tasks": len(grid.tasks),
        "pretrainings": len(grid.pretrainings),
        "transfers": len(grid.transfers),
        "unavailable": len(grid.unavailable),
        "jobs": jobs,
        "counts": dict(outcome.counts),
        "failed": failed,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--budget", default="smoke")
    parser.add_argument("--jobs", type=int, default=cores(), help="cells at a time")
    parser.add_argument("--folder", type=Path, help="a store to keep, instead of one that is thrown away")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (chosen.folder or Path(made)).absolute()
        found = measure(folder, chosen.methods, chosen.tasks, chosen.budget, chosen.jobs)
    print(json.dumps(found), flush=True)
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
