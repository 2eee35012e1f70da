"""Records to table: what is shown, which records share a panel, and the number or gap of every cell."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.spec import DONE, BenchError
from bench.table import notes as words
from bench.table.layout import Column, Layout, Mean, Record, Row, is_usable
from bench.table.panel import (
    MISSING,
    PART,
    SIGNIFICANCE,
    UNAVAILABLE,
    Cell,
    Condition,
    Gap,
    Head,
    Panel,
    PanelRow,
    Table,
    average,
    unit_of,
    variance,
)

_SCALES = {"%": 100.0, "mm": 1.0}  # from a record's score to what is printed

Metric = tuple[str, bool]  # name, whether higher is better


@dataclass
class _Job:
    """What `build` was asked for, and what one panel's records said that is no number."""

    layout: Layout
    published: Layout | None
    current_sources: Mapping[str, Mapping[str, str]]
    footnotes: Mapping[str, str]
    gaps: list[Gap] = field(default_factory=list)
    superseded: int = 0  # records of older source whose place a newer one took

    def is_stale(self, record: Record) -> bool:
        made_by = record.get("sources") or {}
        return any(
            kind in made_by and made_by[kind] != known.get(str(record[kind]), made_by[kind])
            for kind, known in self.current_sources.items()
        )


def build(
    records: Iterable[Record],
    layout: Layout,
    *,
    published: Layout | None = None,
    current_sources: Mapping[str, Mapping[str, str]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Table:
    """The table of `records` that `layout` describes, one panel per condition.

    `published` is the layout whose published numbers stand beside ours. `current_sources` holds the digests of today's
    source, {"method": {name: digest}, "task": {...}}: numbers of another source are marked. `notes` holds a footnote
    per method. BenchError where one task comes with two metrics.
    """
    records = list(records)
    usable = [record for record in records if is_usable(record)]
    shown, outside = _inside(usable, layout)
    panels = [
        _panel(condition, group, _Job(layout, published, current_sources or {}, notes or {}))
        for condition, group in _split(shown, layout)
    ]
    remarks = words.left_out(records) if len(usable) < len(records) else []
    if not panels:
        remarks.append("No records to show: `bench run` makes them.")
    elif published is not None:
        remarks += words.source(published)
    return Table(layout.name, layout.title, layout.source, tuple(panels), tuple(remarks + outside))


def _inside(records: list[Record], layout: Layout) -> tuple[list[Record], list[str]]:
    """The records that a closed layout shows, and a sentence on every kind that it does not."""
    if layout.open:
        return records, []
    columns = {column.task: column for column in layout.columns}
    methods = {row.method for row in layout.rows}
    shown: list[Record] = []
    outside: dict[str, list[str]] = defaultdict(list)
    for record in records:
        column = columns.get(record["task"])
        if column is None:
            outside["tasks"].append(str(record["task"]))
        elif record["method"] not in methods:
            outside["methods"].append(str(record["method"]))
        elif column.label_fractions and _fraction(record) not in column.label_fractions:
            outside["label fractions"].append(f"{column.label} at {words.percent(_fraction(record))}")
        else:
            shown.append(record)
    return shown, [words.not_shown(what, names) for what, names in outside.items()]


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
        return (*names, condition.corpus is None, condition.corpus or "", -(condition.label_fraction or 0.0))

    return sorted(groups.items(), key=lambda item: place(item[0]))


def _joins(loose: Condition, host: Condition, records: list[Record]) -> bool:
    """Whether what used no corpus was judged as the host's records were: budgets may differ in pretraining alone."""
    judged = {str(record.get("transfer_budget", record["budget"])) for record in records}
    return (
        host.corpus is not None
        and replace(host, corpus=None, budget=loose.budget) == loose
        and judged == {loose.budget}
    )


def _panel(condition: Condition, records: list[Record], job: _Job) -> Panel:
    rows, columns = _rows(records, job.layout), _columns(records, job.layout)
    heads, grid = _with_means(*_grid(rows, columns, records, job), job.layout)  # grid (heads, rows)
    grid = [_best_marked(cells, head) for head, cells in zip(heads, grid, strict=True)]
    if job.published is not None:
        grid = [
            [_compared(cell, row, head, condition, job) for cell, row in zip(cells, rows, strict=True)]
            for head, cells in zip(heads, grid, strict=True)
        ]
    numbers = words.footnote_numbers([row.method for row, _ in rows], job.footnotes)
    usual = Counter(cell.n for cells in grid for cell in cells if cell.n)
    corpus_of = {str(record["task"]): str(record["corpus"]) for record in records if record.get("corpus")}
    panel = Panel(
        condition=condition,
        corpora=tuple(dict.fromkeys(corpus_of[column.task] for column in columns if column.task in corpus_of)),
        seeds=tuple(sorted({int(record["seed"]) for record in records})),
        n=max(usual, key=lambda n: (usual[n], n)) if usual else 0,
        selections=tuple(sorted({str(r["selection"]) for r in records if r["status"] == DONE and r.get("selection")})),
        heads=tuple(heads),
        rows=tuple(
            PanelRow(row.method, row.label, row.section, numbers.get(job.footnotes.get(row.method, ""), ""), cells)
            for (row, _), cells in zip(rows, zip(*grid, strict=True), strict=True)
        ),
        against=job.published is not None,
    )
    tasks = {record["task"] for record in records}
    held = [column for column in columns if column.task in tasks]
    return replace(
        panel,
        title=words.title(job.layout.title, panel),
        header=words.header(panel, columns, held, corpus_of),
        notes=tuple(words.notes(panel, job.layout, job.published, job.gaps, job.superseded, numbers)),
    )


def _columns(records: list[Record], layout: Layout) -> list[Column]:
    if not layout.open:
        return list(layout.columns)
    held = {str(record["task"]) for record in records}
    known = [column for column in layout.columns if column.task in held]
    return known + [Column(task, task) for task in sorted(held - {column.task for column in known})]


def _rows(records: list[Record], layout: Layout) -> list[tuple[Row, str]]:
    """Rows as printed, each with the label of its records.

    A closed layout prints its own label for a method as it is; below it, changed hyper-parameters get their own row.
    """
    held = sorted({(str(record["method"]), str(record["label"])) for record in records})
    if layout.open:
        known = [(row.method, row.label) for row in layout.rows if (row.method, row.label) in held]
        return [(Row(method, label), label) for method, label in dict.fromkeys(known + held)]
    rows = []
    for row in layout.rows:
        changed = [label for method, label in held if method == row.method and label != method]
        rows += [(row, row.method)] + [(Row(row.method, label, row.section), label) for label in changed]
    return rows


def _grid(
    rows: list[tuple[Row, str]], columns: list[Column], records: list[Record], job: _Job
) -> tuple[list[Head], list[list[Cell]]]:
    """Heads and cells (columns, rows) of the tasks alone; what is no number goes into the job's gaps."""
    metrics = _metrics(records)
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        found[str(record["method"]), str(record["label"]), str(record["task"])].append(record)
    heads = [Head(c.task, c.label, c.section, (c.task,), *metrics.get(c.task, ("", True)), False) for c in columns]
    grid = [
        [_cell(found[row.method, label, column.task], row, column, unit_of(head.metric), job) for row, label in rows]
        for column, head in zip(columns, heads, strict=True)
    ]
    return heads, grid


def _metrics(records: list[Record]) -> dict[str, Metric]:
    """Metric and direction of every task that has a number."""
    found: dict[str, Metric] = {}
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


def _cell(records: list[Record], row: Row, column: Column, unit: str, job: _Job) -> Cell:
    """All repetitions of one row on one task, each the mean over the column's label fractions."""
    repetitions: dict[tuple[int, int], dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        repetitions[int(record["seed"]), int(record.get("fold") or 0)][_fraction(record)].append(record)
    needed, most = max(1, len(column.label_fractions)), 0
    values, seeds, used, failures = [], [], [], []
    for (seed, _), by_fraction in sorted(repetitions.items()):
        good: list[Record] = []
        for _, candidates in sorted(by_fraction.items()):
            record, status, reason = _one(candidates, job)
            if status == DONE:
                good.append(record)
            else:
                failures.append(Gap(status, row.label, column.label, seed, reason))
        most = max(most, len(good))
        if len(good) == needed:
            values.append(average([float(record["score"]) for record in good]) * _SCALES[unit])
            seeds.append(seed)
            used += good
    job.gaps += failures
    if values:
        stale = any(map(job.is_stale, used))
        return Cell(unit=unit, values=tuple(values), seeds=tuple(seeds), mean=average(values), stale=stale)
    if most:
        return Cell(PART, detail=f"{most}/{needed}")
    if failures:
        return Cell(min((gap.status for gap in failures), key=words.gravity))
    return Cell(UNAVAILABLE if job.layout.values.get((row.method, column.task), 0.0) is None else MISSING)


def _one(candidates: list[Record], job: _Job) -> tuple[Record, str, str]:
    """The record that counts, its status and reason, among those with one label, task, seed and condition."""
    different = list({str(record["cell_key"]): record for record in candidates}.values())
    if len(different) > 1:
        current = [record for record in different if not job.is_stale(record)]
        if len(current) != 1:
            keys = ", ".join(sorted(str(record["cell_key"])[:12] for record in different))
            return different[0], "ambiguous", f"keys {keys}; move all but one out of the records folder"
        job.superseded += len(different) - 1
        different = current
    record = different[0]
    status = str(record["status"]).replace("_", " ")
    score = record.get("score")
    if status == DONE and not (isinstance(score, int | float) and math.isfinite(score)):
        return record, "no score", f"the record says {score!r}"
    return record, status, words.first_line(str(record.get("reason") or ""))


def _with_means(heads: list[Head], grid: list[list[Cell]], layout: Layout) -> tuple[list[Head], list[list[Cell]]]:
    """The same with every mean behind the last of its tasks."""
    place = {head.name: index for index, head in enumerate(heads)}
    behind: dict[int, list[tuple[Head, list[Cell]]]] = defaultdict(list)
    for mean in layout.means:
        parts = [place[task] for task in mean.tasks if task in place]
        if len(parts) > 1:
            behind[max(parts)].append(_mean_column(mean, [heads[at] for at in parts], [grid[at] for at in parts]))
    columns = [
        column for at, pair in enumerate(zip(heads, grid, strict=True)) for column in (pair, *behind.get(at, ()))
    ]
    return [head for head, _ in columns], [cells for _, cells in columns]


def _mean_column(mean: Mean, heads: list[Head], grid: list[list[Cell]]) -> tuple[Head, list[Cell]]:
    """Mean over those tasks that every row with any of them has; `grid` (tasks, rows)."""
    rows = list(zip(*grid, strict=True))
    compared = [cells for cells in rows if any(cell.mean is not None for cell in cells)]
    common = [at for at in range(len(heads)) if compared and all(cells[at].mean is not None for cells in compared)]
    kinds = {(heads[at].metric, heads[at].higher_is_better) for at in common}
    label = mean.label if len(common) == len(heads) or not compared else f"{mean.label} ({len(common)}/{len(heads)})"
    metric, up = next(iter(kinds), ("", True))
    head = Head(mean.name, label, "", tuple(heads[at].name for at in common), metric, up, True)
    return head, [_mean_cell(cells, common, mixed=len(kinds) > 1) for cells in rows]


def _mean_cell(cells: Sequence[Cell], common: list[int], mixed: bool) -> Cell:
    """The mean over tasks of each repetition; where tasks have different seeds, of the means, without a spread."""
    if all(cell.mean is None for cell in cells):
        return Cell(cells[0].status, detail=cells[0].detail)
    if mixed or not common:
        return Cell("mixed metrics" if mixed else "no common task")
    parts = [cells[at] for at in common]
    same = len({cell.seeds for cell in parts}) == 1
    return Cell(
        unit=parts[0].unit,
        values=tuple(map(average, zip(*(cell.values for cell in parts), strict=True))) if same else (),
        seeds=parts[0].seeds if same else (),
        mean=average([cell.mean for cell in parts if cell.mean is not None]),
        stale=any(cell.stale for cell in parts),
    )


def _best_marked(cells: list[Cell], head: Head) -> list[Cell]:
    """A column with its tie group marked, unless it has one number only or some number without repetitions."""
    scored = [cell for cell in cells if cell.mean is not None]
    if len(scored) < 2 or any(cell.n < 2 for cell in scored):
        return cells
    best = (max if head.higher_is_better else min)(scored, key=lambda cell: cell.mean or 0.0)
    return [
        replace(cell, best=cell.mean is not None and welch(best.values, cell.values) >= SIGNIFICANCE) for cell in cells
    ]


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test on two samples of at least two values.

    Where neither varies it is 1 for equal means and 0 for others.
    """
    difference = average(first) - average(second)
    errors = [variance(sample) / len(sample) for sample in (first, second)]
    if sum(errors) < 1e-24:
        return 1.0 if abs(difference) < 1e-9 else 0.0
    from scipy.special import stdtr

    freedom = sum(errors) ** 2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, (first, second), strict=True))
    return float(2.0 * stdtr(freedom, -abs(difference) / math.sqrt(sum(errors))))


def _compared(cell: Cell, row: tuple[Row, str], head: Head, condition: Condition, job: _Job) -> Cell:
    """The cell with the published number beside it; a row with changed hyper-parameters has none."""
    assert job.published is not None
    printed, key = job.published, (row[0].method, head.name)
    if row[1] != row[0].method or key not in printed.values:
        return cell
    value = printed.values[key]
    if value is None:
        return replace(cell, published_status=UNAVAILABLE)
    cell = replace(cell, published=value, published_status=DONE)
    whole = {mean.name: len(mean.tasks) for mean in printed.means}.get(head.name, 1)
    if cell.mean is None or len(head.tasks) != whole or cell.unit != printed.unit:
        return cell
    difference = cell.mean - value
    comparable = not condition.phantom and not words.departures(condition, head.tasks, printed)
    inside = abs(difference) <= printed.tolerance if printed.tolerance is not None and comparable else None
    return replace(cell, difference=difference, inside=inside)
