"""How long commands that need no network take to answer, in fresh interpreters.

`python tests/benchmarks/startup.py [N]` prints one JSON line: the median seconds of N starts (7) per command, whether
any of them imported torch, and `ratio`, the seconds of `bench --help` over those of `python -c "import typer"`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.registry import scan

HOME = Path(__file__).resolve().parent.parent.parent
COMMANDS = {
    "--help": ["--help"],
    "plan": ["plan", "--methods", "all", "--tasks", "all"],
    "status": ["status"],
    "table": ["table"],
    "list methods": ["list", "methods"],
    "show": ["show", next(iter(scan().methods))],
}
BENCH = f"import sys; sys.path.insert(0, {str(HOME)!r}); from bench.cli import main; code = main(sys.argv[1:])"
REPORT = f"{BENCH}; print('torch' in sys.modules, file=sys.stderr)"


def seconds(code: str, words: list[str], folder: str) -> float:
    """Wall seconds of one interpreter from start to exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def imports_torch(words: list[str], folder: str) -> bool:
    """Whether a command had torch imported when it ended."""
    command = [sys.executable, "-c", REPORT, *words]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stderr.splitlines()[-1] == "True"


def main() -> None:
    """Measures the commands in turns, so that a busy moment hits all of them."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    pieces = {name: (BENCH, words) for name, words in COMMANDS.items()}
    pieces |= {"python": ("pass", []), "import typer": ("import typer", [])}
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, list[float]] = {name: [] for name in pieces}
        for _ in range(rounds + 1):
            for name, (code, words) in pieces.items():
                found[name].append(seconds(code, words, folder))
        medians = {name: round(statistics.median(times[1:]), 4) for name, times in found.items()}  # the first compiles
        torch_imported = any(imports_torch(words, folder) for words in COMMANDS.values())
    ratio = round(medians["--help"] / medians["import typer"], 2)
    print(json.dumps({**medians, "torch_imported": torch_imported, "ratio": ratio, "rounds": rounds}))


if __name__ == "__main__":
    main()
