"""How long a table takes: 2,000 record files to printed text, interpreter start included, and how that grows.

`python tests/benchmarks/table.py` prints one JSON line: `seconds` for 2,000 record files in a fresh interpreter,
`seconds_100000` for 100,000 records in one file of lines, and `ratio_per_record`, the time to build and print per
record at 100,000 over that at 2,000 (1: linear; imports, reading and starting left out).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL, LARGE = 2_000, 100_000
TABLE = """
import json, sys, time
from pathlib import Path
import scipy.special
from bench.table import build, default_layout, render
path = Path(sys.argv[1])
texts = path.read_bytes().splitlines() if path.is_file() else [file.read_bytes() for file in path.iterdir()]
records = [json.loads(text) for text in texts]
start = time.perf_counter()
render(build(records, default_layout(records, {}, ())), "text", width=120, colour=False)
print(len(records), time.perf_counter() - start)
"""
AXES = {"method": 20, "task": 20, "seed": 5, "budget": 5, "backbone": 5, "label_fraction": 2}  # 100,000 together


def record(index: int) -> dict[str, Any]:
    """The index-th of the grid, shaped like a record of a real run."""
    places, rest = {}, index
    for name, size in AXES.items():
        rest, places[name] = divmod(rest, size)
    key = f"{index:064d}"
    return {
        "schema": 1,
        "method": f"method{places['method']}",
        "label": f"method{places['method']}",
        "task": f"task{places['task']}",
        "group": f"group{places['task'] % 3}",
        "corpus": "corpus",
        "phantom": True,
        "backbone": f"backbone{places['backbone']}",
        "budget": f"quick (steps={places['budget']})",
        "protocol": "finetune",
        "label_fraction": 1.0 - 0.5 * places["label_fraction"],
        "seed": places["seed"],
        "status": "done",
        "reason": None,
        "metric": "dsc",
        "score": 0.5 + (index * 7919 % 1000) / 4000,
        "higher_is_better": True,
        "n_images": 8,
        "pretrain_key": key,
        "cell_key": key,
        "selection": "lowest validation loss (20 % of train)",
        "seconds": 12.5,
        "peak_memory": 1234567,
        "versions": {"python": "3.11", "torch": "2.6", "numpy": "2.0"},
        "sources": {"method": "0" * 64, "task": "1" * 64},
    }


def measure(path: Path, count: int) -> tuple[float, float]:
    """Seconds of a fresh interpreter, and of building and printing alone."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TABLE, str(path)], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - start
    read, inner = done.stdout.split()
    assert int(read) == count, f"{read} of {count} records were read"
    return whole, float(inner)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "records"
        files.mkdir()
        for index in range(SMALL):
            (files / f"{index}.json").write_text(json.dumps(record(index)))
        lines = Path(folder) / "records.jsonl"
        lines.write_text("".join(json.dumps(record(index)) + "\n" for index in range(LARGE)))
        small = [measure(files, SMALL) for _ in range(5)]
        large = [measure(lines, LARGE) for _ in range(2)]
    seconds, seconds_large = (min(whole for whole, _ in runs) for runs in (small, large))
    inner, inner_large = (min(inner for _, inner in runs) for runs in (small, large))
    line = {
        "records": SMALL,
        "seconds": round(seconds, 3),
        "seconds_100000": round(seconds_large, 3),
        "ratio_per_record": round(inner_large / LARGE / (inner / SMALL), 3),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
