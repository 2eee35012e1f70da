"""Layouts: what a table shows and in which order, read from TOML, with the published numbers from the CSV beside it."""

from __future__ import annotations

import csv
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.registry import suggest
from bench.spec import SCHEMA, BenchError, TaskSpec

Record = Mapping[str, Any]
REQUIRED = ("method", "label", "task", "backbone", "budget", "protocol", "label_fraction", "seed", "status", "cell_key")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Column:
    """One task. Where `corpus` or `label_fractions` are given, only records made so stand under it."""

    task: str
    label: str
    section: str = ""
    corpus: str = ""  # the corpus of the publication; another one makes a panel of its own
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
    columns: tuple[Column, ...] = ()
    means: tuple[Mean, ...] = ()
    rows: tuple[Row, ...] = ()
    open: bool = False  # rows and columns are those that records hold
    conditions: Mapping[str, str] = field(default_factory=dict)  # of the publication: backbone, budget, protocol
    unit: str = "%"  # of the published numbers
    tolerance: float | None = None  # largest difference from a published number that counts as agreement, in `unit`
    notes: tuple[str, ...] = ()  # on the publication
    values: Mapping[tuple[str, str], float | None] = field(default_factory=dict)
    """Published numbers by (method, column), in `unit`; None where the publication prints none."""


def load_layouts() -> dict[str, Path]:
    """Every layout by name: the TOML files beside the published numbers of the checkout or the installed package."""
    for folder in (_PACKAGE.parent / "results" / "published", _PACKAGE / "_published"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def load_layout(name: str) -> Layout:
    """The layout called `name`; BenchError where there is none or its file is wrong."""
    layouts = load_layouts()
    if name not in layouts:
        raise BenchError(f"no table layout is called {name!r}{suggest(name, layouts) or '; see `bench list tables`'}")
    return read_layout(layouts[name])


def load_published(name: str) -> Layout:
    """The layout called `name`, which must have published numbers; BenchError where it has none."""
    layout = load_layout(name)
    if not layout.values:
        raise BenchError(f"layout {name!r} has no published numbers: {name}.csv is not beside {name}.toml or is empty")
    return layout


def read_layout(path: Path) -> Layout:
    """The layout in a TOML file with the numbers of the CSV beside it; unknown and missing fields are errors."""
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
    _check(layout, path)
    numbers = path.with_suffix(".csv")
    return replace(layout, values=_read_numbers(numbers)) if numbers.is_file() else layout


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _check(layout: Layout, path: Path) -> None:
    names = Counter([column.task for column in layout.columns] + [mean.name for mean in layout.means])
    for name, count in names.items():
        if count > 1:
            raise BenchError(f"{path.name} names the column {name!r} twice")
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


def is_usable(record: Record) -> bool:
    """Whether a record is of this schema and names all that decides where it stands."""
    return record.get("schema") == SCHEMA and all(name in record for name in REQUIRED)


def default_layout(records: Iterable[Record], task_info: Mapping[str, TaskSpec], method_order: Sequence[str]) -> Layout:
    """Methods by tasks with a mean per group: whatever the records hold.

    Tasks stand by group, then section, then in the order of `task_info`; rows by `method_order`, then label.
    """
    held = [record for record in records if is_usable(record)]
    group_of = {str(record["task"]): str(record.get("group") or "") for record in held}
    group_of |= {task: task_info[task].groups[0] for task in group_of if task in task_info and task_info[task].groups}
    groups: dict[str, dict[str, list[Column]]] = defaultdict(lambda: defaultdict(list))
    for task in _ordered(group_of, list(task_info)):
        known = task_info.get(task)
        column = Column(task, known.title, known.section) if known else Column(task, task)
        groups[group_of[task]][column.section].append(column)
    columns = {group: [c for part in sections.values() for c in part] for group, sections in groups.items()}
    means = [
        Mean(f"mean_{group}".rstrip("_"), f"mean {group if len(columns) > 1 else ''}".rstrip(), _tasks(part))
        for group, part in columns.items()
        if len(part) > 1
    ]
    labels = {(str(record["method"]), str(record["label"])) for record in held}
    place = {method: index for index, method in enumerate(_ordered({method for method, _ in labels}, method_order))}
    rows = sorted(labels, key=lambda row: (place[row[0]], row[1] != row[0], row[1]))
    return Layout(
        name="all",
        title="Methods by tasks",
        source="",
        columns=tuple(column for part in columns.values() for column in part),
        means=tuple(means),
        rows=tuple(Row(method, label) for method, label in rows),
        open=True,
    )


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """As in `order`; what that lacks follows by name."""
    place = {name: index for index, name in enumerate(order)}
    return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def _tasks(columns: Iterable[Column]) -> tuple[str, ...]:
    return tuple(column.task for column in columns)
