"""What the statistics promise, tried where nothing differs: how often a row is excluded, how often an interval covers.

Scores between 0 and 1, skewed, with an effect of the case, of method x case, of method x seed and a rest, sizes as
measured cells have them. `uneven`: the methods' spreads over seeds differ by a factor of two either way. Run as
`python tests/benchmarks/stats_null.py [GRIDS]`.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from bench import stats

GRIDS = 1000
CASE, METHOD_CASE, METHOD_SEED, REST = 0.5, 0.12, 0.12, 0.2  # standard deviations on the scale of the logit
LEVEL = 0.8  # of the mean on that scale, about 0.69 as a score
TASKS = 8


def grid(rng: np.random.Generator, rows: int, seeds: int, cases: int, *, uneven: bool) -> np.ndarray:
    """Scores (M, K, n) of methods whose expectations are the same."""
    spread = METHOD_SEED * (2.0 ** rng.uniform(-1, 1, rows) if uneven else np.ones(rows))
    scale = rng.normal(LEVEL, CASE, cases) + rng.normal(0, METHOD_CASE, (rows, 1, cases))
    scale = scale + rng.normal(0, 1, (rows, seeds, 1)) * spread[:, None, None]
    return 1 / (1 + np.exp(-(scale + rng.normal(0, REST, (rows, seeds, cases)))))


def excluded(rows: int, seeds: int, cases: int, tasks: int, grids: int, *, uneven: bool) -> float:
    """Share of the columns, or of the means over tasks, in which at least one row is told from the best."""
    rng = np.random.default_rng([rows, seeds, cases, tasks, uneven])
    wrong = 0
    for _ in range(grids):
        made = [grid(rng, rows, seeds, cases, uneven=uneven) for _ in range(tasks)]
        wrong += not stats.near_best(made).all()
    return wrong / grids


def covered(seeds: int, cases: int, by_seed: float, cells: int) -> float:
    """Share of the cells whose 95 % interval holds the expectation."""
    rng = np.random.default_rng([seeds, cases, round(100 * by_seed)])
    reference = np.random.default_rng(0)
    drawn = LEVEL + reference.normal(0, (CASE**2 + METHOD_CASE**2 + by_seed**2 + REST**2) ** 0.5, 4_000_000)
    expectation = float((1 / (1 + np.exp(-drawn))).mean())
    inside = 0
    for _ in range(cells):
        scale = (
            LEVEL + rng.normal(0, (CASE**2 + METHOD_CASE**2) ** 0.5, (1, cases)) + rng.normal(0, by_seed, (seeds, 1))
        )
        found = stats.interval(1 / (1 + np.exp(-(scale + rng.normal(0, REST, (seeds, cases))))))
        inside += found.low <= expectation <= found.high
    return inside / cells


def main(grids: int) -> None:
    began = time.monotonic()
    print(f"{grids} grids or cells a line; nothing differs in any of them")
    print("\nshare in which a row is told from the best (asked for: at most 5 %)")
    for tasks in (1, TASKS):
        for rows in (12, 22):
            for uneven in (False, True):
                share = excluded(rows, 3, 20, tasks, grids, uneven=uneven)
                what = f"mean of {tasks} tasks" if tasks > 1 else "one task"
                print(f"  {rows} rows, 3 seeds x 20 cases, {what:<15} {'uneven' if uneven else 'even':<7} {share:6.1%}")
    print("\nshare of 95 % intervals that hold the expectation")
    for seeds, cases in ((3, 20), (5, 20), (10, 20), (3, 8), (5, 100)):
        shares = [covered(seeds, cases, by_seed, grids) for by_seed in (0.06, 0.12, 0.3)]
        print(
            f"  {seeds:>2} seeds x {cases:>3} cases, seeds' spread .06, .12, .3: "
            + ", ".join(f"{s:.1%}" for s in shares)
        )
    print(f"\n{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else GRIDS)
