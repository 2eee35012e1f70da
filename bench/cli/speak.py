"""What commands say besides their result: warnings, on standard error, and the table of some records."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import show
from bench.cli.options import RUNS
from bench.run.costs import Costs, cost_of, cost_of_records

if TYPE_CHECKING:
    from bench.registry import Registry
    from bench.table import Table


class Interrupted(Exception):
    """The user stopped a run; the message says how far it came."""


def warn(sentence: str) -> None:
    sys.stdout.flush()
    yellow, plain = ("\033[33m", "\033[0m") if show.is_coloured(sys.stderr) else ("", "")
    print(f"{yellow}warning:{plain} {' '.join(sentence.split())}", file=sys.stderr)


def tell(failures: Sequence[Any], warnings: Sequence[str], runs: Path = RUNS, shown: int = 10) -> None:
    """Warnings, then the cells that failed by themselves, with the command that shows what each printed."""
    place = "" if runs == RUNS else f" --runs {shlex.quote(str(runs))}"
    for warning in warnings:
        warn(warning)
    own = [(cell, how) for cell, how in failures if how.status != "blocked"]
    for cell, how in own[:shown]:
        warn(f"{show.cell_name(cell)}: {how.status}: {how.reason}; see `bench logs {cell.key[:12]}{place}`")
    if len(own) > shown:
        warn(f"{len(own) - shown} more failed; see `bench status{place}`")


def say_costs(voice: show.Voice, records: Iterable[Mapping[str, Any]], bullet: str = "") -> None:
    """One line on what is behind the numbers of a table, where records tell; `bullet` begins it."""
    records = list(records)
    silent = sum(record.get("status") == "done" and cost_of(record) == Costs() for record in records)
    text = cost_of_records(records).text()
    if text:
        but = f" (without {show.counted(silent, 'number')} whose records do not tell)" if silent else ""
        voice.say(f"{bullet}cost of these numbers, every pretraining once{but}: {text}")


def build_table(
    records: Sequence[Any],
    found: Registry,
    order: Sequence[str],
    layout: str | None = None,
    against: str | None = None,
    unavailable: Mapping[tuple[str, str], str] | None = None,
    metric: str | None = None,
    intervals: bool = True,
) -> Table:
    from bench import table as tables

    return tables.build(
        records,
        tables.load_layout(layout) if layout else tables.default_layout(records, found.tasks, order),
        published=tables.load_published(layout) if layout and against else None,
        current_sources={"method": found.methods, "task": found.tasks, "protocol": found.protocols},
        notes={name: spec.note for name, spec in found.methods.items() if spec.note},
        unavailable=unavailable,
        metric=metric,
        intervals=intervals,
    )
