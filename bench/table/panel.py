"""What a table is made of: panels of rows of cells, as plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.spec import BLOCKED, DONE, FAILED, OUT_OF_MEMORY, TIMED_OUT

MISSING, UNAVAILABLE, PART = "missing", "not available", "part of the label fractions"
FOLDS = "part of the folds"
LEAKS = {"test": "†", "train": "§", "known": "¶"}  # kind of leak -> mark behind the number; the gravest first
MARKS = {  # status -> what stands in the cell; the gravest first
    MISSING: "–",
    FAILED: "failed",
    BLOCKED: "blocked",
    OUT_OF_MEMORY: "OOM",
    TIMED_OUT: "timeout",
    "running": "running",
    "interrupted": "stopped",
    UNAVAILABLE: "n/a",
    "no score": "no score",
    "ambiguous": "keys?",
    "no common task": "none",
}


@dataclass(frozen=True)
class Measure:
    """What the numbers of a panel are: a metric as its declaration has it, so that nothing is guessed from its name."""

    metric: str = ""
    title: str = ""
    unit: str = ""  # of what is printed; "": none
    higher_is_better: bool = True
    scale: float = 1.0  # from a record's score to what is printed
    digits: int = 2

    @property
    def in_unit(self) -> str:
        """`DSC in percent`."""
        unit = "percent" if self.unit == "%" else self.unit
        return f"{self.title} in {unit}" if unit else self.title


FIRST = Measure("dsc", "DSC", "%", higher_is_better=True, scale=100.0)  # the one metric of records of schema 1
TOLD = ("title", "unit", "higher_is_better", "scale", "digits")  # fields that a record says of its metrics


def measure_of(record: Mapping[str, Any]) -> Measure:
    """The metric of a record's score."""
    name = str(record.get("metric") or "")
    told = (record.get("metrics") or {}).get(name)
    if told is not None:
        return Measure(name, **{field: told[field] for field in TOLD if field in told})
    if name == FIRST.metric:
        return FIRST
    return Measure(name, name.replace("_", " ").upper(), higher_is_better=bool(record.get("higher_is_better", True)))


@dataclass(frozen=True)
class Condition:
    """What the numbers of one panel have in common."""

    backbone: str  # "": as the layout's rows say
    budget: str
    protocol: str
    phantom: bool
    corpus: str | None  # None: no corpus; "": as the layout's columns say
    label_fraction: float | None  # None: as the layout's columns say
    content: str = ""  # the beginning of the corpus's fingerprint, where another of its name holds other images


@dataclass(frozen=True)
class Design:
    """Scores of single cases behind a number, in its unit: a row for each seed, NaN where a case does not count."""

    seeds: tuple[int, ...]
    cases: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    def of(self, seed: int, case: str) -> float:
        return self._at[seed, case]

    @cached_property
    def _at(self) -> dict[tuple[int, str], float]:
        rows = zip(self.seeds, self.scores, strict=True)
        return {(seed, case): score for seed, row in rows for case, score in zip(self.cases, row, strict=True)}


@dataclass(frozen=True)
class Cell:
    """A number with its spread, or the reason why there is none."""

    status: str = DONE
    detail: str = ""  # what is printed where the status alone does not say it
    unit: str = ""
    values: tuple[float, ...] = ()  # one per seed, in `unit`
    seeds: tuple[int, ...] = ()  # of the values
    mean: float | None = None
    best: bool = False
    stale: bool = False  # made by other source than the present one
    leaks: tuple[str, ...] = ()  # kinds, as in LEAKS: what its corpus shares with its task
    data: str = ""  # fingerprint of the dataset, where records name it; several where repetitions differ
    published: float | None = None
    published_status: str = ""  # done, not available; empty: no publication asked for
    difference: float | None = None  # ours minus published
    inside: bool | None = None  # of the tolerance; None: not comparable
    half: float | None = None  # half width of the 95 % interval; None: not known, or not asked for
    designs: tuple[Design, ...] = ()  # of its task, or of every task that it averages; (): not known

    @property
    def spread(self) -> float | None:
        """What stands behind the sign of plus and minus: half an interval, or else a standard deviation."""
        return self.half if self.half is not None else self.std

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def std(self) -> float | None:
        """Sample standard deviation over seeds."""
        return math.sqrt(variance(self.values)) if self.n > 1 else None

    @property
    def mark(self) -> str:
        return self.detail or MARKS.get(self.status, self.status)


@dataclass(frozen=True)
class Head:
    """A column of a panel as it is printed."""

    name: str
    label: str
    section: str
    tasks: tuple[str, ...]  # that it averages; one for a task's own column
    measure: Measure
    is_mean: bool
    task: str = ""  # of a task's own column
    fraction: float | None = None  # of the labels, where each column of a task has its own

    @property
    def heading(self) -> str:
        """The label with its unit, where that is not percent."""
        return f"{self.label} ({self.measure.unit})" if self.measure.unit not in ("", "%") else self.label


@dataclass(frozen=True)
class PanelRow:
    method: str
    label: str
    section: str
    note: str  # number of its footnote
    cells: tuple[Cell, ...]  # one per head

    @property
    def name(self) -> str:
        """The label with the number of its footnote."""
        return f"{self.label} [{self.note}]" if self.note else self.label


@dataclass(frozen=True)
class Panel:
    """All rows under one condition."""

    condition: Condition
    corpora: tuple[str, ...]
    seeds: tuple[int, ...]
    n: int  # usual number of seeds
    selections: tuple[str, ...]
    data: str  # `task (present/expected)` of real datasets, where records say so
    heads: tuple[Head, ...]
    rows: tuple[PanelRow, ...]
    against: bool  # published numbers beside ours
    measure: Measure = Measure()
    folds: int = 0  # of the tasks that have them, where all have as many
    title: str = ""
    header: str = ""
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row.cells]

    @property
    def columns(self) -> list[tuple[Head, list[Cell]]]:
        return [(head, [row.cells[at] for row in self.rows]) for at, head in enumerate(self.heads)]


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    source: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """One record without a number."""

    status: str
    label: str
    column: str
    seed: int | None  # None: of every seed
    reason: str


def has_other_data(cells: Sequence[Cell]) -> bool:
    """Whether the numbers of a column come from different versions of a dataset."""
    return len({cell.data for cell in cells if cell.mean is not None}) > 1


def average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(sample: Sequence[float]) -> float:
    """Unbiased variance of at least two values."""
    mean = average(sample)
    return math.fsum((value - mean) ** 2 for value in sample) / (len(sample) - 1)
