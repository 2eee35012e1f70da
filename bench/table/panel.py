"""What a table is made of: panels of rows of cells, as plain frozen data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.spec import BLOCKED, DONE, FAILED, OUT_OF_MEMORY, TIMED_OUT

MISSING, UNAVAILABLE, PART = "missing", "not available", "part of the label fractions"
LEAKS = {"test": "†", "train": "§", "known": "¶"}  # kind of leak -> mark behind the number; the gravest first
SIGNIFICANCE = 0.05  # two-sided, of Welch's t-test
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
    "mixed metrics": "mixed",
}


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
class Cell:
    """A number with its spread, or the reason why there is none."""

    status: str = DONE
    detail: str = ""  # what is printed where the status alone does not say it
    unit: str = ""
    values: tuple[float, ...] = ()  # one per repetition, in `unit`
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

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def std(self) -> float | None:
        """Sample standard deviation over repetitions."""
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
    metric: str
    higher_is_better: bool
    is_mean: bool
    task: str = ""  # of a task's own column
    fraction: float | None = None  # of the labels, where each column of a task has its own


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
    n: int  # usual number of repetitions
    selections: tuple[str, ...]
    data: str  # `task (present/expected)` of real datasets, where records say so
    heads: tuple[Head, ...]
    rows: tuple[PanelRow, ...]
    against: bool  # published numbers beside ours
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


def unit_of(metric: str) -> str:
    """What a table prints a metric in: lengths as they are, shares in percent."""
    return "mm" if metric.endswith("_mm") else "%"


def average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(sample: Sequence[float]) -> float:
    """Unbiased variance of at least two values."""
    mean = average(sample)
    return math.fsum((value - mean) ** 2 for value in sample) / (len(sample) - 1)
