"""What a driver costs on a login node: submitting 1,000 cells, and planning 10,000.

`python tests/benchmarks/submit.py` prints one JSON line: calls of sbatch (a pretended one that only counts), seconds
and peak memory of the process for a submission of 1,000 cells that do nothing, the seconds of the same again when all
are in the queue, and those that `bench plan` takes to expand and look up 10,000 cells.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent.parent
CELLS, PLANNED = 1_000, 10_000
SBATCH = """#!/bin/sh
n=$(cat "$PRETENCE/calls" 2>/dev/null || echo 0)
echo $((n + 1)) > "$PRETENCE/calls"
sed -n 's/^#SBATCH --job-name=//p' "$1" > "$PRETENCE/$((n + 1)).name"
sed -n "s/^#SBATCH --array='*0-\\([0-9]*\\)%.*/\\1/p" "$1" > "$PRETENCE/$((n + 1)).last"
echo "Submitted batch job $((n + 1))"
"""
SQUEUE = """#!/bin/sh
for file in "$PRETENCE"/*.name; do
  [ -e "$file" ] || continue
  id=$(basename "$file" .name); name=$(cat "$file"); last=$(cat "${file%.name}.last")
  if [ -n "$last" ]; then seq -f "${id}_%.0f|$name|PENDING" 0 "$last"; else echo "$id|$name|PENDING"; fi
done
"""


def pretend(home: Path) -> None:
    """Puts commands of Slurm first on the path that only count."""
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "srun": "#!/bin/sh\n"}.items():
        path = home / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    os.environ |= {"PATH": f"{home}{os.pathsep}{os.environ['PATH']}", "PRETENCE": str(home)}


def submission(home: Path) -> dict[str, float]:
    """Seconds, calls of sbatch and megabytes of a submission of CELLS cells."""
    from bench.registry import scan
    from bench.run.cluster.driver import submit
    from bench.run.grid import Request, expand
    from bench.run.grid.profile import Cluster

    found = scan()
    methods = [name for name, spec in found.methods.items() if spec.trains and not spec.needs][:5]
    tasks = [name for name, spec in found.tasks.items() if spec.channels == 3][:8]
    request = Request(",".join([*methods, "!scratch"]), ",".join(tasks), runs=home / "runs", results=home / "results")
    per_seed = len(methods) * (len(tasks) + 1)
    request = replace(request, seeds=-(-CELLS // per_seed), cluster=Cluster())
    grid = expand(request, found)
    began = time.perf_counter()
    made = submit(grid, request, found, lambda hours: False)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    again = submit(grid, request, found, lambda hours: False)
    assert again.arrays == () and len(again.queued) == len(made.open)
    return {
        "cells": sum(len(array.cells) for _, array in made.arrays),
        "sbatch_calls": int((home / "calls").read_text()),
        "seconds": round(seconds, 2),
        "seconds_again": round(time.perf_counter() - began, 2),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def planning(home: Path) -> dict[str, float]:
    """Seconds to expand and look up PLANNED cells on an empty store."""
    from bench.registry import scan
    from bench.run.grid import Request, expand, plan, totals

    began = time.perf_counter()
    found = scan()
    request = Request("all", "all", runs=home / "runs", results=home / "results")
    each = len(expand(request, found).transfers)
    request, began = replace(request, seeds=-(-PLANNED // each)), time.perf_counter()
    rows = plan(expand(request, scan()), request.store)
    totals(rows)
    return {"planned": len(rows), "plan_seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    """Each in an interpreter of its own, so that memory is its own."""
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            pretend(Path(folder))
            print(json.dumps(submission(Path(folder)) if sys.argv[1] == "submission" else planning(Path(folder))))
        return
    facts: dict[str, float] = {}
    for part in ("submission", "planning"):
        environment = {**os.environ, "PYTHONPATH": str(HOME)}
        command = [sys.executable, __file__, part]
        facts |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
