"""Which records a table shows, which of them share a panel, and which rows and columns they fill."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.spec import BenchError, suggest
from bench.table import notes as words
from bench.table.layout import Column, Layout, Record, Row
from bench.table.panel import FIRST, Condition, Measure, measure_of

FINGERPRINT = 7  # characters of it that tell two corpora of one name apart


def fraction_of(record: Record) -> float:
    return round(float(record["label_fraction"]), 6)


def dropped_of(record: Record) -> int:
    """Images that were left out of a record's corpus because a labelled dataset holds them too."""
    return int(record.get("dropped") or 0)


def inside(records: list[Record], layout: Layout) -> tuple[list[Record], list[str]]:
    """The records that a closed layout shows, and a sentence on every kind that it does not."""
    if layout.open:
        return records, []
    columns: dict[str, list[Column]] = defaultdict(list)
    for column in layout.columns:
        columns[column.task].append(column)
    methods = {row.method for row in layout.rows}
    backbones = {row.backbone for row in layout.rows}
    shown: list[Record] = []
    outside: dict[str, list[str]] = defaultdict(list)
    for record in records:
        of_task, share = columns.get(str(record["task"]), []), fraction_of(record)
        if not of_task:
            outside["tasks"].append(str(record["task"]))
        elif record["method"] not in methods:
            outside["methods"].append(str(record["method"]))
        elif not any(column.takes(share) for column in of_task):
            outside["label fractions"].append(f"{of_task[0].label} at {words.percent(share)}")
        elif "" not in backbones and record["backbone"] not in backbones:
            outside["backbones"].append(str(record["backbone"]))
        else:
            shown.append(record)
    return shown, [words.not_shown(what, names) for what, names in outside.items()]


# -------------------------------------------------------------------------------------------------------------- metrics


def by_metric(records: list[Record], metric: str) -> tuple[list[Record], list[str]]:
    """The records with that one of their metrics as their score, and a sentence on the tasks that do not have it.

    BenchError where no record has it.
    """
    known = {name for record in records for name in _scores(record)}
    if metric not in known:
        near = suggest(metric, known) or f"; records have {', '.join(sorted(known)) or 'none'}"
        raise BenchError(f"no record has the metric {metric!r}{near}")
    tasks = {record["task"] for record in records if metric in _scores(record)}
    others = [str(record["task"]) for record in records if record["task"] not in tasks]
    lost = [f"{words.count(len(others), 'record')} of tasks without {metric}: {', '.join(sorted(set(others)))}."]
    kept = list[Record]()
    for record in records:
        if record["task"] in tasks:
            kept.append({**record, "metric": metric, "score": _scores(record).get(metric)})
    return kept, lost if others else []


def _scores(record: Record) -> Mapping[str, Any]:
    """Metric -> value of a record; one of schema 1 has its score alone."""
    found: Mapping[str, Any] = record.get("scores") or {}
    return found or ({str(record["metric"]): record["score"]} if record.get("score") is not None else {})


def by_measure(records: list[Record], measures: Mapping[str, Measure]) -> list[tuple[Measure, list[Record]]]:
    """Records by what their numbers are, in the order in which that comes; a task without a number joins the first."""
    groups: dict[Measure, list[Record]] = {}
    loose: list[Record] = []
    for record in records:
        measure = measures.get(str(record["task"]))
        if measure is None:
            loose.append(record)
        else:
            groups.setdefault(measure, []).append(record)
    for record in loose:
        home = next((item for item in groups if item.metric == record.get("metric")), None)
        groups.setdefault(home or measure_of(record), []).append(record)
    return sorted(groups.items(), key=lambda item: (item[0] != FIRST, item[0].metric))


def folds_of(records: list[Record]) -> int:
    """Into how many folds the cases of all these records' tasks are dealt out; 0 where they are not, or not alike."""
    found = {int(record.get("folds") or 0) for record in records}
    return found.pop() if len(found) == 1 else 0


# --------------------------------------------------------------------------------------------------------------- panels


Contents = Mapping[tuple[str, bool], Mapping[int, set[str]]]


def _contents(records: list[Record]) -> Contents:
    """(Corpus, whether a phantom) -> images left out of it -> fingerprints of what records then pretrained on."""
    found: dict[tuple[str, bool], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if record.get("corpus"):
            place = found[str(record["corpus"]), bool(record.get("phantom"))]
            place[dropped_of(record)].add(str(record.get("corpus_fingerprint") or ""))
    return found


def _condition(record: Record, column: Column | None, layout: Layout, contents: Contents) -> Condition:
    corpus, content, as_printed = record.get("corpus") or None, "", False
    if corpus is not None:
        variants, dropped = contents[str(corpus), bool(record.get("phantom"))], dropped_of(record)
        as_printed = column is not None and corpus == column.corpus and len(variants) == 1
        if len(variants[dropped]) > 1:
            content = str(record.get("corpus_fingerprint") or "unknown")[:FINGERPRINT]
        if len(variants) > 1 and dropped:
            corpus = f"{corpus} less {words.count(dropped, 'leaked image')}"
    return Condition(
        backbone="" if layout.own_backbones else str(record["backbone"]),
        budget=str(record["budget"]),
        protocol=str(record["protocol"]),
        phantom=bool(record.get("phantom")),
        corpus="" if as_printed else corpus,
        label_fraction=None if column is not None and column.label_fractions else fraction_of(record),
        content=content,
    )


def split(records: list[Record], layout: Layout) -> list[tuple[Condition, list[Record]]]:
    """Records by condition, in a fixed order. What used no corpus joins every panel that agrees otherwise."""
    contents = _contents(records)
    groups: dict[Condition, list[Record]] = defaultdict(list)
    for record in records:
        column = next(
            (item for item in layout.columns if item.task == record["task"] and item.takes(fraction_of(record))), None
        )
        groups[_condition(record, column, layout, contents)].append(record)
    for loose in [condition for condition in groups if condition.corpus is None]:
        group, homed = groups.pop(loose), set()
        for host in [host for host in groups if _joins(loose, host, groups[host])]:
            tasks = {record["task"] for record in (groups[host] if layout.open else group)}
            groups[host] = groups[host] + [record for record in group if record["task"] in tasks]
            homed |= tasks
        if alone := [record for record in group if record["task"] not in homed]:
            groups[loose] = alone

    def place(condition: Condition) -> tuple[Any, ...]:
        names = (condition.phantom, condition.backbone, condition.budget, condition.protocol)
        return (
            *names,
            condition.corpus is None,
            condition.corpus or "",
            condition.content,
            -(condition.label_fraction or 0.0),
        )

    return sorted(groups.items(), key=lambda item: place(item[0]))


def _joins(loose: Condition, host: Condition, records: list[Record]) -> bool:
    """Whether what used no corpus was judged as the host's records were: budgets may differ in pretraining alone."""
    judged = {str(record.get("transfer_budget", record["budget"])) for record in records}
    return (
        host.corpus is not None
        and replace(host, corpus=None, content="", budget=loose.budget) == loose
        and judged == {loose.budget}
    )


# ----------------------------------------------------------------------------------------------------- rows and columns


@dataclass(frozen=True)
class Line:
    """A row as it is printed, and the label of the records that stand in it; None: those that the row describes."""

    row: Row
    label: str | None

    def holds(self, record: Record) -> bool:
        if self.label is None:
            return self.row.answers(record)
        same = record["method"] == self.row.method and record["label"] == self.label
        return same and self.row.backbone in ("", record["backbone"])


def lines(records: list[Record], layout: Layout, unavailable: Mapping[tuple[str, str], str]) -> list[Line]:
    """Rows as printed.

    A closed layout prints its own rows as they are; below them, hyper-parameters that it does not name get their own.
    An open one prints what records hold, and what is not available on their tasks.
    """
    held = sorted({(str(record["method"]), str(record["label"])) for record in records})
    if layout.open:
        tasks = {record["task"] for record in records}
        absent = {method for method, task in unavailable if task in tasks} - {method for method, _ in held}
        known = [(row.method, row.label) for row in layout.rows if (row.method, row.label) in held]
        more = [(method, method) for method in sorted(absent)]
        return [Line(Row(method, label), label) for method, label in dict.fromkeys([*known, *held, *more])]
    strange = [record for record in records if not any(row.answers(record) for row in layout.rows)]
    found: list[Line] = []
    for at, row in enumerate(layout.rows):
        found.append(Line(row, None))
        last = all(later.method != row.method for later in layout.rows[at + 1 :])
        labels = {(str(r["label"]), str(r["backbone"])) for r in strange if last and r["method"] == row.method}
        for label, backbone in sorted(labels):
            own = backbone if layout.own_backbones else ""
            printed = f"{label}, {own}" if own else label
            found.append(Line(Row(row.method, printed, row.section, backbone=own), label))
    return found


def shown_columns(records: list[Record], layout: Layout) -> list[Column]:
    held = {str(record["task"]) for record in records}
    if not layout.open:
        return list(layout.columns)
    known = [column for column in layout.columns if column.task in held]
    return known + [Column(task, task) for task in sorted(held - {column.task for column in known})]
