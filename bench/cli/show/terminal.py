"""Columns, facts and lines: plain where a program reads, as wide as the terminal where a person does.

rich is imported only for a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

TONES = {
    "done": "green",
    "cached": "green",
    "ok": "green",
    "found": "green",
    "running": "cyan",
    "new": "default",
    "stale": "yellow",
    "note": "yellow",
    "blocked": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "failed before": "red",
    "out of memory": "red",
    "timed out": "red",
    "problem": "red",
    "partial": "yellow",
    "damaged": "red",
}


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def say(text: str = "", tone: str = "") -> None:
    """One line on standard output, coloured on a terminal."""
    Voice(sys.stdout).say(text, tone)


def say_json(value: object) -> None:
    """`value` as indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def columns(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table, wrapped to the terminal's width, or plain columns that are never cut; those in `right` hold numbers.

    A column in which nothing stands is left out.
    """
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    filled = [at for at in range(len(headers)) if any(row[at] for row in texts)]
    headers, texts = [headers[at] for at in filled], [[row[at] for at in filled] for row in texts]
    if is_terminal():
        _rich_columns(headers, texts, right)
        return
    widths = [max(len(row[at]) for row in [list(headers), *texts]) for at in range(len(headers))]
    for row in [[name.upper() for name in headers], *texts]:
        cells = [
            text.rjust(width) if name in right else text.ljust(width)
            for name, text, width in zip(headers, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _rich_columns(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, name in enumerate(headers):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=at == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value, style=TONES.get(value.split(" (")[0], "")) for value in row))
    Console().print(table)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines; long values go on at the second column's edge on a terminal."""
    shown = [(name, str(value)) for name, value in pairs if value not in ("", None, ())]
    if not is_terminal():
        width = max(len(name) for name, _ in shown)
        for name, value in shown:
            print(f"{name.ljust(width)}  {value}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in shown:
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    Console().print(table)


class Voice:
    """Where a command speaks: standard output, or standard error where that belongs to JSON."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()

    def say(self, text: str = "", tone: str = "") -> None:
        """One line, or several as they are; on a terminal one line is coloured and broken between words."""
        if not self.terminal or not text or "\n" in text:
            print(text, file=self.stream, flush=True)
            return
        from rich.console import Console
        from rich.text import Text

        Console(file=self.stream).print(Text(text, style=tone))


def is_coloured(stream: TextIO) -> bool:
    """Whether a stream is a terminal that wants colour."""
    return stream.isatty() and "NO_COLOR" not in os.environ
