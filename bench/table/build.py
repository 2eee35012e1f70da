"""Records to table: what is shown, which records share a panel, and the number or gap of every cell."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.registry.sources import Declared, is_current
from bench.spec import DONE, BenchError
from bench.table import doubt
from bench.table import notes as words
from bench.table.counts import count_parameters
from bench.table.layout import Column, Layout, Mean, Record, is_usable
from bench.table.panel import (
    FOLDS,
    LEAKS,
    MISSING,
    PART,
    UNAVAILABLE,
    Cell,
    Condition,
    Gap,
    Head,
    Measure,
    Panel,
    PanelRow,
    Table,
    average,
    measure_of,
)
from bench.table.select import (
    Line,
    by_measure,
    by_metric,
    folds_of,
    fraction_of,
    inside,
    lines,
    shown_columns,
    split,
)


@dataclass
class _Job:
    """What `build` was asked for, and what one panel's records said that is no number."""

    layout: Layout
    published: Layout | None
    current_sources: Mapping[str, Mapping[str, Declared]]
    footnotes: Mapping[str, str]
    unavailable: Mapping[tuple[str, str], str]
    gaps: list[Gap] = field(default_factory=list)
    superseded: int = 0  # records of older source whose place a newer one took
    leaks: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)  # (kind, text) -> columns
    intervals: bool = True  # instead of standard deviations
    partial: frozenset[str] = frozenset()  # keys of the columns of whose datasets only a part was there

    def is_stale(self, record: Record) -> bool:
        made_by = record.get("sources") or {}
        return any(
            not is_current(kind, known[str(record[kind])], made_by[kind])
            for kind, known in self.current_sources.items()
            if kind in made_by and str(record[kind]) in known
        )


def build(
    records: Iterable[Record],
    layout: Layout,
    *,
    published: Layout | None = None,
    current_sources: Mapping[str, Mapping[str, Declared]] | None = None,
    notes: Mapping[str, str] | None = None,
    unavailable: Mapping[tuple[str, str], str] | None = None,
    metric: str | None = None,
    intervals: bool = True,
) -> Table:
    """The table of `records` that `layout` describes, one panel per condition and metric.

    `published` is the layout whose published numbers stand beside ours. `current_sources` holds the declarations of
    today, {"method": {name: spec}, "task": {...}}: numbers of another source are marked. `notes` holds a footnote per
    method, `unavailable` why a method cannot be had on a task, by (method, task). `metric` shows that one of the
    records' metrics instead of the headline of every task; `intervals` says whether numbers carry those, where
    they can be had, or standard deviations over seeds. BenchError where one task comes with two metrics, and where
    no record has the one asked for.
    """
    if layout.counted:
        return count_parameters(layout, published)
    records = list(records)
    usable = [record for record in records if is_usable(record)]
    shown, outside = inside(usable, layout)
    if metric is not None and shown:
        shown, without = by_metric(shown, metric)
        outside += without
    measures = _measures(shown)
    panels = []
    for condition, group in split(shown, layout):
        for measure, part in by_measure(group, measures):
            job = _Job(layout, published, current_sources or {}, notes or {}, unavailable or {}, intervals=intervals)
            panels.append(_panel(condition, measure, part, job))
    remarks = words.left_out(records) if len(usable) < len(records) else []
    if not panels:
        remarks.append("No records to show: `bench run` makes them.")
    elif published is not None:
        remarks += words.source(published)
    return Table(layout.name, layout.title, layout.source, tuple(panels), tuple(remarks + outside))


def _panel(condition: Condition, measure: Measure, records: list[Record], job: _Job) -> Panel:
    rows, columns = lines(records, job.layout, job.unavailable), shown_columns(records, job.layout)
    job.partial = frozenset(words.partial_columns(records, columns))
    heads, grid = _with_means(*_grid(rows, columns, measure, records, job), job.layout)  # grid (heads, rows)
    labels = [line.row.label for line in rows]
    for head, cells in zip(heads, grid, strict=True):
        if not head.is_mean:
            doubt.check_cases(cells, labels, head.label)
    if job.intervals:
        grid = [[doubt.with_interval(cell) for cell in cells] for cells in grid]
    marks = [doubt.compared(cells, head) for head, cells in zip(heads, grid, strict=True)]
    grid, could = [cells for cells, _ in marks], [found for _, found in marks if found is not None]
    if job.published is not None:
        grid = [
            [_compared(cell, line, head, condition, job) for cell, line in zip(cells, rows, strict=True)]
            for head, cells in zip(heads, grid, strict=True)
        ]
    numbers = words.footnote_numbers([line.row.method for line in rows], job.footnotes)
    usual = Counter(cell.n for cells in grid for cell in cells if cell.n)
    corpora = {str(record["task"]): str(record["corpus"]) for record in records if record.get("corpus")}
    panel = Panel(
        condition=condition,
        corpora=tuple(dict.fromkeys(corpora[column.task] for column in columns if column.task in corpora)),
        seeds=tuple(sorted({int(record["seed"]) for record in records})),
        n=max(usual, key=lambda n: (usual[n], n)) if usual else 0,
        selections=tuple(sorted({str(r["selection"]) for r in records if r["status"] == DONE and r.get("selection")})),
        data=words.presence(records, columns),
        heads=tuple(heads),
        rows=tuple(
            PanelRow(
                line.row.method,
                line.row.label,
                line.row.section,
                numbers.get(job.footnotes.get(line.row.method, ""), ""),
                cells,
            )
            for line, cells in zip(rows, zip(*grid, strict=True), strict=True)
        ),
        against=job.published is not None,
        measure=measure,
        folds=folds_of(records),
    )
    said = words.data_notes(records, columns, panel) + words.target_notes(records, columns)
    said += words.leak_notes(job.leaks)
    return replace(
        panel,
        title=words.title(job.layout.title, panel),
        header=words.header(panel, columns, records),
        notes=tuple(
            words.notes(panel, job.layout, job.published, job.gaps, job.superseded, numbers, said, job.partial, could)
        ),
    )


def _grid(
    rows: list[Line], columns: list[Column], measure: Measure, records: list[Record], job: _Job
) -> tuple[list[Head], list[list[Cell]]]:
    """Heads and cells (columns, rows) of the tasks alone; what is no number goes into the job's gaps."""
    scored = {str(record["task"]) for record in records if record["status"] == DONE}
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        found[str(record["method"]), str(record["task"])].append(record)
    heads = [
        Head(
            column.key,
            column.label,
            column.section,
            (column.key,),
            measure if column.task in scored else Measure(),
            is_mean=False,
            task=column.task,
            fraction=column.label_fractions[0] if len(column.label_fractions) == 1 else None,
        )
        for column in columns
    ]
    grid = []
    for column, head in zip(columns, heads, strict=True):
        cells = []
        for line in rows:
            own = [
                record
                for record in found[line.row.method, column.task]
                if column.takes(fraction_of(record)) and line.holds(record)
            ]
            cells.append(_cell(own, line, column, head.measure, job))
        grid.append(cells)
    return heads, grid


def _measures(records: list[Record]) -> dict[str, Measure]:
    """The measure of every task that has a number; BenchError where its records disagree on what it is."""
    found: dict[str, Measure] = {}
    for record in records:
        if record["status"] != DONE:
            continue
        task, measure = str(record["task"]), measure_of(record)
        known = found.setdefault(task, measure)
        if replace(known, title="", digits=0) != replace(measure, title="", digits=0):
            names = sorted({measure.metric, known.metric})
            raise BenchError(
                f"records of task {task!r} disagree on the metric, its unit or its direction ({', '.join(names)}); "
                "move the outdated ones out of the records folder"
            )
    return found


def _cell(records: list[Record], line: Line, column: Column, measure: Measure, job: _Job) -> Cell:
    """All seeds of one row on one task, each the mean over the column's label fractions and the task's folds."""
    repetitions: dict[int, dict[tuple[float, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        repetitions[int(record["seed"])][fraction_of(record), int(record.get("fold") or 0)].append(record)
    fractions = max(1, len(column.label_fractions))
    folds = max((int(record.get("folds") or 1) for record in records), default=1)
    needed, most = fractions * folds, 0
    values, seeds, used, failures = list[float](), list[int](), dict[int, list[Record]](), list[Gap]()
    for seed, parts in sorted(repetitions.items()):
        good: list[Record] = []
        for _, candidates in sorted(parts.items()):
            record, status, reason = _one(candidates, job)
            if status == DONE:
                good.append(record)
            else:
                failures.append(Gap(status, line.row.label, column.label, seed, reason))
        most = max(most, len(good))
        if len(good) == needed:
            values.append(average([float(record["score"]) for record in good]) * measure.scale)
            seeds.append(seed)
            used[seed] = good
    job.gaps += failures
    if values:
        taken = [record for good in used.values() for record in good]
        return Cell(
            unit=measure.unit,
            values=tuple(values),
            seeds=tuple(seeds),
            mean=average(values),
            stale=any(map(job.is_stale, taken)),
            leaks=_leaks(taken, column, job),
            data=" ".join(sorted({str(record.get("dataset_fingerprint") or "") for record in taken})),
            designs=doubt.design(used, measure.metric, measure.scale),
        )
    if most:
        return Cell(FOLDS if folds > 1 else PART, detail=f"{most}/{needed}")
    if failures:
        return Cell(min((gap.status for gap in failures), key=words.gravity))
    return _absent(line, column, job)


def _absent(line: Line, column: Column, job: _Job) -> Cell:
    """What stands where there is no record."""
    why = job.unavailable.get((line.row.method, column.task))
    if why is not None:
        job.gaps.append(Gap(UNAVAILABLE, line.row.label, column.label, None, why))
        return Cell(UNAVAILABLE)
    printed = job.layout.values.get((line.row.key, column.key), 0.0)
    return Cell(UNAVAILABLE if printed is None and line.label is None else MISSING)


def _leaks(records: list[Record], column: Column, job: _Job) -> tuple[str, ...]:
    """The kinds of leak between the corpora of some records and their task, the gravest first."""
    kinds = set()
    for record in records:
        for kind, text in record.get("leaks") or ():
            if kind in LEAKS:
                kinds.add(str(kind))
                job.leaks.setdefault((str(kind), str(text)), {})[column.label] = None
    return tuple(kind for kind in LEAKS if kind in kinds)


def _one(candidates: list[Record], job: _Job) -> tuple[Record, str, str]:
    """The record that counts, its status and reason, among those with one label, task, seed and condition."""
    different = list({str(record["cell_key"]): record for record in candidates}.values())
    if len(different) > 1:
        current = [record for record in different if not job.is_stale(record)]
        done = [record for record in current if record["status"] == DONE]
        current = done if len(done) == 1 else current  # what failed beside it was tried with other files
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
    label = mean.label if len(common) == len(heads) or not compared else f"{mean.label} ({len(common)}/{len(heads)})"
    measure = heads[common[0]].measure if common else Measure()
    head = Head(mean.name, label, "", tuple(heads[at].name for at in common), measure, is_mean=True)
    return head, [_mean_cell(cells, common) for cells in rows]


def _mean_cell(cells: Sequence[Cell], common: list[int]) -> Cell:
    """The mean over tasks of each seed; where tasks have different seeds, of the means, without a spread."""
    if all(cell.mean is None for cell in cells):
        return Cell(cells[0].status, detail=cells[0].detail)
    if not common:
        return Cell("no common task")
    parts = [cells[at] for at in common]
    same = len({cell.seeds for cell in parts}) == 1
    return Cell(
        unit=parts[0].unit,
        values=tuple(map(average, zip(*(cell.values for cell in parts), strict=True))) if same else (),
        seeds=parts[0].seeds if same else (),
        mean=average([cell.mean for cell in parts if cell.mean is not None]),
        stale=any(cell.stale for cell in parts),
        leaks=tuple(kind for kind in LEAKS if any(kind in cell.leaks for cell in parts)),
        data=" ".join(cell.data for cell in parts).strip(),
        designs=tuple(one for cell in parts for one in cell.designs) if all(cell.designs for cell in parts) else (),
    )


def _compared(cell: Cell, line: Line, head: Head, condition: Condition, job: _Job) -> Cell:
    """The cell with the published number beside it; a row with changed hyper-parameters has none."""
    assert job.published is not None
    printed, key = job.published, (line.row.key, head.name)
    if line.label not in (None, line.row.method) or key not in printed.values:
        return cell
    value = printed.values[key]
    if value is None:
        return replace(cell, published_status=UNAVAILABLE)
    cell = replace(cell, published=value, published_status=DONE)
    whole = {mean.name: len(mean.tasks) for mean in printed.means}.get(head.name, 1)
    if cell.mean is None or len(head.tasks) != whole or cell.unit != printed.unit:
        return cell
    difference = cell.mean - value
    comparable = not condition.phantom and job.partial.isdisjoint(head.tasks)
    comparable = comparable and not words.departures(condition, head.tasks, printed)
    inside = abs(difference) <= printed.tolerance if printed.tolerance is not None and comparable else None
    return replace(cell, difference=difference, inside=inside)
