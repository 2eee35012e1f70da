"""A table as a picture: every task a small chart, methods as rows; or curves, where columns are label fractions.

Hollow dots are means, filled ones cannot be told from the best of their column; small dots below are single seeds, bars
95 % intervals (standard deviations where those cannot be had), diamonds the published numbers. matplotlib is imported
when a picture is made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.spec import BenchError
from bench.table.panel import LEAKS, MISSING, Cell, Head, Panel, PanelRow, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches, as all sizes here
LABELS = (1.2, 3.4)  # room for the names of rows, by their length
LETTER = 0.075  # width of a letter of a name
ROW, SECTION, LINE = 0.24, 0.24, 0.165  # height of a row, of a heading between rows, of a line of text
ABOVE, BELOW, APART = 0.55, 0.5, 0.18  # a strip of charts: over it, under it, between its charts
STRIP = 5  # charts beside each other
CURVE = 2.9  # height of a chart of curves
CHARACTERS = 180  # of a line of small print
INK, FAINT, ALARM = "#222222", "#8a8a8a", "#b2182b"
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIGURES = {  # suffix -> what is left out of the file, so that it depends on the table alone
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None},
}


def draw(table: Table, path: Path) -> None:
    """Writes the table as a picture; BenchError where there is nothing to draw or the file cannot be written."""
    suffix = path.suffix.lower()
    if suffix not in FIGURES:
        raise BenchError(f"a figure is written as {', '.join(FIGURES)}, not as {path.name!r}")
    import matplotlib

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "bench"}):
        figure = picture(table)
        try:
            figure.savefig(path, dpi=150, metadata=FIGURES[suffix])  # type: ignore[arg-type]
        except OSError as error:
            raise BenchError(f"{path} cannot be written: {error.strerror}") from error


def picture(table: Table) -> Figure:
    """The table as a picture, its panels below each other; BenchError where it has no number."""
    measured = [panel for panel in table.panels if any(head.measure.metric for head in panel.heads)]
    panels = [_reduced(panel) for panel in measured if any(cell.mean is not None for cell in panel.cells)]
    if not panels:
        raise BenchError("there is no score to draw: `bench run` makes records")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [_height(panel) for panel in panels]
    figure, top = Figure(figsize=(WIDTH, sum(heights))), sum(heights)
    FigureCanvasAgg(figure)
    for panel, height in zip(panels, heights, strict=True):
        _Page(figure, sum(heights)).panel(panel, top)
        top -= height
    return figure


# --------------------------------------------------------------------------------------------------------------- layout


def _reduced(panel: Panel) -> Panel:
    """The panel without columns that have no number and rows that have no record; the latter are named below it."""
    columns = [at for at, (_, cells) in enumerate(panel.columns) if any(map(_has_number, cells))]
    rows = [replace(row, cells=tuple(row.cells[at] for at in columns)) for row in panel.rows]
    drawn = [row for row in rows if any(_has_number(cell) or cell.status != MISSING for cell in row.cells)]
    lost = [row.label for row in rows if row not in drawn]
    return replace(
        panel,
        heads=tuple(panel.heads[at] for at in columns),
        rows=tuple(drawn),
        notes=(*panel.notes, f"Not drawn, for there is no record: {', '.join(lost)}.") if lost else panel.notes,
    )


def _has_number(cell: Cell) -> bool:
    return cell.mean is not None or cell.published is not None


def _words(panel: Panel) -> tuple[list[str], list[str], list[str]]:
    """Lines of title, header and small print."""
    notes = [line for note in panel.notes for line in textwrap.wrap(note, CHARACTERS, subsequent_indent="    ")]
    legend = _legend(panel)
    return (
        textwrap.wrap(panel.title, 96),
        textwrap.wrap(panel.header, 150),
        [*textwrap.wrap(legend, CHARACTERS), *notes],
    )


def _legend(panel: Panel) -> str:
    if _is_curve(panel):
        return f"Points are means over seeds; a band is {_spread_of(panel)}."
    parts = [f"Dots are means; bars are {_spread_of(panel)}; small dots below are single seeds."]
    if any(cell.best for cell in panel.cells):
        parts.append("Filled: not to be told from the best of the column.")
    if panel.against:
        parts.append("Diamonds: published.")
    if len(panel.rows) > 1:
        parts.append(f"Dotted: {panel.rows[0].label}.")
    return " ".join(parts)


def _spread_of(panel: Panel) -> str:
    return "a 95 % interval" if any(cell.half is not None for cell in panel.cells) else "one standard deviation"


def _is_curve(panel: Panel) -> bool:
    """Whether some task has a column for each of several label fractions."""
    shares = [head.task for head in panel.heads if head.fraction is not None]
    return len(shares) > len(set(shares))


def _labels(panel: Panel) -> float:
    least, most = LABELS
    return min(max(0.35 + LETTER * max(len(row.name) for row in panel.rows), least), most)


def _held(panel: Panel) -> list[PanelRow]:
    """Rows with a number."""
    return [row for row in panel.rows if any(cell.mean is not None for cell in row.cells)]


def _rows_height(panel: Panel) -> float:
    sections = len([section for section, _ in _sections(panel) if section])
    return ROW * len(panel.rows) + SECTION * sections


def _sections(panel: Panel) -> Iterator[tuple[str, Iterator[PanelRow]]]:
    return groupby(panel.rows, key=lambda row: row.section)


def _strips(panel: Panel) -> list[list[int]]:
    """Charts beside each other, as places of heads; as even as can be."""
    count = -(-len(panel.heads) // STRIP)
    size = -(-len(panel.heads) // count)
    return [list(range(first, min(first + size, len(panel.heads)))) for first in range(0, len(panel.heads), size)]


def _height(panel: Panel) -> float:
    title, header, small = _words(panel)
    text = 0.3 + 0.26 * len(title) + 0.19 * len(header) + LINE * len(small) + 0.35
    if _is_curve(panel):
        return text + (ABOVE + CURVE + BELOW) * -(-len(_curves(panel)) // 2) + _key_height(panel)
    return text + (ABOVE + _rows_height(panel) + BELOW) * len(_strips(panel))


def _curves(panel: Panel) -> list[tuple[str, list[int]]]:
    """Heading and places of the heads of every chart of curves."""
    found: dict[str, list[int]] = {}
    for at, head in enumerate(panel.heads):
        if head.fraction is not None:
            found.setdefault(head.task, []).append(at)
    return [(panel.heads[places[0]].section or task, places) for task, places in found.items()]


def _key_height(panel: Panel) -> float:
    return 0.2 * -(-len(_held(panel)) // 5) + 0.25


@dataclass
class _Page:
    """A figure that is filled from the top, in inches."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / WIDTH, (top - height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def say(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / WIDTH, top / self.height, text, va="top", **style)

    def panel(self, panel: Panel, top: float) -> None:
        title, header, small = _words(panel)
        top -= 0.2
        for line in title:
            self.say(0.2, top, line, size=12.5, weight="bold", color=ALARM if panel.condition.phantom else INK)
            top -= 0.26
        for line in header:
            self.say(0.2, top, line, size=8.5, color=INK)
            top -= 0.19
        top = self.curves(panel, top) if _is_curve(panel) else self.charts(panel, top)
        for line in small:
            self.say(0.2, top, line, size=7, color="#444444")
            top -= LINE

    def charts(self, panel: Panel, top: float) -> float:
        high = _rows_height(panel)
        for places in _strips(panel):
            top -= ABOVE
            labels = _labels(panel)
            width = (WIDTH - labels - 0.25 - APART * (len(places) - 1)) / max(len(places), 3)
            for at, place in enumerate(places):
                axes = self.axes(labels + at * (width + APART), top, width, high)
                cells = [row.cells[place] for row in panel.rows]
                _chart(axes, panel, panel.heads[place], cells, named=at == 0)
            for below, section in _places(panel)[1]:
                self.say(0.2, top - ROW * (below - 0.25), section, size=7.5, style="italic", color=FAINT)
            top -= high + BELOW
        return top

    def curves(self, panel: Panel, top: float) -> float:
        charts, width = _curves(panel), (WIDTH - 0.75 - 0.25 - 0.65) / 2
        for first in range(0, len(charts), 2):
            top -= ABOVE
            for at, (name, places) in enumerate(charts[first : first + 2]):
                axes = self.axes(0.75 + at * (width + 0.65), top, width, CURVE)
                _curve(axes, panel, name, places)
            top -= CURVE + BELOW
        lines = axes.get_lines()
        self.figure.legend(
            lines,
            [str(line.get_label()) for line in lines],
            ncols=5,
            loc="upper center",
            bbox_to_anchor=(0.5, (top + 0.15) / self.height),
            frameon=False,
            fontsize=8,
        )
        return top - _key_height(panel)


# --------------------------------------------------------------------------------------------------------------- charts


def _places(panel: Panel) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of the rows and of the headings between them, in rows from the top."""
    rows, headings, place = list[float](), list[tuple[float, str]](), 0.0
    for section, members in _sections(panel):
        if section:
            headings.append((place + SECTION / ROW / 2, section))
            place += SECTION / ROW
        for _ in members:
            rows.append(place + 0.5)
            place += 1
    return rows, headings


def _chart(axes: Axes, panel: Panel, head: Head, cells: Sequence[Cell], named: bool) -> None:
    """One task: a row per method."""
    rows, headings = _places(panel)
    _style(axes, panel.condition.phantom and any(cell.mean is not None for cell in cells))
    axes.set_ylim(_rows_height(panel) / ROW, 0)
    axes.set_title(f"{head.section}\n{head.label}" if head.section else head.label, size=9, color=INK, pad=5)
    axes.set_xlabel(_axis(head), size=8, color=INK, labelpad=2)
    axes.set_yticks(rows, [row.name for row in panel.rows] if named else [""] * len(rows), size=8.5)
    axes.tick_params(axis="y", length=0)
    low, high = _range(cells)
    axes.set_xlim(low, high)
    for place, _ in headings:
        axes.axhline(place - SECTION / ROW / 2, color="#dddddd", lw=0.8)
    first = cells[0].mean
    if first is not None and len(cells) > 1:
        axes.axvline(first, color=FAINT, lw=1, ls=(0, (1, 2)), zorder=1)
    for place, cell in zip(rows, cells, strict=True):
        _dot(axes, place, cell, low, high)


def _dot(axes: Axes, place: float, cell: Cell, low: float, high: float) -> None:
    blue = COLOURS[1]
    if cell.published is not None:
        axes.plot(cell.published, place, "D", ms=4.5, mfc="none", mec=COLOURS[2], mew=1.2, zorder=3)
    if cell.mean is None:
        axes.text(low + 0.03 * (high - low), place, cell.mark, size=7.5, va="center", color=FAINT)
        return
    if cell.spread is not None:
        axes.plot([cell.mean - cell.spread, cell.mean + cell.spread], [place, place], "-", color=blue, lw=1.6, zorder=2)
    if cell.n > 1:
        axes.plot(cell.values, [place + 0.3] * cell.n, "o", ms=2.6, color=blue, alpha=0.6, mew=0, zorder=3)
    axes.plot(cell.mean, place, "o", ms=6, mfc=blue if cell.best else "white", mec=blue, mew=1.4, zorder=4)
    marks = "‡" * cell.stale + "".join(LEAKS[kind] for kind in cell.leaks)
    if marks:
        reach = max([cell.mean + (cell.spread or 0.0), *cell.values])
        axes.annotate(marks, (reach, place), (5, 0), textcoords="offset points", size=8, va="center", color=ALARM)


def _range(cells: Iterable[Cell]) -> tuple[float, float]:
    """Ends of an axis with room at both sides; never narrower than one point."""
    numbers: list[float] = []
    for cell in cells:
        spread = cell.spread or 0.0
        numbers += [] if cell.mean is None else [cell.mean - spread, cell.mean + spread, *cell.values]
        numbers += [] if cell.published is None else [cell.published]
    if not numbers:
        return 0.0, 1.0
    low, high = min(numbers), max(numbers)
    room = max(0.14 * (high - low), (1 - (high - low)) / 2, 0.1)
    return low - room, high + 1.4 * room


def _axis(head: Head) -> str:
    """`DSC, % →`: what is shown, its unit and where it is better."""
    measure = head.measure
    if not measure.metric:
        return ""
    text = f"{measure.title}, {measure.unit}" if measure.unit else measure.title
    return f"{text} →" if measure.higher_is_better else f"← {text}"


def _style(axes: Axes, phantom: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(axis="x", labelsize=7.5, colors="#444444", length=2.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    axes.grid(axis="x", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    if phantom:
        style: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 0, "weight": "bold"}
        axes.text(0.5, 0.5, "PHANTOM", transform=axes.transAxes, size=17, color=ALARM, alpha=0.16, rotation=24, **style)


def _curve(axes: Axes, panel: Panel, name: str, places: Sequence[int]) -> None:
    """One task: a line per method over the shares of the labels."""
    _style(axes, panel.condition.phantom)
    axes.spines["left"].set_visible(True)
    axes.spines["left"].set_color(FAINT)
    axes.grid(axis="y", color="#e6e6e6", lw=0.7)
    heads = [panel.heads[at] for at in places]
    axes.set_title(name, size=9.5, color=INK)
    axes.set_xlabel("share of the training labels, %", size=8, color=INK)
    axes.set_ylabel(_axis(next((head for head in heads if head.measure.metric), heads[0])), size=8, color=INK)
    axes.tick_params(axis="y", labelsize=7.5, colors="#444444", length=2.5)
    axes.set_xticks([100 * (head.fraction or 0.0) for head in heads])
    for index, row in enumerate(_held(panel)):
        points = [(100 * (panel.heads[at].fraction or 0.0), row.cells[at]) for at in places]
        there = [(x, cell, cell.mean) for x, cell in points if cell.mean is not None]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
        x, y = [x for x, _, _ in there], [mean for _, _, mean in there]
        axes.plot(x, y, marker=marker, ms=4.5, lw=1.5, color=colour, label=row.name)
        if there and all(cell.spread is not None for _, cell, _ in there):
            low = [mean - (cell.spread or 0.0) for _, cell, mean in there]
            high = [mean + (cell.spread or 0.0) for _, cell, mean in there]
            axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
