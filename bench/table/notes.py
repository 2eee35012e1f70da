"""The words around a panel: title, header line, legend of marks, footnotes and what to know before comparing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby

from bench.spec import DONE, SCHEMA, SCHEMAS
from bench.table.doubt import Found
from bench.table.layout import REQUIRED, Column, Layout, Record, is_usable
from bench.table.panel import (
    FIRST,
    FOLDS,
    LEAKS,
    MARKS,
    MISSING,
    PART,
    UNAVAILABLE,
    Condition,
    Gap,
    Measure,
    Panel,
    has_other_data,
)

PHANTOM = "phantom: generated images, not data"
MEANINGS = {
    MISSING: "no record",
    "ambiguous": "several records with different keys answer to the same label and seed",
    "no common task": "no task that all compared rows have",
}
_REASON_LENGTH = 100  # characters of a reason that are shown
_REASONS_SHOWN = 6  # per status


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def first_line(reason: str) -> str:
    line = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason recorded")
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1].rstrip() + "…"


def gravity(status: str) -> int:
    order = list(MARKS)
    return order.index(status) if status in order else 0


def footnote_numbers(methods: Iterable[str], footnotes: Mapping[str, str]) -> dict[str, str]:
    """A number for every different footnote, in the order of the rows."""
    used = dict.fromkeys(footnotes[method] for method in methods if footnotes.get(method))
    return {note: str(number) for number, note in enumerate(used, 1)}


def title(name: str, panel: Panel) -> str:
    """The word phantom comes first, so that no folding parts it from the title's first line."""
    phantom = panel.condition.phantom
    parts = [PHANTOM, name] if phantom else [name]
    if panel.against:
        parts.append(f"beside the published numbers{', which are from real data' if phantom else ''}")
    return " · ".join(parts)


def header(panel: Panel, columns: list[Column], records: list[Record]) -> str:
    """The panel's condition in one line."""
    condition = panel.condition
    corpus_of, held = _corpora(records), {str(record["task"]) for record in records}
    corpora = _per_column({c.key: corpus_of[c.task] for c in columns if c.task in held & set(corpus_of)}, columns)
    measured = "" if panel.measure in (FIRST, Measure()) else panel.measure.in_unit
    parts = [
        measured,
        (f"corpus {', '.join(corpora)}" if corpora else "no corpus") + (" (phantom)" if condition.phantom else ""),
        f"its content {condition.content}" if condition.content else "",
        f"data {panel.data}" if panel.data else "",
        condition.backbone,
        condition.budget,
        condition.protocol,
        _labels_used(condition, columns, held),
        f"{panel.folds} folds x" if panel.folds else "",
        f"{'seed' if len(panel.seeds) == 1 else 'seeds'} {ranges(panel.seeds)}",
    ]
    return " · ".join(part for part in parts if part).replace(" folds x · ", " folds x ")


def _corpora(records: list[Record]) -> dict[str, str]:
    """The corpus of every task, with the number of images that were left out of it."""
    found: dict[str, str] = {}
    for record in records:
        if record.get("corpus"):
            lost = int(record.get("dropped") or 0)
            less = f" ({count(lost, 'leaked image')} left out)" if lost else ""
            found[str(record["task"])] = f"{record['corpus']}{less}"
    return found


def presence(records: Iterable[Record], columns: Iterable[Column]) -> str:
    """`NAME (14/45)`: the images of real datasets that were there, where records say so."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for record in records:
        if record.get("expected") and not record.get("phantom"):
            found[str(record["task"])].add((int(record.get("present") or 0), int(record["expected"])))
    return ", ".join(
        f"{task} ({', '.join(f'{present}/{expected}' for present, expected in sorted(found[task]))})"
        for task in dict.fromkeys(column.task for column in columns)
        if task in found
    )


def _labels_used(condition: Condition, columns: list[Column], held: set[str]) -> str:
    if condition.label_fraction is not None:
        return _labels((condition.label_fraction,))
    used = {column.key: _labels(column.label_fractions) for column in columns if column.task in held}
    if any(number > 1 for number in Counter(column.task for column in columns).values()):
        return "labels as the columns say"
    return "; ".join(_per_column(used, columns))


def _per_column(said: Mapping[str, str], columns: list[Column]) -> list[str]:
    """What is said of tasks, each with the columns it holds for unless it is the same for all."""
    named: dict[str, list[int]] = defaultdict(list)
    for at, column in enumerate(columns):
        if column.key in said:
            named[said[column.key]].append(at)
    if len(named) < 2:
        return list(named)
    return [f"{text} for {_span(places, columns)}" for text, places in named.items()]


def _span(places: list[int], columns: list[Column]) -> str:
    """`A to D` where the columns are neighbours, else all of their labels."""
    labels = [columns[at].label for at in places]
    if len(places) > 2 and places == list(range(places[0], places[0] + len(places))):
        return f"{labels[0]} to {labels[-1]}"
    return ", ".join(labels)


def _labels(fractions: Sequence[float]) -> str:
    return f"{_shares(fractions)} {'labels' if len(fractions) == 1 else 'of the labels'}"


def _shares(fractions: Sequence[float]) -> str:
    if len(fractions) == 1:
        return percent(fractions[0])
    return f"the mean over {', '.join(f'{100 * fraction:g}' for fraction in fractions)} %"


def left_out(records: Iterable[Record]) -> list[str]:
    """A sentence on every kind of record that cannot be read."""
    lost = [record for record in records if not is_usable(record)]
    foreign = Counter(str(record.get("schema")) for record in lost if record.get("schema") not in SCHEMAS)
    sentences = [
        f"{count(number, 'record')} with schema {schema} left out: this version reads schema {SCHEMA}."
        for schema, number in sorted(foreign.items())
    ]
    if broken := [record for record in lost if record.get("schema") in SCHEMAS]:
        missing = ", ".join(name for name in REQUIRED if name not in broken[0])
        sentences.append(f"{count(len(broken), 'record')} left out: fields are missing (the first lacks {missing}).")
    return sentences


def not_shown(what: str, names: Sequence[str]) -> str:
    listed = ", ".join(sorted(set(names)))
    return f"{count(len(names), 'record')} of {what} that this layout does not show: {listed}."


def source(published: Layout) -> list[str]:
    return [f"published: {published.source}; in brackets our number minus the published one.", *published.notes]


def notes(
    panel: Panel,
    layout: Layout,
    published: Layout | None,
    gaps: list[Gap],
    superseded: int,
    footnotes: Mapping[str, str],
    said: list[str],
    partial: Collection[str],
    could: Sequence[Found] = (),
) -> list[str]:
    """Every line under a panel, in reading order.

    `footnotes` are the numbers by footnote, `said` is on the data, `partial` are columns of whose data a part is there,
    `could` is what the comparisons of the columns could have found.
    """
    lines = _metric_notes(panel)
    lines += _spread_notes(panel)
    lines += _mean_notes(panel, layout)
    lines += _best_notes(panel, could)
    lines += [f"selected by: {selection}" for selection in panel.selections]
    lines += said
    lines += _gap_notes(panel, gaps)
    if any(cell.stale for cell in panel.cells):
        lines.append("‡ made by another version of the method's or the task's source than the present one.")
    if superseded:
        lines.append(f"{count(superseded, 'record')} of older source left out: newer ones stand in their place.")
    if published is not None:
        lines += _difference_notes(panel, published, partial)
    return lines + [f"[{number}] {note}" for note, number in footnotes.items()]


def partial_columns(records: Iterable[Record], columns: Iterable[Column]) -> list[str]:
    """Keys of the columns with numbers on only some of a real dataset's images."""
    tasks = {str(record["task"]) for record in records if not record.get("phantom") and _is_partial(record)}
    return [column.key for column in columns if column.task in tasks]


def _is_partial(record: Record) -> bool:
    """Whether only some of a dataset's images were there."""
    return int(record.get("present") or 0) < int(record.get("expected") or 0)


def data_notes(records: list[Record], columns: list[Column], panel: Panel) -> list[str]:
    """What was left out of corpora, how partial datasets were split, and where rows have not the same data."""
    dropped = {(str(record["corpus"]), int(record["dropped"])) for record in records if record.get("dropped")}
    lines = [
        f"--drop-leaks left {count(lost, 'image')} of {corpus} out: what any labelled dataset under the data root "
        "holds, whichever tasks were asked for."
        for corpus, lost in sorted(dropped)
    ]
    for column in {column.task: column for column in columns}.values():
        own = [record for record in records if record["task"] == column.task and not record.get("phantom")]
        partial = {
            (int(record.get("present") or 0), int(record["expected"]), str(record.get("rule") or ""))
            for record in own
            if _is_partial(record)
        }
        for present, expected, rule in sorted(partial):
            split = rule or "the official split"
            lines.append(f"{column.task}: {present} of {expected} images are there; {split}.")
    mixed = [head.label for head, cells in panel.columns if has_other_data(cells)]
    if mixed:
        lines.append(f"{', '.join(mixed)}: the rows have not all the same data, so they do not compare.")
    return lines


def target_notes(records: list[Record], columns: list[Column]) -> list[str]:
    """Of which columns some cases do not count, because nothing is there to be found, and how often rows mark it."""
    lines = []
    for column in {column.task: column for column in columns}.values():
        own = [record for record in records if record["task"] == column.task and record["status"] == DONE]
        own = [record for record in own if (record.get("n_cases") or 0) > (record.get("n_images") or 0)]
        if not own:
            continue
        counted, whole = int(own[0]["n_images"]), int(own[0]["n_cases"])
        shares: dict[str, list[float]] = defaultdict(list)
        for record in own:
            if record.get("false_marks") is not None:
                shares[str(record["label"])].append(float(record["false_marks"]))
        told = ", ".join(
            f"{label} {percent(round(sum(values) / len(values), 3))}" for label, values in sorted(shares.items())
        )
        lines.append(
            f"{column.label}: {counted} of {count(whole, 'image')}; {whole - counted} without target, in which rows "
            f"mark something falsely: {told}."
        )
    return lines


def leak_notes(leaks: Mapping[tuple[str, str], Iterable[str]]) -> list[str]:
    """One line per leak: its mark, what is shared, and the columns it concerns."""
    order = list(LEAKS)
    ordered = sorted(leaks.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return [f"{LEAKS[kind]} {text} ({', '.join(columns)})." for (kind, text), columns in ordered]


def _metric_notes(panel: Panel) -> list[str]:
    measure = panel.measure
    if not any(head.measure.metric for head in panel.heads):
        return []
    return [f"{measure.in_unit}, {'higher' if measure.higher_is_better else 'lower'} is better."]


def _mean_notes(panel: Panel, layout: Layout) -> list[str]:
    """Which tasks are left of a mean that not every row can have whole."""
    labels = {head.name: head.label for head in panel.heads}
    whole = {mean.name: sum(task in labels for task in mean.tasks) for mean in layout.means}
    cut = [head for head in panel.heads if head.is_mean and 0 < len(head.tasks) < whole[head.name]]
    lines = [
        f"{head.label}: over {', '.join(labels[task] for task in head.tasks)}, which every compared row has."
        for head in cut
    ]
    if cut and panel.against:
        lines.append("Published means are over all their columns, as printed.")
    return lines


def _spread_notes(panel: Panel) -> list[str]:
    """What stands behind the sign of plus and minus."""
    of_folds = f", each the mean over {panel.folds} folds" if panel.folds else ""
    seeds = f"n = {panel.n} seeds{of_folds}; another n stands with the number"
    halves = [cell for cell in panel.cells if cell.half is not None]
    lines = []
    if any(cell.n != 1 for cell in halves):
        lines.append(f"mean ± half width of its 95 % interval for new seeds and new cases; {seeds}.")
    if any(cell.n == 1 for cell in halves):
        lines.append(
            "cases only: with one seed ± is the half width of the 95 % interval over cases alone. It says how the same "
            "networks would do on other images, and nothing of another training."
        )
    if any(cell.half is None and cell.std is not None for cell in panel.cells):
        lines.append(f"mean ± standard deviation over {seeds}{'' if not halves else ', where that is all there is'}.")
    return lines


def _best_notes(panel: Panel, could: Sequence[Found]) -> list[str]:
    """What can be told apart, what the table could have found, and why something is not compared."""
    lines, silent, tied, alone = list[str](), list[str](), list[str](), list[str]()
    known = {found.label for found in could}
    for head, cells in panel.columns:
        scored = [cell for cell in cells if cell.mean is not None]
        if len(scored) < 2 or has_other_data(cells):
            continue
        if head.label not in known:
            (alone if any(cell.n < 2 for cell in scored) else silent).append(head.label)
        elif not any(cell.best for cell in cells):
            tied.append(head.label)
    if any(cell.best for cell in panel.cells):
        lines.append(
            "* not to be told from the best of its column (p ≥ 0.05, Tukey's range test over seeds and cases; where "
            "nothing differs, one column in twenty leaves a row out)."
        )
    if alone and panel.n < 2:
        lines.append("Nothing is marked: with one seed nothing can be said of methods.")
    elif alone:
        lines.append(f"Nothing is marked under {', '.join(alone)}: some row has fewer than two seeds in common.")
    if silent:
        lines.append(
            f"Nothing is marked under {', '.join(silent)}: its records hold no scores of single cases to compare by."
        )
    if tied:
        lines.append(f"Nothing is marked under {', '.join(tied)}: no row can be told from the best of its column.")
    if could:
        unit = f", in {panel.measure.unit}" if panel.measure.unit else ""
        parts = ", ".join(f"{one.label} {one.least:.{panel.measure.digits}f}{_seeds_for(one)}" for one in could)
        lines.append(f"The least lead that would have been found{unit} (seeds that half would take): {parts}.")
    return lines


def _seeds_for(found: Found) -> str:
    return f" ({found.seeds})" if found.seeds else " (more cases)"


def _gap_notes(panel: Panel, gaps: list[Gap]) -> list[str]:
    """One line per mark used and per reason."""
    shown = {status for cell in panel.cells for status in (cell.status, cell.published_status)} - {DONE, ""}
    reasons: dict[str, dict[str, list[Gap]]] = defaultdict(lambda: defaultdict(list))
    for gap in gaps:
        reasons[gap.status][gap.reason].append(gap)
    ordered = sorted(shown | set(reasons), key=lambda status: (gravity(status), status))
    unprinted = any(cell.published_status == UNAVAILABLE for cell in panel.cells) or UNAVAILABLE in shown - set(reasons)
    lines = [line for status in ordered for line in _reason_notes(status, reasons[status])]
    return lines + ([f"{MARKS[UNAVAILABLE]} = {UNAVAILABLE}, the publication prints no number."] if unprinted else [])


def _reason_notes(status: str, reasons: Mapping[str, list[Gap]]) -> list[str]:
    if status == PART:
        return ["k/m = only k of the m label fractions are there that this column averages."]
    if status == FOLDS:
        return ["k/m = only k of the m folds (of all label fractions) are there that this column averages."]
    mark = MARKS.get(status, status)
    name = mark if mark == status else f"{mark} = {status}"
    if status in MEANINGS:
        name += f", {MEANINGS[status]}"
    if not reasons:
        return [] if status == UNAVAILABLE else [f"{name}."]
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [f"{name}: {reason} ({_where(gaps)})" for reason, gaps in ordered[:_REASONS_SHOWN]]
    left = len(ordered) - _REASONS_SHOWN
    return lines + ([f"{name}: {count(left, 'more reason')}, see `bench status`."] if left > 0 else [])


def _where(gaps: list[Gap]) -> str:
    seed = "" if gaps[0].seed is None else f", seed {gaps[0].seed}"
    first = f"{gaps[0].label} on {gaps[0].column}{seed}"
    return first if len(gaps) == 1 else f"{first}, and {len(gaps) - 1} more"


def departures(condition: Condition, tasks: Iterable[str], published: Layout) -> list[str]:
    """Where the condition of our numbers on some tasks is not the publication's."""
    said = [
        f"{name} {getattr(condition, name)} instead of {value}"
        for name, value in published.conditions.items()
        if getattr(condition, name) not in ("", value)
    ]
    columns = {column.key: column for column in published.columns}
    for column in (columns[task] for task in tasks if task in columns):
        if condition.corpus and column.corpus and condition.corpus != column.corpus:
            said.append(f"corpus {condition.corpus} instead of {column.corpus}")
        ours, theirs = condition.label_fraction, column.label_fractions
        if ours is not None and theirs and theirs != (ours,):
            said.append(f"{percent(ours)} of the labels instead of {_shares(theirs)}")
    return list(dict.fromkeys(said))


def _difference_notes(panel: Panel, published: Layout, partial: Collection[str]) -> list[str]:
    """What a reader must know before comparing this panel with the published numbers."""
    compared = [head.name for head, cells in panel.columns if any(cell.published_status for cell in cells)]
    said = ["phantoms (generated images) instead of the publication's data"] if panel.condition.phantom else []
    said += departures(panel.condition, compared, published)
    part = [head.label for head in panel.heads if head.name in partial]
    said += [f"a part of the images of {', '.join(part)}"] if part else []
    lines = [f"Not the same experiment: ours ran with {'; '.join(said)}."] if said else []
    if any(cell.inside is not None for cell in panel.cells):
        lines.append(f"≈ within ±{published.tolerance:g} of the published number.")
    return lines
