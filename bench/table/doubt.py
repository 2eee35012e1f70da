"""The doubt of a table's numbers: intervals of cells, marks of the best, and what could have been found.

All of it rests on scores of single cases, which records of schema 2 hold; where they are missing, or where there is one
seed, nothing is marked. numpy and scipy are imported when there is something to compute.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench import stats
from bench.spec import BenchError
from bench.table.panel import Cell, Design, Head, average, has_other_data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What the comparison of a column's rows could have found."""

    label: str  # of the column
    least: float  # the least lead that would have been found, in the column's unit: the median over the other rows
    seeds: int  # that half of it would take; 0: no number of seeds would do


# -------------------------------------------------------------------------------------------------------------- designs


def design(by_seed: Mapping[int, Sequence[Mapping[str, Any]]], metric: str, scale: float) -> tuple[Design, ...]:
    """The scores of single cases behind a cell, from the records of every seed; () where one does not hold them.

    Structures are averaged within a case and images within a patient; label fractions are averaged, and folds, which
    test other cases, stand side by side.
    """
    rows = {seed: _cases(records, metric) for seed, records in by_seed.items()}
    if not rows or not all(rows.values()):
        return ()
    cases = tuple(sorted(set().union(*rows.values())))
    scores = tuple(tuple(scale * row.get(case, math.nan) for case in cases) for row in rows.values())
    return (Design(tuple(rows), cases, scores),)


def _cases(records: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Patient, or image where he is not known -> its score; {} where a record does not hold them."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        cases = record.get("cases") or {}
        structures = (cases.get("scores") or {}).get(metric)
        if not structures:
            return {}
        images: dict[str, list[float]] = defaultdict(list)
        for at, (name, patient) in enumerate(zip(cases["names"], cases["patients"], strict=True)):
            values = [values[at] for values in structures.values() if values[at] is not None]
            if values:
                images[patient or name].append(average(values))
        for case, values in images.items():
            found[case].append(average(values))
    return {case: average(values) for case, values in found.items()}


def check_cases(cells: Iterable[Cell], labels: Iterable[str], column: str) -> None:
    """BenchError where rows on the same data are averaged over different cases: such a column is not printed."""
    known: dict[str, tuple[str, set[str]]] = {}
    for cell, label in zip(cells, labels, strict=True):
        for one in cell.designs:
            kept = {
                case for case, values in zip(one.cases, zip(*one.scores, strict=True), strict=True)
                if not any(map(math.isnan, values))
            }  # fmt: skip
            first, expected = known.setdefault(cell.data, (label, kept))
            if kept != expected:
                raise BenchError(
                    f"the rows {first} and {label} of {column} are averaged over {len(expected)} and {len(kept)} cases "
                    "that are not the same: move the outdated records out of the records folder and run them again"
                )


# ------------------------------------------------------------------------------------------------------------ intervals


def with_interval(cell: Cell, level: float = stats.LEVEL) -> Cell:
    """The cell with half the width of its interval over seeds and cases, over cases alone where there is one seed."""
    if cell.mean is None or not cell.designs:
        return cell
    found = stats.interval_over_tasks([one.scores for one in cell.designs], level)
    half = (found.high - found.low) / 2
    return cell if math.isnan(half) else replace(cell, half=half)


# ---------------------------------------------------------------------------------------------------------------- marks


def compared(cells: Sequence[Cell], head: Head) -> tuple[list[Cell], Found | None]:
    """A column with those marked that cannot be told from its best, and what the comparison could have found.

    Nothing is marked where fewer than two rows have numbers, where one of them has other data, no scores of single
    cases or fewer than two seeds in common with the others, and where no row can be told from the best.
    """
    scored = [at for at, cell in enumerate(cells) if cell.mean is not None]
    tasks = _aligned([cells[at] for at in scored]) if len(scored) > 1 else None
    if tasks is None:
        return list(cells), None
    made = stats.compare(tasks)
    best = int(made.means.argmax() if head.measure.higher_is_better else made.means.argmin())
    near = made.near(best)
    least = made.least_difference(best)
    found = Found(head.label, least, stats.seeds_for(tasks, least / 2) if least > 0 else 0)
    if near.all():
        return list(cells), found
    marked = {at for at, kept in zip(scored, near, strict=True) if kept}
    return [replace(cell, best=at in marked) for at, cell in enumerate(cells)], found


def _aligned(cells: Sequence[Cell]) -> list[Array] | None:
    """Scores (rows, seeds, cases) of every task of a column; None where the rows cannot be compared."""
    import numpy as np

    if has_other_data(cells) or not all(cell.designs for cell in cells):
        return None
    tasks = []
    for parts in zip(*(cell.designs for cell in cells), strict=True):
        seeds = sorted(set.intersection(*(set(part.seeds) for part in parts)))
        cases = sorted(set.intersection(*(set(part.cases) for part in parts)))
        if len(seeds) < 2:
            return None
        scores = np.array([[[part.of(seed, case) for case in cases] for seed in seeds] for part in parts])
        kept = stats.shared(scores)
        if min(kept.shape[1:]) < 2:
            return None
        tasks.append(kept)
    return tasks
