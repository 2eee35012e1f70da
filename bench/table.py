"""Tables: a pure function of records and a layout; no torch, and nothing but text comes out.

`build` sorts records into panels, one per condition, and turns every (row, column) into a number or a named gap;
`render` writes the result down. Scores of records are in [0, 1] (or mm); in tables shares are percent.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import statistics
import sys
import textwrap
import tomllib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.registry import suggest
from bench.spec import BLOCKED, DONE, FAILED, OUT_OF_MEMORY, SCHEMA, TIMED_OUT, BenchError, TaskSpec

Record = Mapping[str, Any]
Line = list[tuple[str, str]]  # pieces of text with their rich style

FORMATS = ("text", "md", "csv", "latex", "json")
SIGNIFICANCE = 0.05  # two-sided, of Welch's t-test
PHANTOM = "phantom: generated images, not data"
MISSING, RUNNING, INTERRUPTED = "missing", "running", "interrupted"
UNAVAILABLE = "not available"
PART = "part of the label fractions"
MARKS = {  # status -> what stands in the cell
    MISSING: "–",
    FAILED: "failed",
    BLOCKED: "blocked",
    OUT_OF_MEMORY: "OOM",
    TIMED_OUT: "timeout",
    RUNNING: "running",
    INTERRUPTED: "stopped",
    UNAVAILABLE: "n/a",
    "no score": "no score",
    "ambiguous": "2 keys",
    "no common task": "none",
    "mixed metrics": "mixed",
}
MEANINGS = {
    MISSING: "no record",
    UNAVAILABLE: "the publication prints no number",
    "ambiguous": "several records with different keys answer to the same label and seed",
    "no common task": "no task that all compared rows have",
    "mixed metrics": "the tasks have different metrics, which have no mean",
}
_CONDITIONS = ("backbone", "budget", "protocol", "label_fraction")
_REQUIRED = ("method", "label", "task", *_CONDITIONS, "seed", "status", "cell_key")
_SCALES = {"%": 100.0, "mm": 1.0}  # from a record's score to what is printed
_REASON_LENGTH = 100  # characters of a reason that are shown
_REASONS_SHOWN = 6  # per status
_HOME = Path(__file__).resolve().parent


# -------------------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Column:
    """One task. Where `corpus` or `label_fractions` are given, only records made so stand under it."""

    task: str
    label: str
    section: str = ""
    corpus: str = ""  # the corpus of the publication; another one makes a table of its own
    label_fractions: tuple[float, ...] = ()  # several: the column is the mean over all of them


@dataclass(frozen=True)
class Mean:
    """A column that averages the tasks which all compared rows have."""

    name: str
    label: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One method with its hyper-parameters; `label` is printed."""

    method: str
    label: str
    section: str = ""


@dataclass(frozen=True)
class Layout:
    """What a table shows, and in which order."""

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    means: tuple[Mean, ...]
    rows: tuple[Row, ...]
    open: bool = False  # rows and columns are those that records hold
    conditions: Mapping[str, str] = field(default_factory=dict)  # of the publication: backbone, budget, protocol
    unit: str = "%"  # of the published numbers
    tolerance: float | None = None  # largest difference from a published number that counts as agreement, in `unit`
    notes: tuple[str, ...] = ()  # on the publication
    unavailable: frozenset[tuple[str, str]] = frozenset()  # (method, column) where the publication prints no number


@dataclass(frozen=True)
class Published:
    """Numbers printed in a publication, in its unit; None where it prints none."""

    values: Mapping[tuple[str, str], float | None]  # (method, column name)
    layout: Layout


def load_layouts() -> dict[str, Path]:
    """Every layout by name: the TOML files beside the published numbers of the checkout or the installed package."""
    for folder in (_HOME.parent / "results" / "published", _HOME / "_published"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def load_layout(name: str) -> Layout:
    """The layout called `name`; BenchError where there is none or its file is wrong."""
    path = _layout_path(name)
    return read_layout(path)


def load_published(name: str) -> Published:
    """The published numbers of the layout called `name`; BenchError where there are none."""
    path = _layout_path(name)
    numbers = path.with_suffix(".csv")
    if not numbers.is_file():
        raise BenchError(f"layout {name!r} has no published numbers: {numbers.name} is not beside {path.name}")
    return Published(_read_numbers(numbers), read_layout(path))


def _layout_path(name: str) -> Path:
    layouts = load_layouts()
    if name not in layouts:
        raise BenchError(f"no table layout is called {name!r}{suggest(name, layouts) or '; see `bench list tables`'}")
    return layouts[name]


def read_layout(path: Path) -> Layout:
    """The layout in a TOML file; unknown and missing fields are errors."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is not valid TOML: {error}") from None
    try:
        for name, kind in (("columns", Column), ("means", Mean), ("rows", Row)):
            data[name] = tuple(kind(**_frozen(entry)) for entry in data.get(name, ()))
        layout = Layout(name=path.stem, **_frozen(data))
    except TypeError as error:
        raise BenchError(f"{path.name}: {str(error).replace('.__init__()', '')}") from None
    _check_layout(layout, path)
    numbers = path.with_suffix(".csv")
    if not numbers.is_file():
        return layout
    return replace(layout, unavailable=frozenset(k for k, value in _read_numbers(numbers).items() if value is None))


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _check_layout(layout: Layout, path: Path) -> None:
    names = [column.task for column in layout.columns] + [mean.name for mean in layout.means]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BenchError(f"{path.name} names the column {twice[0]!r} twice")
    for mean in layout.means:
        for task in mean.tasks:
            if task not in names:
                raise BenchError(f"{path.name}: the mean {mean.name!r} uses {task!r}, which is not one of the columns")


def _read_numbers(path: Path) -> dict[tuple[str, str], float | None]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    values: dict[tuple[str, str], float | None] = {}
    for row in rows:
        method = row.pop("method")
        for column, text in row.items():
            try:
                values[method, column] = None if text == "-" else float(text)
            except (TypeError, ValueError):
                raise BenchError(f"{path.name}: {method}, {column}: {text!r} is neither a number nor '-'") from None
    return values


def default_layout(
    records: Iterable[Record], task_info: Mapping[str, TaskSpec], method_order: Sequence[str], *, name: str = "all"
) -> Layout:
    """Methods by tasks with a mean per group: whatever the records hold.

    Tasks stand by group, then section, then in the order of `task_info`; rows by `method_order`, then label.
    """
    held = [record for record in records if not _lacks(record)]
    group_of = {task: _group(task, held_group, task_info) for task, held_group in _tasks_of(held).items()}
    columns = [_column(task, task_info) for task in _task_order(group_of, task_info)]
    groups: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        groups[group_of[column.task]].append(column.task)
    several = {group: tasks for group, tasks in groups.items() if len(tasks) > 1}
    means = [
        Mean(f"mean_{group}".rstrip("_"), "mean" if len(groups) == 1 else f"mean {group}".rstrip(), tuple(tasks))
        for group, tasks in several.items()
    ]
    place = {method: index for index, method in enumerate(method_order)}
    found = {(str(record["method"]), str(record["label"])) for record in held}
    rows = sorted(found, key=lambda row: (place.get(row[0], len(place)), row[0], row[1] != row[0], row[1]))
    return Layout(
        name=name,
        title="Methods by tasks",
        source="",
        columns=tuple(columns),
        means=tuple(means),
        rows=tuple(Row(method, label) for method, label in rows),
        open=True,
    )


def _tasks_of(records: Iterable[Record]) -> dict[str, str]:
    return {str(record["task"]): str(record.get("group") or "") for record in records}


def _group(task: str, held: str, task_info: Mapping[str, TaskSpec]) -> str:
    if task in task_info and task_info[task].groups:
        return task_info[task].groups[0]
    return held


def _task_order(group_of: Mapping[str, str], task_info: Mapping[str, TaskSpec]) -> list[str]:
    place = {task: index for index, task in enumerate(task_info)}
    by_place = sorted(group_of, key=lambda task: (place.get(task, len(place)), task))
    groups = list(dict.fromkeys(group_of[task] for task in by_place))
    sections = list(dict.fromkeys((group_of[task], _column(task, task_info).section) for task in by_place))

    def rank(task: str) -> tuple[int, int]:
        return groups.index(group_of[task]), sections.index((group_of[task], _column(task, task_info).section))

    return sorted(by_place, key=rank)


def _column(task: str, task_info: Mapping[str, TaskSpec]) -> Column:
    if task not in task_info:
        return Column(task, task)
    return Column(task, task_info[task].title, task_info[task].section)


# --------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Condition:
    """What the numbers of one panel have in common."""

    backbone: str
    budget: str
    protocol: str
    phantom: bool
    corpus: str | None  # None: no corpus; "": as the layout's columns say
    label_fraction: float | None  # None: as the layout's columns say

    def joins(self, other: Condition) -> bool:
        """Whether rows of this condition, which used no corpus, belong into the panel of `other` as well."""
        return self.corpus is None and replace(other, corpus=None) == self


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
        return math.sqrt(_variance(self.values)) if self.n > 1 else None

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


@dataclass(frozen=True)
class PanelRow:
    method: str
    label: str
    section: str
    note: str  # letter of its footnote
    cells: tuple[Cell, ...]  # one per head


@dataclass(frozen=True)
class Panel:
    """All rows under one condition."""

    title: str
    header: str
    condition: Condition
    corpora: tuple[str, ...]
    seeds: tuple[int, ...]
    n: int  # usual number of repetitions
    selections: tuple[str, ...]
    heads: tuple[Head, ...]
    rows: tuple[PanelRow, ...]
    notes: tuple[str, ...]
    against: bool  # published numbers beside ours


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    source: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Gap:
    """One record without a number."""

    status: str
    label: str
    column: str
    seed: int
    reason: str


@dataclass
class _Ledger:
    """What a panel's records said that is no number."""

    gaps: list[_Gap] = field(default_factory=list)
    superseded: list[Record] = field(default_factory=list)  # outdated, a newer one stands in the cell


@dataclass(frozen=True)
class _Context:
    """What `build` was asked for."""

    layout: Layout
    published: Published | None
    current_sources: Mapping[str, Mapping[str, str]]
    footnotes: Mapping[str, str]

    def stale(self, record: Record) -> bool:
        made_by = record.get("sources") or {}
        return any(
            kind in made_by and made_by[kind] != known.get(str(record[kind]), made_by[kind])
            for kind, known in self.current_sources.items()
        )


def build(
    records: Iterable[Record],
    layout: Layout,
    *,
    published: Published | None = None,
    current_sources: Mapping[str, Mapping[str, str]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Table:
    """The table of `records` that `layout` describes, one panel per condition.

    `current_sources` holds the digests of today's source, {"method": {name: digest}, "task": {...}}: numbers of another
    source are marked. `notes` holds a footnote per method. BenchError where one task comes with two metrics.
    """
    context = _Context(layout, published, current_sources or {}, notes or {})
    usable, remarks = _usable(list(records))
    shown, outside = _inside(usable, layout)
    panels = [_panel(condition, group, context) for condition, group in _split(shown, layout)]
    if not panels:
        remarks.append("No records to show: `bench run` makes them.")
    elif published is not None:
        remarks += _source_notes(published)
    return Table(layout.name, layout.title, layout.source, tuple(panels), tuple(remarks + outside))


def _lacks(record: Record) -> bool:
    return record.get("schema") != SCHEMA or any(name not in record for name in _REQUIRED)


def _usable(records: list[Record]) -> tuple[list[Record], list[str]]:
    notes = []
    foreign = Counter(str(record.get("schema")) for record in records if record.get("schema") != SCHEMA)
    for schema, number in sorted(foreign.items()):
        notes.append(f"{_count(number, 'record')} with schema {schema} left out: this version reads schema {SCHEMA}.")
    ours = [record for record in records if record.get("schema") == SCHEMA]
    usable = [record for record in ours if not _lacks(record)]
    if len(usable) < len(ours):
        broken = next(record for record in ours if _lacks(record))
        lost = ", ".join(name for name in _REQUIRED if name not in broken)
        count = _count(len(ours) - len(usable), "record")
        notes.append(f"{count} left out: fields are missing (the first lacks {lost}).")
    return usable, notes


def _inside(records: list[Record], layout: Layout) -> tuple[list[Record], list[str]]:
    """The records that a closed layout shows, and a sentence on every kind that it does not."""
    if layout.open:
        return records, []
    columns = {column.task: column for column in layout.columns}
    methods = {row.method for row in layout.rows}
    shown: list[Record] = []
    outside: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        column = columns.get(record["task"])
        if column is None:
            outside["tasks"][str(record["task"])] += 1
        elif record["method"] not in methods:
            outside["methods"][str(record["method"])] += 1
        elif column.label_fractions and _fraction(record) not in column.label_fractions:
            outside["label fractions"][f"{column.label} at {_percent(_fraction(record))}"] += 1
        else:
            shown.append(record)
    sentences = [
        f"{_count(sum(names.values()), 'record')} of {what} that this layout does not show: {', '.join(sorted(names))}."
        for what, names in outside.items()
    ]
    return shown, sentences


def _fraction(record: Record) -> float:
    return round(float(record["label_fraction"]), 6)


def _condition(record: Record, column: Column | None) -> Condition:
    corpus = record.get("corpus") or None
    as_printed = column is not None and corpus is not None and corpus == column.corpus
    return Condition(
        backbone=str(record["backbone"]),
        budget=str(record["budget"]),
        protocol=str(record["protocol"]),
        phantom=bool(record.get("phantom")),
        corpus="" if as_printed else corpus,
        label_fraction=None if column is not None and column.label_fractions else _fraction(record),
    )


def _split(records: list[Record], layout: Layout) -> list[tuple[Condition, list[Record]]]:
    """Records by condition, in a fixed order. What used no corpus joins every panel that agrees otherwise."""
    columns = {column.task: column for column in layout.columns}
    groups: dict[Condition, list[Record]] = defaultdict(list)
    for record in records:
        groups[_condition(record, columns.get(record["task"]))].append(record)
    loose = {condition: groups.pop(condition) for condition in list(groups) if condition.corpus is None}
    for condition, group in loose.items():
        hosts = [host for host in groups if condition.joins(host)]
        tasks = {host: {record["task"] for record in groups[host]} for host in hosts}
        for host in hosts:
            groups[host] = groups[host] + [r for r in group if not layout.open or r["task"] in tasks[host]]
        homed = set().union(*tasks.values()) if layout.open else {record["task"] for record in group if hosts}
        alone = [record for record in group if record["task"] not in homed]
        if alone:
            groups[condition] = alone
    return sorted(groups.items(), key=lambda item: _sort_key(item[0]))


def _sort_key(condition: Condition) -> tuple[Any, ...]:
    return (
        condition.phantom,
        condition.backbone,
        condition.budget,
        condition.protocol,
        condition.corpus is None,
        condition.corpus or "",
        -(condition.label_fraction or 0.0),
    )


# --------------------------------------------------------------------------------------------------------------- panel


def _panel(condition: Condition, records: list[Record], context: _Context) -> Panel:
    layout, ledger = context.layout, _Ledger()
    columns = _panel_columns(records, layout)
    rows = _panel_rows(records, layout)
    metrics = _metrics(records)
    grid = _grid(rows, columns, records, metrics, context, ledger)
    heads, cells = _with_means(columns, grid, metrics, layout)
    cells, unmarked = _mark_best(heads, cells)
    if context.published is not None:
        cells = [
            [_compare(cell, row, head, condition, context) for cell, head in zip(line, heads, strict=True)]
            for row, line in zip(rows, cells, strict=True)
        ]
    letters = _letters(rows, context.footnotes)
    noted = [letters.get(context.footnotes.get(row.method, ""), "") for row in rows]
    usual = Counter(cell.n for line in cells for cell in line if cell.n)
    panel = Panel(
        title=_title(layout, condition, context.published),
        header="",
        condition=condition,
        corpora=_corpora(columns, records),
        seeds=tuple(sorted({int(record["seed"]) for record in records})),
        n=max(usual, key=lambda n: (usual[n], n)) if usual else 0,
        selections=_selections(records),
        heads=tuple(heads),
        rows=tuple(
            PanelRow(row.method, row.label, row.section, note, tuple(line))
            for row, note, line in zip(rows, noted, cells, strict=True)
        ),
        notes=(),
        against=context.published is not None,
    )
    panel = replace(panel, header=_header(panel, columns, records))
    return replace(panel, notes=tuple(_notes(panel, ledger, unmarked, letters, context)))


def _grid(
    rows: list[Row],
    columns: list[Column],
    records: list[Record],
    metrics: Mapping[str, tuple[str, bool]],
    context: _Context,
    ledger: _Ledger,
) -> list[list[Cell]]:
    """One cell per row and task; what is no number goes into the ledger."""
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        found[str(record["method"]), str(record["label"]), str(record["task"])].append(record)
    grid = []
    for row in rows:
        label = _record_label(row, context.layout)
        line = []
        for column in columns:
            unit = _unit(metrics.get(column.task, ("", True))[0])
            needed = max(1, len(column.label_fractions))
            line.append(_cell(found[row.method, label, column.task], row, column, needed, unit, context, ledger))
        grid.append(line)
    return grid


def _corpora(columns: list[Column], records: list[Record]) -> tuple[str, ...]:
    """In the order of the columns they were used for."""
    place = {column.task: index for index, column in enumerate(columns)}
    used = {(place[str(record["task"])], str(record["corpus"])) for record in records if record.get("corpus")}
    return tuple(dict.fromkeys(corpus for _, corpus in sorted(used)))


def _selections(records: list[Record]) -> tuple[str, ...]:
    held = {str(record["selection"]) for record in records if record["status"] == DONE and record.get("selection")}
    return tuple(sorted(held))


def _panel_columns(records: list[Record], layout: Layout) -> list[Column]:
    if not layout.open:
        return list(layout.columns)
    held = {str(record["task"]) for record in records}
    known = {column.task for column in layout.columns}
    return [column for column in layout.columns if column.task in held] + [
        Column(task, task) for task in sorted(held - known)
    ]


def _panel_rows(records: list[Record], layout: Layout) -> list[Row]:
    """The layout's rows; a label with changed hyper-parameters gets a row of its own below its method's."""
    held = sorted({(str(record["method"]), str(record["label"])) for record in records})
    if layout.open:
        kept = [row for row in layout.rows if (row.method, row.label) in held]
        known = {(row.method, row.label) for row in kept}
        return kept + [Row(method, label) for method, label in held if (method, label) not in known]
    rows = []
    for row in layout.rows:
        variants = [label for method, label in held if method == row.method and label != method]
        rows += [row] + [Row(row.method, label, row.section) for label in variants]
    return rows


def _record_label(row: Row, layout: Layout) -> str:
    """The label that records of a row carry: a closed layout prints another one for a method as it is."""
    return row.method if not layout.open and row in layout.rows else row.label


def _metrics(records: list[Record]) -> dict[str, tuple[str, bool]]:
    """Metric and direction of every task that has a number."""
    found: dict[str, tuple[str, bool]] = {}
    for record in records:
        if record["status"] != DONE:
            continue
        metric = (str(record.get("metric")), bool(record.get("higher_is_better", True)))
        if found.setdefault(str(record["task"]), metric) != metric:
            names = sorted({metric[0], found[record["task"]][0]})
            raise BenchError(
                f"records of task {record['task']!r} disagree on the metric or its direction ({', '.join(names)}); "
                "move the outdated ones out of the records folder"
            )
    return found


def _unit(metric: str) -> str:
    """What a table prints a metric in: lengths as they are, shares in percent."""
    return "mm" if metric.endswith("_mm") else "%"


def _cell(
    records: list[Record],
    row: Row,
    column: Column,
    needed: int,
    unit: str,
    context: _Context,
    ledger: _Ledger,
) -> Cell:
    """All repetitions of one row on one task, each the mean over `needed` label fractions."""
    repetitions: dict[tuple[int, int], dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        repetitions[int(record["seed"]), int(record.get("fold") or 0)][_fraction(record)].append(record)
    values, seeds, used, failures, most = [], [], [], [], 0
    for (seed, _), by_fraction in sorted(repetitions.items()):
        good: list[Record] = []
        for _, candidates in sorted(by_fraction.items()):
            record, status, reason = _one(candidates, context, ledger)
            if status == DONE:
                good.append(record)
            else:
                failures.append(_Gap(status, row.label, column.label, seed, reason))
        most = max(most, len(good))
        if len(good) == needed:
            values.append(statistics.fmean(float(record["score"]) for record in good) * _SCALES[unit])
            seeds.append(seed)
            used += good
    ledger.gaps += failures
    if values:
        stale = any(context.stale(record) for record in used)
        return Cell(unit=unit, values=tuple(values), seeds=tuple(seeds), mean=statistics.fmean(values), stale=stale)
    if most:
        return Cell(PART, detail=f"{most}/{needed}")
    if failures:
        return Cell(min((gap.status for gap in failures), key=_severity))
    return Cell(UNAVAILABLE if (row.method, column.task) in context.layout.unavailable else MISSING)


def _severity(status: str) -> int:
    order = list(MARKS)
    return order.index(status) if status in order else 0


def _one(candidates: list[Record], context: _Context, ledger: _Ledger) -> tuple[Record, str, str]:
    """The record that counts, its status and reason, among those with one label, task, seed and condition."""
    different = list({str(record["cell_key"]): record for record in candidates}.values())
    if len(different) > 1:
        current = [record for record in different if not context.stale(record)]
        if len(current) != 1:
            keys = ", ".join(sorted(str(record["cell_key"])[:12] for record in different))
            return different[0], "ambiguous", f"keys {keys}; move all but one out of the records folder"
        ledger.superseded += [record for record in different if record is not current[0]]
        different = current
    record = different[0]
    status = str(record["status"]).replace("_", " ")
    score = record.get("score")
    if status == DONE and not (isinstance(score, int | float) and math.isfinite(score)):
        return record, "no score", f"the record says {score!r}"
    return record, status, _first_line(str(record.get("reason") or "no reason recorded"))


def _first_line(reason: str) -> str:
    line = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason recorded")
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1].rstrip() + "…"


# --------------------------------------------------------------------------------------------------- means, tie groups


def _with_means(
    columns: list[Column], grid: list[list[Cell]], metrics: Mapping[str, tuple[str, bool]], layout: Layout
) -> tuple[list[Head], list[list[Cell]]]:
    """Every mean stands behind the last of its tasks."""
    place = {column.task: index for index, column in enumerate(columns)}
    behind: dict[int, list[Mean]] = defaultdict(list)
    for mean in layout.means:
        tasks = tuple(task for task in mean.tasks if task in place)
        if len(tasks) > 1:
            behind[max(place[task] for task in tasks)].append(replace(mean, tasks=tasks))
    heads: list[Head] = []
    cells: list[list[Cell]] = [[] for _ in grid]
    for index, column in enumerate(columns):
        metric, up = metrics.get(column.task, ("", True))
        heads.append(Head(column.task, column.label, column.section, (column.task,), metric, up, False))
        for line, source in zip(cells, grid, strict=True):
            line.append(source[index])
        for mean in behind[index]:
            parts = [[source[place[task]] for task in mean.tasks] for source in grid]
            head, averages = _mean_column(mean, parts, [metrics.get(task) for task in mean.tasks])
            heads.append(head)
            for line, cell in zip(cells, averages, strict=True):
                line.append(cell)
    return heads, cells


def _mean_column(
    mean: Mean, parts: list[list[Cell]], metrics: list[tuple[str, bool] | None]
) -> tuple[Head, list[Cell]]:
    """Mean over those tasks that every row with any of them has; `parts` (rows, tasks)."""
    compared = [line for line in parts if any(cell.mean is not None for cell in line)]
    common = [i for i in range(len(mean.tasks)) if compared and all(line[i].mean is not None for line in compared)]
    kinds = {metrics[i] for i in common}
    metric, up = next(iter(kinds), None) or ("", True)
    whole = len(common) == len(mean.tasks) or not compared
    label = mean.label if whole else f"{mean.label} ({len(common)}/{len(mean.tasks)})"
    head = Head(mean.name, label, "", tuple(mean.tasks[i] for i in common), metric, up, True)
    cells = []
    for line in parts:
        if all(cell.mean is None for cell in line):
            cells.append(Cell(line[0].status, detail=line[0].detail))
        elif not common:
            cells.append(Cell("no common task"))
        elif len(kinds) > 1:
            cells.append(Cell("mixed metrics"))
        else:
            cells.append(_average([line[i] for i in common]))
    return head, cells


def _average(cells: list[Cell]) -> Cell:
    """The mean over tasks of each repetition; where tasks have different seeds, of the means, without a spread."""
    mean = statistics.fmean(cell.mean for cell in cells if cell.mean is not None)
    same = len({cell.seeds for cell in cells}) == 1
    values = tuple(map(statistics.fmean, zip(*(cell.values for cell in cells), strict=True))) if same else ()
    stale = any(cell.stale for cell in cells)
    return Cell(unit=cells[0].unit, values=values, seeds=cells[0].seeds if same else (), mean=mean, stale=stale)


def _mark_best(heads: list[Head], cells: list[list[Cell]]) -> tuple[list[list[Cell]], list[str]]:
    """Marks each column's tie group; names the columns where too few repetitions forbid it."""
    marked = [list(line) for line in cells]
    unmarked = []
    for index, head in enumerate(heads):
        scored = [row for row, line in enumerate(cells) if line[index].mean is not None]
        if len(scored) < 2:
            continue
        if any(cells[row][index].n < 2 for row in scored):
            unmarked.append(head.label)
            continue
        column = {row: cells[row][index] for row in scored}
        for row in _tie_group(column, head.higher_is_better):
            marked[row][index] = replace(column[row], best=True)
    return marked, unmarked


def _tie_group(column: Mapping[int, Cell], higher_is_better: bool) -> list[int]:
    sign = 1.0 if higher_is_better else -1.0
    best = max(column, key=lambda row: sign * (column[row].mean or 0.0))
    return [row for row, cell in column.items() if welch(column[best].values, cell.values) >= SIGNIFICANCE]


def _variance(sample: Sequence[float]) -> float:
    """Unbiased variance of at least two values; `statistics.variance` is exact but far slower."""
    mean = statistics.fmean(sample)
    return math.fsum((value - mean) ** 2 for value in sample) / (len(sample) - 1)


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test on two samples of at least two values.

    Where neither varies it is 1 for equal means and 0 for others.
    """
    difference = statistics.fmean(first) - statistics.fmean(second)
    errors = [_variance(sample) / len(sample) for sample in (first, second)]
    if sum(errors) < 1e-24:
        return 1.0 if abs(difference) < 1e-9 else 0.0
    from scipy.special import stdtr

    freedom = sum(errors) ** 2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, (first, second), strict=True))
    return float(2.0 * stdtr(freedom, -abs(difference) / math.sqrt(sum(errors))))


# ----------------------------------------------------------------------------------------------------------- published


def _compare(cell: Cell, row: Row, head: Head, condition: Condition, context: _Context) -> Cell:
    """The cell with the published number beside it; a row with changed hyper-parameters has none."""
    assert context.published is not None
    printed = context.published.layout
    key = (row.method, head.name)
    changed = _record_label(row, context.layout) != row.method
    if changed or key not in context.published.values:
        return cell
    value = context.published.values[key]
    if value is None:
        return replace(cell, published_status=UNAVAILABLE)
    whole = not head.is_mean or any(m.name == head.name and len(m.tasks) == len(head.tasks) for m in printed.means)
    if cell.mean is None or not whole or cell.unit != printed.unit:
        return replace(cell, published=value, published_status=DONE)
    difference = cell.mean - value
    comparable = not condition.phantom and not _departures(condition, head.tasks, printed)
    inside = abs(difference) <= printed.tolerance if printed.tolerance is not None and comparable else None
    return replace(cell, published=value, published_status=DONE, difference=difference, inside=inside)


def _departures(condition: Condition, tasks: Iterable[str], printed: Layout) -> list[str]:
    """Where the condition of our numbers on some tasks is not the publication's."""
    words = [
        f"{name} {getattr(condition, name)} instead of {value}"
        for name, value in printed.conditions.items()
        if getattr(condition, name) != value
    ]
    columns = {column.task: column for column in printed.columns}
    for column in (columns[task] for task in tasks if task in columns):
        if condition.corpus and column.corpus and condition.corpus != column.corpus:
            words.append(f"corpus {condition.corpus} instead of {column.corpus}")
        theirs = column.label_fractions
        if condition.label_fraction is not None and theirs and theirs != (condition.label_fraction,):
            words.append(f"{_percent(condition.label_fraction)} of the labels instead of {_shares(theirs)}")
    return list(dict.fromkeys(words))


def _shares(fractions: Sequence[float]) -> str:
    if len(fractions) == 1:
        return _percent(fractions[0])
    return f"the mean over {', '.join(f'{100 * fraction:g}' for fraction in fractions)} %"


def _difference_notes(panel: Panel, context: _Context) -> list[str]:
    """What a reader must know before comparing this panel with the published numbers."""
    assert context.published is not None
    printed = context.published.layout
    compared = [
        head.name for at, head in enumerate(panel.heads) if any(r.cells[at].published_status for r in panel.rows)
    ]
    departures = _departures(panel.condition, compared, printed)
    if panel.condition.phantom:
        departures.insert(0, "phantoms (generated images) instead of the publication's data")
    notes = [f"Not the same experiment: ours ran with {'; '.join(departures)}."] if departures else []
    if any(cell.inside is not None for row in panel.rows for cell in row.cells):
        notes.append(f"≈ within ±{printed.tolerance:g} of the published number.")
    return notes


def _source_notes(published: Published) -> list[str]:
    source = f"published: {published.layout.source}; in brackets our number minus the published one."
    return [source, *published.layout.notes]


# --------------------------------------------------------------------------------------------------------------- words


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _title(layout: Layout, condition: Condition, published: Published | None) -> str:
    parts = [layout.title]
    if condition.phantom:
        parts.append(PHANTOM)
    if published is not None:
        parts.append(f"beside the published numbers{', which are from real data' if condition.phantom else ''}")
    return " · ".join(parts)


def _header(panel: Panel, columns: list[Column], records: list[Record]) -> str:
    condition = panel.condition
    parts = [
        _corpus_words(panel, columns, records),
        condition.backbone,
        condition.budget,
        condition.protocol,
        _fraction_words(condition, columns, {str(record["task"]) for record in records}),
        f"{'seed' if len(panel.seeds) == 1 else 'seeds'} {_ranges(panel.seeds)}",
    ]
    return " · ".join(parts)


def _corpus_words(panel: Panel, columns: list[Column], records: list[Record]) -> str:
    suffix = " (phantom)" if panel.condition.phantom else ""
    if not panel.corpora:
        return "no corpus" + suffix
    if len(panel.corpora) == 1:
        return f"corpus {panel.corpora[0]}{suffix}"
    named = []
    for corpus in panel.corpora:
        tasks = {record["task"] for record in records if record.get("corpus") == corpus}
        named.append(f"{corpus} for {_span([column for column in columns if column.task in tasks], columns)}")
    return f"corpus {', '.join(named)}{suffix}"


def _fraction_words(condition: Condition, columns: list[Column], held: set[str]) -> str:
    if condition.label_fraction is not None:
        return f"{_percent(condition.label_fraction)} labels"
    used = [column for column in columns if column.label_fractions and column.task in held]
    kinds = list(dict.fromkeys(column.label_fractions for column in used))
    words = []
    for fractions in kinds:
        text = f"{_shares(fractions)} of the labels" if len(fractions) > 1 else f"{_percent(fractions[0])} labels"
        named = [column for column in used if column.label_fractions == fractions]
        words.append(text if len(kinds) == 1 else f"{_span(named, columns)}: {text}")
    return "; ".join(words)


def _span(part: list[Column], columns: list[Column]) -> str:
    """`A to D` where the columns are neighbours, else all of their labels."""
    places = [columns.index(column) for column in part]
    if len(part) > 2 and places == list(range(places[0], places[0] + len(part))):
        return f"{part[0].label} to {part[-1].label}"
    return ", ".join(column.label for column in part)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _letters(rows: list[Row], footnotes: Mapping[str, str]) -> dict[str, str]:
    """A letter for every different footnote, in the order of the rows."""
    used = dict.fromkeys(footnotes[row.method] for row in rows if footnotes.get(row.method))
    return {note: chr(ord("a") + index) if index < 26 else f"a{index}" for index, note in enumerate(used)}


def _notes(
    panel: Panel,
    ledger: _Ledger,
    unmarked: list[str],
    letters: Mapping[str, str],
    context: _Context,
) -> list[str]:
    notes = _metric_notes(panel)
    if panel.n > 1:
        notes.append(f"mean ± standard deviation over n = {panel.n} seeds; another n stands with the number.")
    notes += _mean_notes(panel, context.layout)
    notes += _best_notes(panel, unmarked)
    notes += [f"selected by: {selection}" for selection in panel.selections]
    notes += _gap_notes(panel, ledger.gaps)
    if any(cell.stale for row in panel.rows for cell in row.cells):
        notes.append("‡ made by another version of the method's or the task's source than the present one.")
    if ledger.superseded:
        notes.append(
            f"{_count(len(ledger.superseded), 'record')} of older source left out: newer ones stand in their place."
        )
    if context.published is not None:
        notes += _difference_notes(panel, context)
    return notes + [f"{letter}: {note}" for note, letter in letters.items()]


def _metric_notes(panel: Panel) -> list[str]:
    kinds: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for head in panel.heads:
        if head.metric and not head.is_mean:
            kinds[head.metric, head.higher_is_better].append(head.label)
    notes = []
    for (metric, up), labels in kinds.items():
        unit = {"%": "percent", "mm": "mm"}[_unit(metric)]
        where = f" ({', '.join(labels)})" if len(kinds) > 1 else ""
        name = metric.removesuffix("_mm").replace("_", " ").upper()
        notes.append(f"{name} in {unit}, {'higher' if up else 'lower'} is better{where}.")
    return notes


def _mean_notes(panel: Panel, layout: Layout) -> list[str]:
    """Which tasks are left of a mean that not every row can have whole."""
    labels = {head.name: head.label for head in panel.heads}
    whole = {mean.name: sum(task in labels for task in mean.tasks) for mean in layout.means}
    return [
        f"{head.label}: over {', '.join(labels[task] for task in head.tasks)}, which every compared row has."
        for head in panel.heads
        if head.is_mean and 0 < len(head.tasks) < whole[head.name]
    ]


def _best_notes(panel: Panel, unmarked: list[str]) -> list[str]:
    notes = []
    if any(cell.best for row in panel.rows for cell in row.cells):
        notes.append(
            "* best of its column, with every row that does not differ significantly from it "
            f"(Welch's t-test over seeds, p ≥ {SIGNIFICANCE:g})."
        )
    if unmarked and panel.n < 2:
        notes.append(
            "Nothing is marked best: with one seed no difference can be told from chance (`--seeds 3` or more)."
        )
    elif unmarked:
        notes.append(f"No best is marked under {', '.join(unmarked)}: some row has fewer than two seeds in common.")
    return notes


def _gap_notes(panel: Panel, gaps: list[_Gap]) -> list[str]:
    """One line per mark used and per reason."""
    cells = [cell for row in panel.rows for cell in row.cells]
    shown = {cell.status for cell in cells} - {DONE}
    if any(cell.published_status == UNAVAILABLE for cell in cells):
        shown.add(UNAVAILABLE)
    reasons: dict[str, dict[str, list[_Gap]]] = defaultdict(lambda: defaultdict(list))
    for gap in gaps:
        reasons[gap.status][gap.reason].append(gap)
    notes = []
    for status in sorted(shown | set(reasons), key=lambda s: (_severity(s), s)):
        notes += _reason_notes(status, reasons.get(status, {}))
    return notes


def _reason_notes(status: str, reasons: Mapping[str, list[_Gap]]) -> list[str]:
    mark = MARKS.get(status, status)
    name = mark if mark == status else f"{mark} = {status}"
    if status == PART:
        return ["k/m = only k of the m label fractions are there that this column averages."]
    if status in MEANINGS:
        name += f", {MEANINGS[status]}"
    if not reasons:
        return [f"{name}."]
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    notes = [f"{name}: {reason} ({_where(gaps)})" for reason, gaps in ordered[:_REASONS_SHOWN]]
    left = len(ordered) - _REASONS_SHOWN
    return notes + ([f"{name}: {_count(left, 'more reason')}, see `bench status`."] if left > 0 else [])


def _where(gaps: list[_Gap]) -> str:
    first = f"{gaps[0].label} on {gaps[0].column}, seed {gaps[0].seed}"
    return first if len(gaps) == 1 else f"{first}, and {len(gaps) - 1} more"


# -------------------------------------------------------------------------------------------------------------- render


def render(table: Table, format: str, *, width: int | None = None, colour: bool | None = None) -> str:
    """The table as text, md, csv, latex or json; ends with a line break.

    Text is folded to `width` columns and coloured where `colour`; by default as the terminal is, plain and 120 columns
    wide where there is none. The other formats depend on the table alone.
    """
    if format == "text":
        terminal = sys.stdout.isatty()
        columns = shutil.get_terminal_size((120, 24)).columns if terminal else 120
        return _text(table, max(width or columns, 40), terminal if colour is None else colour)
    writers: dict[str, Callable[[Table], str]] = {"md": _markdown, "csv": _csv, "latex": _latex, "json": _json}
    if format not in writers:
        hint = suggest(format, FORMATS) or f"; use {', '.join(FORMATS)}"
        raise BenchError(f"no table format is called {format!r}{hint}")
    return writers[format](table)


def _number(cell: Cell, usual: int, plus_minus: str = " ± ") -> str:
    """`74.32 ± 0.51`, with n where it is not the usual one."""
    if cell.mean is None:
        return cell.mark
    spread = f"{plus_minus}{cell.std:.2f}" if cell.std is not None else ""
    counted = f" (n={cell.n})" if cell.n and cell.n != usual else ""
    return f"{cell.mean:.2f}{spread}{counted}"


def _published_words(cell: Cell, close: str = " ≈") -> str:
    """`81.09 (-6.77)`, with a sign for inside the tolerance."""
    if cell.published is None:
        return MARKS[UNAVAILABLE] if cell.published_status == UNAVAILABLE else ""
    if cell.difference is None:
        return f"{cell.published:.2f}"
    return f"{cell.published:.2f} ({cell.difference:+.2f}{close if cell.inside else ''})"


def _has_published(row: PanelRow) -> bool:
    return any(cell.published_status for cell in row.cells)


def _by_section(panel: Panel) -> list[tuple[str, list[PanelRow]]]:
    sections: list[tuple[str, list[PanelRow]]] = []
    for row in panel.rows:
        if not sections or sections[-1][0] != row.section:
            sections.append((row.section, []))
        sections[-1][1].append(row)
    return sections


def _section_runs(heads: Sequence[Head]) -> list[tuple[str, int]]:
    """Neighbouring columns of one section, with their number."""
    runs: list[tuple[str, int]] = []
    for head in heads:
        if runs and runs[-1][0] == head.section:
            runs[-1] = (head.section, runs[-1][1] + 1)
        else:
            runs.append((head.section, 1))
    return runs


# ---------------------------------------------------------------------------------------------------------------- text


def _text(table: Table, width: int, colour: bool) -> str:
    lines: list[Line] = []
    for panel in table.panels:
        lines += [[(piece, "bold")] for piece in textwrap.wrap(panel.title, width)]
        lines += [[(piece, "cyan")] for piece in textwrap.wrap(panel.header, width)]
        widths = _column_widths(panel)
        for block in _blocks(panel, widths, width):
            lines += [[], *_text_block(panel, block, [widths[index] for index in block])]
        lines += [[], *_text_notes(panel.notes, width), []]
    lines += _text_notes(table.notes, width)
    while lines and not lines[-1]:
        lines.pop()
    plain = ["".join(text for text, _ in line).rstrip() for line in lines]
    return "\n".join(_coloured(lines, width) if colour else plain) + "\n"


def _coloured(lines: list[Line], width: int) -> list[str]:
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=max(width, 400), highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text.assemble(*line), overflow="ignore", no_wrap=True, crop=False)
    return stream.getvalue().rstrip("\n").split("\n")


def _text_notes(notes: Iterable[str], width: int) -> list[Line]:
    return [[(piece, "dim")] for note in notes for piece in textwrap.wrap(note, width, subsequent_indent="  ")]


def _wide(text: str) -> int:
    """Columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool = False) -> str:
    blank = " " * (width - _wide(text))
    return blank + text if right else text + blank


def _suffix(cell: Cell) -> str:
    return ("*" if cell.best else "") + ("‡" if cell.stale else "")


def _row_name(row: PanelRow) -> str:
    return f"{row.label} [{row.note}]" if row.note else row.label


def _column_widths(panel: Panel) -> list[tuple[int, int]]:
    """Width of every column's numbers and of the marks behind them."""
    shares = [
        math.ceil((_wide(section) + 2 - 2 * (length - 1)) / length) if section else 0
        for section, length in _section_runs(panel.heads)
        for _ in range(length)
    ]
    widths = []
    for index, (head, share) in enumerate(zip(panel.heads, shares, strict=True)):
        cells = [row.cells[index] for row in panel.rows]
        marks = max((len(_suffix(cell)) for cell in cells), default=0)
        texts = [_number(cell, panel.n) for cell in cells] + [_published_words(cell) for cell in cells]
        widths.append((max([*map(_wide, texts), _wide(head.label) - marks, share - marks]), marks))
    return widths


def _blocks(panel: Panel, widths: list[tuple[int, int]], width: int) -> list[list[int]]:
    """Columns that fit beside each other; sections stay whole where that takes no more blocks."""
    room = width - _name_width(panel)
    sizes = [sum(pair) + 2 for pair in widths]
    runs: list[list[int]] = []
    for _, length in _section_runs(panel.heads):
        start = sum(map(len, runs))
        runs.append(list(range(start, start + length)))
    whole = [p for run in runs for p in ([run] if sum(sizes[i] for i in run) <= room else [[i] for i in run])]
    tight = _pack([[index] for index in range(len(sizes))], sizes, room)
    loose = _pack(whole, sizes, room)
    return loose if len(loose) <= len(tight) else tight


def _pack(pieces: list[list[int]], sizes: list[int], room: int) -> list[list[int]]:
    blocks: list[list[int]] = []
    for piece in pieces:
        if blocks and sum(sizes[index] for index in blocks[-1] + piece) <= room:
            blocks[-1] += piece
        else:
            blocks.append(list(piece))
    return blocks


def _name_width(panel: Panel) -> int:
    names = [_row_name(row) for row in panel.rows] + ["method"] + (["  published"] if panel.against else [])
    return max(map(_wide, names))


def _text_block(panel: Panel, block: list[int], sizes: list[tuple[int, int]]) -> list[Line]:
    names = _name_width(panel)
    heads = [panel.heads[index] for index in block]
    total = names + sum(a + b + 2 for a, b in sizes)
    lines = _text_sections(heads, sizes, names)
    labels = "".join("  " + _pad(head.label, a + b, right=True) for head, (a, b) in zip(heads, sizes, strict=True))
    lines += [[(_pad("method", names) + labels, "bold")], [("─" * total, "dim")]]
    for section, rows in _by_section(panel):
        if section:
            lines.append([(section, "italic cyan")])
        for row in rows:
            lines.append(_text_row(row, block, sizes, names, panel))
            if _has_published(row):
                texts = [_published_words(row.cells[index]) for index in block]
                pieces = [f"  {_pad(text, a, right=True)}{' ' * b}" for text, (a, b) in zip(texts, sizes, strict=True)]
                lines.append([(_pad("  published", names) + "".join(pieces), "dim")])
    return lines


def _text_row(row: PanelRow, block: list[int], sizes: list[tuple[int, int]], names: int, panel: Panel) -> Line:
    line: Line = [(_pad(_row_name(row), names), "")]
    for index, (numbers, marks) in zip(block, sizes, strict=True):
        cell = row.cells[index]
        style = "bold green" if cell.best else "" if cell.mean is not None else "yellow"
        line += [("  ", ""), (_pad(_number(cell, panel.n), numbers, right=True) + _pad(_suffix(cell), marks), style)]
    return line


def _text_sections(heads: list[Head], sizes: list[tuple[int, int]], names: int) -> list[Line]:
    """Names of the columns' sections over a rule; shortened where the columns are narrower."""
    if not any(head.section for head in heads):
        return []
    title, start = " " * names, 0
    for section, length in _section_runs(heads):
        room = sum(a + b + 2 for a, b in sizes[start : start + length]) - 2
        name = section if len(section) <= room else section[: room - 1] + "…"
        title += "  " + (f" {name} ".center(room, "─")[:room] if name and len(name) < room - 1 else name.ljust(room))
        start += length
    return [[(title, "italic cyan")]]


# ------------------------------------------------------------------------------------------------------------ markdown


def _markdown(table: Table) -> str:
    parts = []
    for panel in table.panels:
        lines = [f"### {_md(panel.title)}", "", f"**{_md(panel.header)}**", ""]
        sections = [(name, n) for name, n in _section_runs(panel.heads) if name]
        if sections:
            lines += [f"Columns: {_md(_section_words(panel))}.", ""]
        lines.append("| method | " + " | ".join(_md(head.label) for head in panel.heads) + " |")
        lines.append("|:--" + "|--:" * len(panel.heads) + "|")
        for section, rows in _by_section(panel):
            if section:
                lines.append(f"| *{_md(section)}* |" + " |" * len(panel.heads))
            lines += [line for row in rows for line in _markdown_rows(row, panel)]
        lines += ["", *(f"- {_md(note)}" for note in panel.notes)]
        parts.append("\n".join(lines))
    if table.notes:
        parts.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _markdown_rows(row: PanelRow, panel: Panel) -> list[str]:
    note = f"<sup>{row.note}</sup>" if row.note else ""
    cells = [_md_cell(cell, panel.n) for cell in row.cells]
    lines = [f"| {_md(row.label)}{note} | {' | '.join(cells)} |"]
    if _has_published(row):
        lines.append(f"| *published* | {' | '.join(_published_words(cell) for cell in row.cells)} |")
    return lines


def _md_cell(cell: Cell, usual: int) -> str:
    text = _md(_number(cell, usual))
    return (f"**{text}**\\*" if cell.best else text) + ("‡" if cell.stale else "")


def _md(text: str) -> str:
    for character in "\\*|<":
        text = text.replace(character, "\\" + character)
    return text


def _section_words(panel: Panel) -> str:
    words, start = [], 0
    for section, length in _section_runs(panel.heads):
        labels = ", ".join(head.label for head in panel.heads[start : start + length])
        start += length
        if section:
            words.append(f"{section} ({labels})")
    return "; ".join(words)


# --------------------------------------------------------------------------------------------------------------- latex


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "·": r"$\cdot$",
    "‡": r"\ddag{}",
    "≥": r"$\geq$",
    "*": "{*}",  # a star or bracket after a line break would be read as its argument
    "[": "{[}",
    "`": r"\textasciigrave{}",
    "…": r"\ldots{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text).replace("--", "-{}-").replace("–", "--")


def _latex(table: Table) -> str:
    lines = ["% needs \\usepackage{booktabs,adjustbox}"]
    for panel in table.panels:
        lines += _latex_panel(panel)
    lines += [f"\\par\\noindent{{\\footnotesize {_tex(note)}}}" for note in table.notes]
    return "\n".join(lines) + "\n"


def _latex_panel(panel: Panel) -> list[str]:
    width = len(panel.heads) + 1
    lines = ["\\begin{table*}[t]", "\\centering", f"\\caption{{{_tex(panel.title)}. {_tex(panel.header)}.}}"]
    lines += [
        "\\begin{adjustbox}{max width=\\textwidth}",
        f"\\begin{{tabular}}{{l{'r' * len(panel.heads)}}}",
        "\\toprule",
    ]
    lines += _latex_sections(panel.heads)
    lines += [" & ".join(["Method", *(_tex(head.label) for head in panel.heads)]) + r" \\", "\\midrule"]
    for number, (section, rows) in enumerate(_by_section(panel)):
        if number:
            lines.append("\\midrule")
        if section:
            lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{_tex(section)}}}}} \\\\")
        lines += [line for row in rows for line in _latex_rows(row, panel)]
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{adjustbox}",
        "\\par\\smallskip",
        "\\begin{minipage}{\\textwidth}\\footnotesize",
    ]
    lines += [f"{_tex(note)}\\\\" for note in panel.notes]
    return [*lines, "\\end{minipage}", "\\end{table*}"]


def _latex_sections(heads: Sequence[Head]) -> list[str]:
    if not any(head.section for head in heads):
        return []
    cells, rules, start = [""], [], 2
    for section, length in _section_runs(heads):
        cells.append(f"\\multicolumn{{{length}}}{{c}}{{{_tex(section)}}}")
        if section:
            rules.append(f"\\cmidrule(lr){{{start}-{start + length - 1}}}")
        start += length
    return [" & ".join(cells).lstrip() + r" \\", "".join(rules)]


def _latex_rows(row: PanelRow, panel: Panel) -> list[str]:
    note = f"\\textsuperscript{{{row.note}}}" if row.note else ""
    cells = []
    for cell in row.cells:
        text = _tex(_number(cell, panel.n))
        cells.append((f"\\textbf{{{text}}}*" if cell.best else text) + ("\\ddag{}" if cell.stale else ""))
    lines = [" & ".join([_tex(row.label) + note, *cells]) + r" \\"]
    if _has_published(row):
        texts = [_tex(_published_words(cell)) for cell in row.cells]
        lines.append(" & ".join(["\\quad published", *texts]) + r" \\")
    return lines


# ----------------------------------------------------------------------------------------------------------- csv, json


def _csv(table: Table) -> str:
    """One line per row and panel; a task's number, spread, n, status and marks beside each other. Percent and mm."""
    against = any(panel.against for panel in table.panels)
    parts = ("", "_std", "_n", "_status", "_marks") + (("_published", "_difference") if against else ())
    names = list(dict.fromkeys(head.name for panel in table.panels for head in panel.heads))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    first = ["phantom", "backbone", "budget", "protocol", "corpus", "label_fraction", "seeds", "selection"]
    writer.writerow([*first, "section", "method", "label", *(name + part for name in names for part in parts)])
    for panel in table.panels:
        condition = _condition_values(panel)
        for row in panel.rows:
            cells = {head.name: cell for head, cell in zip(panel.heads, row.cells, strict=True)}
            values = [value for name in names for value in _csv_cell(cells.get(name), against)]
            writer.writerow([*condition, row.section, row.method, row.label, *values])
    return stream.getvalue()


def _condition_values(panel: Panel) -> list[str]:
    condition = panel.condition
    return [
        "phantom" if condition.phantom else "data",
        condition.backbone,
        condition.budget,
        condition.protocol,
        " ".join(panel.corpora),
        "as the layout says" if condition.label_fraction is None else f"{condition.label_fraction:g}",
        _ranges(panel.seeds),
        " | ".join(panel.selections),
    ]


def _two(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _cell_marks(cell: Cell) -> list[str]:
    return [name for name, given in (("best", cell.best), ("stale", cell.stale)) if given]


def _csv_cell(cell: Cell | None, against: bool) -> list[str]:
    if cell is None:
        return [""] * (7 if against else 5)
    status = f"{cell.status} ({cell.detail})" if cell.detail else cell.status
    number = "" if cell.mean is not None and not cell.n else str(cell.n)
    values = [_two(cell.mean), _two(cell.std), number, status, " ".join(_cell_marks(cell))]
    return [*values, _two(cell.published), _two(cell.difference)] if against else values


def _json(table: Table) -> str:
    data = {
        "layout": table.name,
        "title": table.title,
        "source": table.source,
        "panels": [_json_panel(panel) for panel in table.panels],
        "notes": list(table.notes),
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_panel(panel: Panel) -> dict[str, Any]:
    condition = panel.condition
    return {
        "title": panel.title,
        "header": panel.header,
        "phantom": condition.phantom,
        "backbone": condition.backbone,
        "budget": condition.budget,
        "protocol": condition.protocol,
        "corpora": list(panel.corpora),
        "label_fraction": condition.label_fraction,
        "seeds": list(panel.seeds),
        "selection": list(panel.selections),
        "columns": [
            {
                "name": head.name,
                "label": head.label,
                "section": head.section,
                "tasks": list(head.tasks),
                "mean": head.is_mean,
                "metric": head.metric,
                "unit": _unit(head.metric),
                "higher_is_better": head.higher_is_better,
            }
            for head in panel.heads
        ],
        "rows": [_json_row(row, panel) for row in panel.rows],
        "notes": list(panel.notes),
    }


def _json_row(row: PanelRow, panel: Panel) -> dict[str, Any]:
    cells = {head.name: _json_cell(cell, panel.against) for head, cell in zip(panel.heads, row.cells, strict=True)}
    return {"method": row.method, "label": row.label, "section": row.section, "cells": cells}


def _json_cell(cell: Cell, against: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "status": cell.status,
        "mean": _six(cell.mean),
        "std": _six(cell.std),
        "n": cell.n,
        "seeds": list(cell.seeds),
        "best": cell.best,
        "stale": cell.stale,
    }
    if cell.detail:
        values["detail"] = cell.detail
    if against:
        values |= {"published": cell.published, "published_status": cell.published_status}
        values |= {"difference": _six(cell.difference), "inside_tolerance": cell.inside}
    return values


def _six(number: float | None) -> float | None:
    return None if number is None else round(number, 6)
