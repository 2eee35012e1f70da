"""A table as text for terminals, Markdown, CSV, LaTeX (booktabs) and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, groupby
from typing import Any, Protocol, TypeVar

from bench.spec import BenchError, suggest
from bench.table.notes import ranges
from bench.table.panel import LEAKS, MARKS, UNAVAILABLE, Cell, Condition, Head, Panel, PanelRow, Table


class _Sectioned(Protocol):
    @property
    def section(self) -> str: ...


Part = TypeVar("Part", bound=_Sectioned)


def render(table: Table, format: str, *, width: int | None = None, colour: bool | None = None) -> str:
    """The table in one of `FORMATS`; ends with a line break.

    Text is folded to `width` columns and coloured where `colour`; by default as the terminal is, plain and 120 columns
    wide where there is none. The other formats depend on the table alone.
    """
    if format == "text":
        terminal = sys.stdout.isatty()
        columns = shutil.get_terminal_size((120, 24)).columns if terminal else 120
        wanted = terminal and "NO_COLOR" not in os.environ
        return _text(table, max(width or columns, 40), wanted if colour is None else colour)
    if format not in _WRITERS:
        hint = suggest(format, FORMATS) or f"; use {', '.join(FORMATS)}"
        raise BenchError(f"no table format is called {format!r}{hint}")
    return _WRITERS[format](table)


def _number(cell: Cell, usual: int, digits: int) -> str:
    """`74.32 ± 0.51`, with n where it is not the usual one."""
    if cell.mean is None:
        return cell.mark
    spread = f" ± {cell.spread:.{digits}f}" if cell.spread is not None else ""
    counted = f" (n={cell.n})" if cell.n and cell.n != usual else ""
    return f"{cell.mean:.{digits}f}{spread}{counted}"


def _published(cell: Cell, digits: int) -> str:
    """`81.09 (-6.77)`, with a sign for inside the tolerance."""
    if cell.published is None:
        return MARKS[UNAVAILABLE] if cell.published_status == UNAVAILABLE else ""
    if cell.difference is None:
        return f"{cell.published:.{digits}f}"
    return f"{cell.published:.{digits}f} ({cell.difference:+.{digits}f}{' ≈' if cell.inside else ''})"


def _marks(cell: Cell) -> str:
    """What stands behind a number beside the star of the best."""
    return "‡" * cell.stale + "".join(LEAKS[kind] for kind in cell.leaks)


def _has_published(row: PanelRow) -> bool:
    return any(cell.published_status for cell in row.cells)


def _sections(parts: Iterable[Part]) -> list[tuple[str, list[Part]]]:
    """Neighbouring columns or rows of one section."""
    return [(section, list(run)) for section, run in groupby(parts, key=lambda part: part.section)]


_STYLES = {"title": "1", "header": "36", "section": "3;36", "best": "1;32", "gap": "33", "faint": "2"}


@dataclass(frozen=True)
class _Strip:
    """A column of text: the numbers with room for the marks behind them, padded to one width."""

    label: str
    section: str
    width: int
    numbers: list[str]  # one per row
    published: list[str]
    styles: list[str]


def _text(table: Table, width: int, colour: bool) -> str:
    def paint(text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if colour and style and text.strip() else text

    lines: list[str] = []
    for panel in table.panels:
        lines += [paint(line, "title") for line in textwrap.wrap(panel.title, width)]
        lines += [paint(line, "header") for line in textwrap.wrap(panel.header, width)]
        names = max(map(len, ["method", *(row.name for row in panel.rows), "  published" if panel.against else ""]))
        for block in _blocks(_strips(panel), width - names):
            lines += ["", *_text_block(panel, block, names, paint)]
        lines += ["", *(paint(line, "faint") for line in _folded(panel.notes, width)), ""]
    lines += [paint(line, "faint") for line in _folded(table.notes, width)]
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def _folded(notes: Iterable[str], width: int) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]


def _strips(panel: Panel) -> list[_Strip]:
    shares = [-(-(len(name) + 2) // len(heads)) if name else 0 for name, heads in _sections(panel.heads) for _ in heads]
    strips = []
    for (head, cells), share in zip(panel.columns, shares, strict=True):
        marks = ["*" * cell.best + _marks(cell) for cell in cells]
        room = max(map(len, marks))
        digits = panel.measure.digits
        numbers = [_number(cell, panel.n, digits) + mark.ljust(room) for cell, mark in zip(cells, marks, strict=True)]
        published = [_published(cell, digits) + " " * room for cell in cells]
        width = max(len(head.heading), share, *map(len, numbers + published))
        numbers, published = ([text.rjust(width) for text in texts] for texts in (numbers, published))
        styles = ["best" if cell.best else "" if cell.mean is not None else "gap" for cell in cells]
        strips.append(_Strip(head.heading, head.section, width, numbers, published, styles))
    return strips


def _blocks(strips: list[_Strip], room: int) -> list[list[_Strip]]:
    """Columns that fit beside each other; a section moves on whole where it fits there."""
    blocks: list[list[_Strip]] = [[]]
    for _, section in _sections(strips):
        for part in [section] if _size(section) <= room else [[strip] for strip in section]:
            if blocks[-1] and _size(blocks[-1] + part) > room:
                blocks.append([])
            blocks[-1] = blocks[-1] + part
    return blocks


def _size(strips: list[_Strip]) -> int:
    return sum(strip.width + 2 for strip in strips)


def _text_block(panel: Panel, block: list[_Strip], names: int, paint: Callable[[str, str], str]) -> list[str]:
    lines = []
    if any(strip.section for strip in block):
        over = "".join(f"  {_over(section, _size(part) - 2)}" for section, part in _sections(block))
        lines.append(paint(" " * names + over, "section"))
    labels = "".join(f"  {strip.label:>{strip.width}}" for strip in block)
    lines += [paint("method".ljust(names) + labels, "title"), paint("─" * (names + _size(block)), "faint")]
    above = ""
    for at, row in enumerate(panel.rows):
        if row.section and row.section != above:
            lines.append(paint(row.section, "section"))
        above = row.section
        numbers = [paint(strip.numbers[at], strip.styles[at]) for strip in block]
        lines.append("  ".join([row.name.ljust(names), *numbers]))
        if _has_published(row):
            texts = [strip.published[at] for strip in block]
            lines.append(paint("  ".join(["  published".ljust(names), *texts]), "faint"))
    return lines


def _over(section: str, width: int) -> str:
    """A section's name over the rule above its columns; shortened where they are narrower."""
    if section and len(section) < width - 1:
        return f" {section} ".center(width, "─")
    return (section if len(section) <= width else section[: width - 1] + "…").ljust(width)


@dataclass(frozen=True)
class _Markup:
    """How a language writes what both know."""

    escape: Callable[[str], str]
    best: str
    note: str
    published: str

    def fields(self, row: PanelRow, panel: Panel) -> list[list[str]]:
        """The row's fields, and those of the published numbers below it."""
        lines = [[self.escape(row.label) + (self.note.format(row.note) if row.note else "")]]
        for cell in row.cells:
            text = self.escape(_number(cell, panel.n, panel.measure.digits))
            lines[0].append((self.best.format(text) if cell.best else text) + self.escape(_marks(cell)))
        if _has_published(row):
            lines.append([self.published, *(self.escape(_published(cell, panel.measure.digits)) for cell in row.cells)])
        return lines


def _md(text: str) -> str:
    return "".join("\\" + character if character in "\\*|<" else character for character in text)


_MARKDOWN = _Markup(_md, "**{}**\\*", "<sup>{}</sup>", "*published*")


def _markdown(table: Table) -> str:
    parts = ["\n".join(_markdown_panel(panel)) for panel in table.panels]
    if table.notes:
        parts.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _markdown_panel(panel: Panel) -> list[str]:
    lines = [f"### {_md(panel.title)}", "", f"**{_md(panel.header)}**", ""]
    lines.append(_piped(["method", *(_md(head.heading) for head in panel.heads)]))
    lines.append("|:--" + "|--:" * len(panel.heads) + "|")
    for section, rows in _sections(panel.rows):
        if section:
            lines.append(f"| *{_md(section)}* |" + " |" * len(panel.heads))
        lines += [_piped(line) for row in rows for line in _MARKDOWN.fields(row, panel)]
    return [*lines, "", *(f"- {_md(note)}" for note in panel.notes)]


def _piped(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"


_TEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "·": r"$\cdot$",
    "‡": r"\ddag{}",
    "†": r"\dag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "≥": r"$\geq$",
    "*": "{*}",  # a star or bracket after a line break would be read as its argument
    "[": "{[}",
    "`": r"\textasciigrave{}",
    "…": r"\ldots{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text).replace("--", "-{}-").replace("–", "--")


_LATEX = _Markup(_tex, r"\textbf{{{}}}*", r"\textsuperscript{{{}}}", r"\quad published")


def _latex(table: Table) -> str:
    lines = [r"% needs \usepackage{booktabs,adjustbox}"]
    for panel in table.panels:
        lines += _latex_panel(panel)
    lines += [rf"\par\noindent{{\footnotesize {_tex(note)}}}" for note in table.notes]
    return "\n".join(lines) + "\n"


def _latex_panel(panel: Panel) -> list[str]:
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{_tex(panel.title)}. {_tex(panel.header)}.}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{l{'r' * len(panel.heads)}}}",
        r"\toprule",
        *_latex_sections(panel.heads),
        " & ".join(["Method", *(_tex(head.heading) for head in panel.heads)]) + r" \\",
    ]
    for section, rows in _sections(panel.rows):
        lines.append(r"\midrule")
        if section:
            lines.append(rf"\multicolumn{{{len(panel.heads) + 1}}}{{l}}{{\emph{{{_tex(section)}}}}} \\")
        lines += [" & ".join(line) + r" \\" for row in rows for line in _LATEX.fields(row, panel)]
    return [
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{adjustbox}",
        r"\par\smallskip",
        r"\begin{minipage}{\textwidth}\footnotesize",
        *(_tex(note) + r"\\" for note in panel.notes),
        r"\end{minipage}",
        r"\end{table*}",
    ]


def _latex_sections(heads: Sequence[Head]) -> list[str]:
    cells, rules, start = [], "", 2
    for section, part in _sections(heads):
        cells.append(rf"& \multicolumn{{{len(part)}}}{{c}}{{{_tex(section)}}}")
        if section:
            rules += rf"\cmidrule(lr){{{start}-{start + len(part) - 1}}}"
        start += len(part)
    return [" ".join(cells) + r" \\", rules] if rules else []


def _csv(table: Table) -> str:
    """One line per row and panel; a task's number, spread, n, status and marks beside each other, in the line's unit.

    An empty label fraction means that of the layout's columns.
    """
    lines = [_csv_line(panel, row) for panel in table.panels for row in panel.rows]
    first = [*(part.name for part in fields(Condition)), "seeds", "selection", "data"]
    first += ["metric", "unit", "section", "method", "label"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys([*first, *chain(*lines)])), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _csv_line(panel: Panel, row: PanelRow) -> dict[str, Any]:
    line = asdict(panel.condition) | {"corpus": " ".join(panel.corpora), "seeds": ranges(panel.seeds)}
    line |= {"selection": " | ".join(panel.selections), "phantom": "phantom" if panel.condition.phantom else "data"}
    line |= {"metric": panel.measure.metric, "unit": panel.measure.unit}
    line |= {"data": panel.data, "section": row.section, "method": row.method, "label": row.label}
    for head, cell in zip(panel.heads, row.cells, strict=True):
        values: dict[str, str | int] = {
            "": _rounded(cell.mean, panel),
            "_std": _rounded(cell.std, panel),
            "_half": _rounded(cell.half, panel),
            "_n": "" if cell.mean is not None and not cell.n else cell.n,
            "_status": f"{cell.status} ({cell.detail})" if cell.detail else cell.status,
            "_marks": " ".join(
                [name for name in ("best", "stale") if getattr(cell, name)] + [f"leak:{kind}" for kind in cell.leaks]
            ),
        }
        if panel.against:
            values |= {"_published": _rounded(cell.published, panel), "_difference": _rounded(cell.difference, panel)}
        line |= {head.name + part: value for part, value in values.items()}
    return line


def _rounded(number: float | None, panel: Panel) -> str:
    return "" if number is None else f"{number:.{panel.measure.digits}f}"


def _json(table: Table) -> str:
    """The table's own fields, cells by column and rounded to six decimals."""
    data = asdict(replace(table, panels=())) | {"panels": [_json_panel(panel) for panel in table.panels]}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_panel(panel: Panel) -> dict[str, Any]:
    names = [head.name for head in panel.heads]
    rows = [
        asdict(replace(row, cells=())) | {"cells": dict(zip(names, map(_json_cell, row.cells), strict=True))}
        for row in panel.rows
    ]
    return asdict(replace(panel, rows=())) | {"rows": rows}


def _json_cell(cell: Cell) -> dict[str, Any]:
    values = asdict(replace(cell, designs=())) | {
        "std": cell.std,
        "n": cell.n,
        "values": [round(value, 6) for value in cell.values],
    }
    del values["designs"]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


_WRITERS: dict[str, Callable[[Table], str]] = {"md": _markdown, "csv": _csv, "latex": _latex, "json": _json}
FORMATS = ("text", *_WRITERS)
