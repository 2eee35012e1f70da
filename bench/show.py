"""What the command line prints: plain columns where a program reads, tables that know the width where a person does.

No torch is imported with this (`doctor` and the list of backbones do when called), and rich only for a terminal.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from bench.registry import Registry, Spec, suggest
from bench.spec import BACKBONES, BenchError, Cell, CorpusSpec, PretrainCell, TaskSpec, TransferCell
from bench.store import CellState, Store, read_progress

if TYPE_CHECKING:
    from rich.progress import TaskID

    from bench.cell import CellOutcome
    from bench.grid import Grid, PlanRow, Request
    from bench.launch import Outcome

TONES = {
    "done": "green",
    "cached": "green",
    "ok": "green",
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
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


# -------------------------------------------------------------------------------------------------------------- amounts


def seconds_text(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12 s`, `0.8 s`; `?` where it was never measured."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def bytes_text(amount: float | None) -> str:
    """`12.3 MB` in powers of 1000; `?` where it is not known."""
    if amount is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def tally(counts: Mapping[str, int]) -> str:
    """`3 done, 1 failed`, without the zeros."""
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing"


# ------------------------------------------------------------------------------------------------------------- requests


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


def cell_name(cell: Cell) -> str:
    """A cell as a person calls it."""
    if isinstance(cell, PretrainCell):
        return f"{cell.label} on {cell.corpus}, seed {cell.seed}"
    labels = f", {cell.label_fraction:.0%} of the labels" if cell.label_fraction < 1 else ""
    return f"{cell.task} from {cell.pretrain.label}, seed {cell.seed}{labels}"


def intention(request: Request, grid: Grid) -> str:
    """What was asked for, in one line."""
    fractions = [f"{fraction:.0%}" for fraction in request.label_fractions]
    longest = max((cell.pretrain for cell in grid.transfers), key=lambda cell: cell.steps)
    parts = [
        f"{_few(grid.methods)} on {_few(grid.tasks)}",
        counted(request.seeds, "seed"),
        f"budget {longest.budget}",
        request.backbone,
        request.protocol,
        *([f"labels {', '.join(fractions)}"] if fractions != ["100%"] else []),
    ]
    return " · ".join(parts)


def _few(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def plan_line(sums: Mapping[str, Any]) -> str:
    """Counts by state, and the time and disk that are to be spent, in one line."""
    parts = [
        f"{counted(sum(states.values()), word)} ({tally(states)})"
        for kind, word in (("pretrain", "pretraining"), ("transfer", "transfer"))
        if (states := sums["counts"][kind])
    ]
    if not sums["to_run"]:
        return f"{', '.join(parts)}: nothing to train"
    if sums["unmeasured"] == sums["to_run"]:
        return f"{', '.join(parts)}; time and disk unknown, nothing like it was run here before"
    more = f", and {counted(sums['unmeasured'], 'cell')} never measured here" if sums["unmeasured"] else ""
    cost = f"about {seconds_text(sums['seconds'])} of work on one device, {bytes_text(sums['bytes'])}"
    return f"{', '.join(parts)}; {cost}{more}"


def plan_table(rows: Sequence[PlanRow]) -> None:
    """One line per method and task, their seeds and label fractions together."""
    together: dict[tuple[str, ...], list[PlanRow]] = {}
    for row in rows:
        together.setdefault((*_who(row.cell), row.state, row.reason), []).append(row)
    lines, measured = [], any(row.open and row.seconds is not None for row in rows)
    for (kind, label, place, state, reason), members in together.items():
        seconds, size = (_total([getattr(row, name) for row in members]) for name in ("seconds", "bytes"))
        cost = (seconds_text(seconds), bytes_text(size)) if members[0].open and measured else ("", "")
        lines.append((kind, label, place, len(members), state, *cost, reason))
    columns(["cell", "method", "on", "cells", "state", "time", "disk", "why"], lines, right=["cells", "time", "disk"])


def _who(cell: Cell) -> tuple[str, str, str]:
    if isinstance(cell, PretrainCell):
        return cell.kind, cell.label, cell.corpus
    return cell.kind, cell.pretrain.label, cell.task


def _total(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def plan_data(grid: Grid, rows: Sequence[PlanRow], sums: Mapping[str, Any]) -> dict[str, Any]:
    """The plan for programs: a row per cell."""
    cells = [
        {
            "kind": row.cell.kind,
            "key": row.cell.key,
            "folder": row.cell.folder,
            "method": row.cell.method if isinstance(row.cell, PretrainCell) else row.cell.pretrain.method,
            "label": _who(row.cell)[1],
            "corpus": (row.cell.corpus if isinstance(row.cell, PretrainCell) else row.cell.pretrain.corpus) or None,
            "task": row.cell.task if isinstance(row.cell, TransferCell) else None,
            "label_fraction": row.cell.label_fraction if isinstance(row.cell, TransferCell) else None,
            "seed": row.cell.seed,
            "phantom": row.cell.phantom,
            "state": row.state,
            "reason": row.reason,
            "seconds": row.seconds,
            "bytes": row.bytes,
        }
        for row in rows
    ]
    skipped = [{"what": what, "why": why} for what, why in grid.skipped]
    return {"totals": dict(sums), "cells": cells, "skipped": skipped}


def summary(grid: Grid, outcome: Outcome, request: Request, seconds: float) -> dict[str, Any]:
    """What became of a run, for programs and for the last line."""
    return {
        "cells": len(grid.transfers),
        "counts": dict(outcome.counts),
        "pretrained": outcome.pretrained,
        "transferred": outcome.transferred,
        "phantom": any(cell.phantom for cell in grid.transfers),
        "seconds": round(seconds, 3),
        "records": str(request.results / "records"),
        "exit_code": outcome.exit_code,
        "skipped": [{"what": what, "why": why} for what, why in grid.skipped],
    }


def summary_line(facts: Mapping[str, Any]) -> str:
    """How many results there are, and what this run did for them."""
    done = f"{facts['counts'].get('done', 0)} of {counted(facts['cells'], 'result')} in {facts['records']}"
    rest = {name: number for name, number in facts["counts"].items() if name != "done"}
    bad = f" ({tally(rest)})" if rest else ""
    took = seconds_text(facts["seconds"])
    if not facts["pretrained"] and not facts["transferred"]:
        return f"{done}{bad}; nothing was trained: every result was there already ({took})"
    trained = f"{counted(facts['pretrained'], 'pretraining')} and {counted(facts['transferred'], 'transfer')}"
    return f"{done}{bad}; {trained} run in {took}"


# ------------------------------------------------------------------------------------------------------------- progress


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


def number_text(value: Any) -> str:
    """Four significant digits; what is no number as it stands."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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


# --------------------------------------------------------------------------------------------------------------- cells


def states(found: Sequence[CellState]) -> None:
    """Every cell with its state, progress and reason, and how many there are of each."""
    rows = [
        (
            state.kind,
            state.name,
            state.choices.get("seed"),
            state.state,
            progress_text(state.progress) if state.progress else "",
            state.reason,
        )
        for state in found
    ]
    columns(["kind", "cell", "seed", "state", "progress", "why"], rows, right=["seed"])
    counts: dict[str, int] = {}
    for state in found:
        counts[state.state] = counts.get(state.state, 0) + 1
    say(f"\n{counted(len(found), 'cell')}: {tally(counts)}")


def state_data(state: CellState) -> dict[str, Any]:
    """One cell's state for programs."""
    return {
        "kind": state.kind,
        "name": state.name,
        "key": state.key,
        "state": state.state,
        "reason": state.reason,
        "folder": str(state.folder),
        "progress": state.progress,
    }


def find_cell(text: str, found: Sequence[CellState]) -> CellState:
    """The one cell that `text` names: the beginning of its key or of its folder's name, or TASK/METHOD.

    BenchError where there is none, or more than one.
    """
    name = text.rstrip("/").removeprefix("pretrain/").removeprefix("transfer/").replace("/", "-")
    exact = [state for state in found if name in (state.key, state.name)]
    near = exact or [state for state in found if state.key.startswith(name) or state.name.startswith(f"{name}-")]
    if len(near) == 1:
        return near[0]
    if not near:
        hint = suggest(name, [state.name for state in found]) or "; `bench status` lists the cells"
        raise BenchError(f"no cell is called {text!r}{hint}")
    names = ", ".join(state.name for state in near[:4]) + (", ..." if len(near) > 4 else "")
    raise BenchError(f"{text!r} could be any of {counted(len(near), 'cell')}: {names}; give more of the name or key")


def only(
    records: Sequence[dict[str, Any]],
    registry: Registry,
    methods: str | None,
    tasks: str | None,
    values: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """The records of these methods and tasks with these values; BenchError where a value stands in no record.

    A record that uses no corpus belongs to every corpus.
    """
    kept = list(records)
    for kind, expression in (("method", methods), ("task", tasks)):
        if expression is not None:
            names = registry.select(kind, expression)
            kept = [record for record in kept if record.get(kind) in names]
    for name, value in values.items():
        known = sorted({str(record[name]) for record in records if record.get(name) is not None})
        if value is not None and value not in known:
            near = suggest(value, known) or (
                f"; records have {', '.join(known)}" if known else "; there are no records"
            )
            raise BenchError(f"no record has the {name} {value!r}{near}")
        if value is not None:
            kept = [record for record in kept if record.get(name) in (value, None)]
    return kept


# ----------------------------------------------------------------------------------------------------- what is on offer


def method_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per method."""
    return [
        {
            "method": spec.name,
            "title": spec.title,
            "groups": list(spec.groups),
            "trains": spec.trains,
            "paper": spec.paper,
        }
        for spec in registry.methods.values()
    ]


def task_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per task."""
    return [
        {
            "task": spec.name,
            "title": spec.title,
            "groups": list(spec.groups),
            "corpus": spec.corpus,
            "metric": spec.metric,
            "train": spec.train,
            "test": spec.test,
            "licence": spec.licence,
        }
        for spec in registry.tasks.values()
    ]


def group_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per group of methods or of tasks."""
    return [
        {"group": group, "of": f"{kind}s", "members": members}
        for kind in ("method", "task")
        for group, members in registry.groups(kind).items()
    ]


def corpus_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per corpus."""
    return [
        {
            "corpus": spec.name,
            "title": spec.title,
            "channels": spec.channels,
            "licence": spec.licence,
            "tasks": [task.name for task in registry.tasks.values() if task.corpus == spec.name],
        }
        for spec in registry.corpora.values()
    ]


def backbone_rows() -> list[dict[str, Any]]:
    """One row per backbone of the papers at three channels: parameters of the encoder and of both decoders."""
    from bench.nets import Backbone, PixelDecoder, SegmentationNet, parameters

    rows = []
    for name in BACKBONES:
        backbone = Backbone(name)
        rows.append(
            {
                "backbone": name,
                "encoder_parameters": parameters(backbone.encoder),
                "decoder_parameters": parameters(PixelDecoder(backbone)),
                "transfer_decoder_parameters": parameters(SegmentationNet(backbone).decoder),
            }
        )
    return rows


def layout_rows() -> list[dict[str, Any]]:
    """One row per table layout."""
    from bench.table import load_layout, load_layouts

    layouts = {name: load_layout(name) for name in load_layouts()}
    return [
        {
            "table": name,
            "title": layout.title,
            "rows": len(layout.rows),
            "columns": len(layout.columns),
            "source": layout.source,
        }
        for name, layout in layouts.items()
    ]


def offered(kind: str, registry: Registry) -> list[dict[str, Any]]:
    """What there is of a kind: methods, tasks, groups, corpora, backbones or tables."""
    rows: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "methods": lambda: method_rows(registry),
        "tasks": lambda: task_rows(registry),
        "groups": lambda: group_rows(registry),
        "corpora": lambda: corpus_rows(registry),
        "backbones": backbone_rows,
        "tables": layout_rows,
    }
    return rows[kind]()


def rows(found: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal fields as a table, whole numbers to the right."""
    numbers = [name for name, value in found[0].items() if isinstance(value, int) and not isinstance(value, bool)]
    values = [[_flat(value) for value in row.values()] for row in found]
    columns([_words(name) for name in found[0]], values, right=[_words(name) for name in numbers])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _flat(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---------------------------------------------------------------------------------------------------------- one plug-in


def find_plugin(name: str, registry: Registry) -> tuple[str, Spec]:
    """(kind, declaration) of a method, task or corpus; BenchError with the nearest neighbours where there is none."""
    shelves: dict[str, Mapping[str, Spec]] = {
        "method": registry.methods,
        "task": registry.tasks,
        "corpus": registry.corpora,
    }
    for kind, shelf in shelves.items():
        if name in shelf:
            return kind, shelf[name]
    for file, why in registry.broken.items():
        if file.endswith(f"/{name}.py"):
            raise BenchError(f"{name!r} cannot be used: {why}")
    known = [item for shelf in shelves.values() for item in shelf]
    near = suggest(name, known) or "; `bench list methods` and `bench list tasks` show names"
    raise BenchError(f"nothing is called {name!r}{near}")


def plugin(kind: str, spec: Spec) -> None:
    """A declaration in full, with a method's hyper-parameters below it."""
    values = declaration(spec)
    fields = values.pop("fields", [])
    where = f"{values.pop('file')}:{values.pop('line')}"
    values.pop("sha256")
    named = [(_words(name), _flat(value)) for name, value in values.items() if name != "name"]
    facts([(kind, spec.name), *named, ("file", where)])
    if fields:
        say()
        columns(["hyper-parameter", "type", "default", "what it is"], [item.values() for item in fields], ["default"])
        say()
        say(f"change one with --set {spec.name}.{fields[0]['name']}=VALUE")


def declaration(spec: Spec) -> dict[str, Any]:
    """A declaration as plain data, its origin flattened to `file`, `line` and `sha256`."""
    values = dataclasses.asdict(spec)
    origin = values.pop("origin")
    return values | {"file": origin["file"], "line": origin["line"], "sha256": origin["sha256"]}


# --------------------------------------------------------------------------------------------------------------- doctor


@dataclass(frozen=True)
class Check:
    """One thing `bench doctor` looked at."""

    name: str
    state: str  # ok, note, problem
    detail: str


def doctor(registry: Registry, runs: Path, results: Path, data: Path | None) -> list[Check]:
    """Everything a run depends on, looked at now: interpreter, packages, devices, disk, data, plug-in files."""
    return [
        _python(),
        *_packages(),
        *_devices(),
        _slurm(),
        *(_disk(name, folder) for name, folder in (("runs", runs), ("results", results))),
        *_datasets(registry, data),
        *(Check("plug-in", "problem", why) for why in registry.broken.values()),
    ]


def _python() -> Check:
    cores = os.cpu_count() or 1
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()}, {counted(cores, 'core')}")


def _packages() -> list[Check]:
    checks = []
    for name in ("medssl-bench", "torch", "torchvision", "lightly", "timm", "segmentation-models-pytorch"):
        try:
            checks.append(Check(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            note = name == "medssl-bench"
            detail = "run from its folder, not installed" if note else f"not installed: pip install {name}"
            checks.append(Check(name, "note" if note else "problem", detail))
    return checks


def _devices() -> list[Check]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Check("gpu", "problem", f"torch cannot be imported: {reason}")]
    if not torch.cuda.is_available():
        return [Check("gpu", "note", "none that torch can use: runs go to the CPU")]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        Check(f"gpu {index}", "ok", f"{item.name}, {bytes_text(item.total_memory)}") for index, item in enumerate(found)
    ]


def _slurm() -> Check:
    if shutil.which("sbatch") is None:
        return Check("slurm", "note", "no sbatch here: cells run on this machine")
    try:
        done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("slurm", "problem", f"sbatch is here but sinfo does not answer ({type(error).__name__})")
    version = done.stdout.strip() or done.stderr.strip() or "no version told"
    return Check("slurm", "ok" if done.returncode == 0 else "problem", version)


def _disk(name: str, folder: Path) -> Check:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check(name, "problem", f"{folder}: nothing can be written to {there}")
    free = shutil.disk_usage(there).free
    return Check(name, "ok" if free > 5e9 else "note", f"{folder}: {bytes_text(free)} free")


def _datasets(registry: Registry, data: Path | None) -> list[Check]:
    if data is None:
        return [
            Check("data", "note", "no data root (--data or BENCH_DATA): runs use phantoms, generated images, not data")
        ]
    if not data.is_dir():
        return [Check("data", "problem", f"{data} is no folder: give --data the folder your datasets lie in")]
    return [Check("data", "ok", str(data))] + [
        _dataset(spec, data) for shelf in (registry.corpora, registry.tasks) for spec in shelf.values()
    ]


def _dataset(spec: CorpusSpec | TaskSpec, data: Path) -> Check:
    found = [name for name in spec.folders if (data / name).is_dir()]
    if found:
        return Check(spec.name, "ok", str(data / found[0]))
    return Check(spec.name, "note", f"no folder {' or '.join(spec.folders)}; from {spec.source}")
