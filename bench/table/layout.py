"""Layouts: what a table shows and in which order, read from TOML, with the published numbers from the CSV beside it."""

from __future__ import annotations

import csv
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.registry import layout_files
from bench.spec import SCHEMAS, BenchError, TaskSpec, Value, label_of, suggest

Record = Mapping[str, Any]
REQUIRED = ("method", "label", "task", "backbone", "budget", "protocol", "label_fraction", "seed", "status", "cell_key")
_SHARED = ("columns", "means", "conditions", "unit", "tolerance")  # taken from the layout that another is `like`


@dataclass(frozen=True)
class Column:
    """One task. Where `corpus` or `label_fractions` are given, only records made so stand under it."""

    task: str
    label: str
    section: str = ""
    corpus: str = ""  # the corpus of the publication; another one makes a panel of its own
    label_fractions: tuple[float, ...] = ()  # several: the column is the mean over all of them
    name: str = ""  # of its numbers; needed where a task has several columns

    @property
    def key(self) -> str:
        return self.name or self.task

    def takes(self, fraction: float) -> bool:
        """Whether records of its task with this label fraction stand under it."""
        return not self.label_fractions or fraction in self.label_fractions


@dataclass(frozen=True)
class Mean:
    """A column that averages the tasks which all compared rows have."""

    name: str
    label: str
    tasks: tuple[str, ...]  # keys of columns


@dataclass(frozen=True)
class Row:
    """One method, where given with changed hyper-parameters or on a backbone of its own; `label` is printed."""

    method: str
    label: str
    section: str = ""
    name: str = ""  # of its numbers; needed where a method has several rows
    set: Mapping[str, Value] = field(default_factory=dict)  # hyper-parameters; a default may be named too
    backbone: str = ""  # empty: that of its panel

    @property
    def key(self) -> str:
        return self.name or self.method

    def answers(self, record: Record) -> bool:
        """Whether a record is of this method with these hyper-parameters, and on this backbone."""
        if record["method"] != self.method or self.backbone not in ("", record["backbone"]):
            return False
        used = record.get("hparams")
        if not isinstance(used, Mapping):
            return bool(record["label"] == label_of(self.method, self.set))
        agrees = all(used.get(name) == value for name, value in self.set.items())
        return agrees and record["label"] in self._labels

    @cached_property
    def _labels(self) -> frozenset[str]:
        """What records may be labelled, whichever of `set` are defaults."""
        parts = (part for count in range(len(self.set) + 1) for part in combinations(self.set.items(), count))
        return frozenset(label_of(self.method, dict(part)) for part in parts)


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
    counted: str = ""  # "parameters": its numbers are counted, not taken from records
    conditions: Mapping[str, str] = field(default_factory=dict)  # of the publication: backbone, budget, protocol
    unit: str = "%"  # of the published numbers
    tolerance: float | None = None  # largest difference from a published number that counts as agreement, in `unit`
    notes: tuple[str, ...] = ()  # on the publication
    values: Mapping[tuple[str, str], float | None] = field(default_factory=dict)
    """Published numbers by key of row and column, in `unit`; None where the publication says that there is none."""

    @property
    def own_backbones(self) -> bool:
        """Whether rows say their backbones, so that one panel holds several."""
        return any(row.backbone for row in self.rows)


def load_layouts() -> dict[str, Path]:
    """Every layout by name: the TOML files beside the published numbers of the checkout or the installed package."""
    return layout_files()


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
    """The layout in a TOML file with the numbers of the CSV beside it; unknown and missing fields are errors.

    `like = "NAME"` takes the columns, means and conditions that the file does not have from the layout NAME beside it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is not valid TOML: {error}") from None
    model = data.pop("like", None)
    try:
        for name, kind in (("columns", Column), ("means", Mean), ("rows", Row)):
            data[name] = tuple(kind(**_frozen(entry)) for entry in data.get(name, ()))
        layout = Layout(name=path.stem, **_frozen(data))
    except TypeError as error:
        raise BenchError(f"{path.name}: {str(error).replace('.__init__()', '')}") from None
    if model is not None:
        base = read_layout(path.with_name(f"{model}.toml"))
        layout = replace(layout, **{name: getattr(base, name) for name in _SHARED if not data.get(name)})
    _check(layout, path)
    numbers = path.with_suffix(".csv")
    return replace(layout, values=_read_numbers(numbers)) if numbers.is_file() else layout


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _check(layout: Layout, path: Path) -> None:
    names = Counter([column.key for column in layout.columns] + [mean.name for mean in layout.means])
    if layout.counted not in ("", "parameters"):
        raise BenchError(f"{path.name}: only parameters can be counted, not {layout.counted!r}")
    for kind, counts in (("column", names), ("row", Counter(row.key for row in layout.rows))):
        for name, count in counts.items():
            if count > 1:
                raise BenchError(f"{path.name} names the {kind} {name!r} twice; give each a name of its own")
    for mean in layout.means:
        for task in mean.tasks:
            if task not in names:
                raise BenchError(f"{path.name}: the mean {mean.name!r} uses {task!r}, which is not one of the columns")


def _read_numbers(path: Path) -> dict[tuple[str, str], float | None]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    values: dict[tuple[str, str], float | None] = {}
    for row in rows:
        name = row.pop("method", None) or row.pop("row", None) or ""
        for column, text in row.items():
            try:
                if text != "":
                    values[name, column] = None if text == "-" else float(text)
            except (TypeError, ValueError):
                raise BenchError(f"{path.name}: {name}, {column}: {text!r} is neither a number nor '-'") from None
    return values


def is_usable(record: Record) -> bool:
    """Whether a record is of this schema and names all that decides where it stands."""
    return record.get("schema") in SCHEMAS and all(name in record for name in REQUIRED)


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
