"""How a run is watched: bars on a terminal, lines without one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TextIO

from bench.cli.show.amounts import counted, number_text, seconds_text
from bench.cli.show.runs import cell_name
from bench.cli.show.terminal import TONES, Voice
from bench.data.store import Store, read_progress
from bench.spec import Cell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bench.run.cell import CellOutcome


class Lines:
    """Progress without a terminal: a line per finished cell, and one now and then for those at work."""

    PAUSE = 30.0  # seconds between two looks at running cells

    def __init__(self, voice: Voice, store: Store, total: int) -> None:
        self.voice, self.store, self.total = voice, store, total
        self.ended_cells = 0
        self.began: dict[str, float] = {}
        self.looked = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def started(self, cell: Cell) -> None:
        self.began[cell.key] = time.monotonic()

    def ended(self, cell: Cell, outcome: CellOutcome) -> None:
        self.ended_cells += 1
        self.total = max(self.total, self.ended_cells)
        self.tell(self._ending(cell, outcome), TONES.get(outcome.status, ""))

    def _ending(self, cell: Cell, outcome: CellOutcome) -> str:
        took = f" ({seconds_text(time.monotonic() - self.began.pop(cell.key))})" if cell.key in self.began else ""
        where = "" if outcome.ran or outcome.status == "blocked" else " elsewhere"
        reason = f": {outcome.reason}" if outcome.reason else ""
        width = len(str(self.total))
        return f"[{self.ended_cells:{width}}/{self.total}] {cell_name(cell)} {outcome.status}{where}{took}{reason}"

    def tell(self, text: str, tone: str) -> None:
        """Says a line."""
        self.voice.say(text, tone)

    def tick(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        if time.monotonic() - self.looked < self.PAUSE:
            return
        self.looked = time.monotonic()
        for cell in running:
            self.voice.say(f"  at work: {cell_name(cell)} {progress_text(read_progress(self.store.folder(cell)))}")
        if waiting:
            self.voice.say(f"  another run works on {counted(len(waiting), 'cell')} of these")


def progress_text(progress: Mapping[str, Any] | None) -> str:
    """`stage 1 40/120 loss 1.234, 20 s left`."""
    if progress is None:
        return "starting"
    losses = "".join(f" {name} {number_text(value)}" for name, value in progress["losses"].items())
    left = f", {seconds_text(progress['seconds_left'])} left" if progress.get("seconds_left") is not None else ""
    return f"{progress['phase']} {progress['step']}/{progress['steps']}{losses}{left}"


class Bars(Lines):
    """Progress on a terminal: a bar for the grid and one per running cell."""

    PAUSE = 0.5

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12, table_column=Column(min_width=8)),
            TextColumn("{task.fields[count]}", justify="right", markup=False),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(file=self.voice.stream),
            transient=True,
        )
        self.opened = time.monotonic()
        self.grid = self.bars.add_task("all cells", total=self.total, count=f"0/{self.total}", note="loading torch")
        self.rows: dict[str, TaskID] = {}
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def started(self, cell: Cell) -> None:
        super().started(cell)
        self.rows[cell.key] = self.bars.add_task(cell_name(cell), total=None, count="", note="starting")

    def ended(self, cell: Cell, outcome: CellOutcome) -> None:
        super().ended(cell, outcome)
        if cell.key in self.rows:
            self.bars.remove_task(self.rows.pop(cell.key))
        count = f"{self.ended_cells}/{self.total}"
        self.bars.update(self.grid, completed=self.ended_cells, total=self.total, count=count)

    def tell(self, text: str, tone: str) -> None:
        from rich.text import Text

        self.bars.console.print(Text(text, style=tone))

    def tick(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        if time.monotonic() - self.looked < self.PAUSE:
            return
        self.looked = time.monotonic()
        for cell in running:
            progress = read_progress(self.store.folder(cell))
            if progress is not None:
                step, steps = progress["step"], progress["steps"]
                note = _note(progress)
                self.bars.update(self.rows[cell.key], completed=step, total=steps, count=f"{step}/{steps}", note=note)
        others = f", another run works on {counted(len(waiting), 'cell')}" if waiting else ""
        self.bars.update(self.grid, note=f"{seconds_text(time.monotonic() - self.opened)}{others}")


def _note(progress: Mapping[str, Any]) -> str:
    losses = [f"{name} {number_text(value)}" for name, value in progress["losses"].items()]
    left = progress.get("seconds_left")
    return ", ".join([*([f"{seconds_text(left)} left"] if left is not None else []), *losses])


def progress(voice: Voice, store: Store, total: int) -> Lines:
    """The observer of a run: bars on a terminal, lines without one or where nothing has to be done."""
    return (Bars if voice.terminal and total else Lines)(voice, store, total)


class Meter:
    """One bar on a terminal for work that counts its steps, from its first step on; silent without a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.bars: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Says how far the work is."""
        if not self.stream.isatty():
            return
        if self.bars is None:
            self.bars = self._opened()
        if self.task is None:
            self.task = self.bars.add_task(what, total=total)
        self.bars.update(self.task, description=what, completed=done, total=total)

    def _opened(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(file=self.stream),
            transient=True,
        )
        bars.start()
        return bars
