"""Cells and records: how they stand, finding one, keeping some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cli.show.amounts import counted, tally
from bench.cli.show.terminal import columns, say
from bench.cli.show.watch import progress_text
from bench.data.store import CellState
from bench.registry import Registry
from bench.run.costs import Costs
from bench.spec import BenchError, suggest


def states(found: Sequence[CellState], costs: Mapping[str, Costs], total: Costs) -> None:
    """Every cell with its state, progress, costs (by key) and reason, how many there are of each, and all costs."""
    rows = [
        (
            state.kind,
            state.name,
            state.choices.get("seed"),
            state.state,
            progress_text(state.progress) if state.progress else "",
            costs[state.key].text() if state.key in costs else "",
            state.reason,
        )
        for state in found
    ]
    columns(["kind", "cell", "seed", "state", "progress", "cost", "why"], rows, right=["seed", "cost"])
    say(f"\n{states_line(found)}")
    if total.text():
        say(f"spent so far, failed and interrupted attempts included: {total.text()}")


def states_line(found: Sequence[CellState]) -> str:
    """`3 cells: 2 done, 1 running`."""
    counts: dict[str, int] = {}
    for state in found:
        counts[state.state] = counts.get(state.state, 0) + 1
    return f"{counted(len(found), 'cell')}: {tally(counts)}"


def state_data(state: CellState, costs: Costs) -> dict[str, Any]:
    """One cell's state for programs."""
    return {
        "kind": state.kind,
        "name": state.name,
        "key": state.key,
        "state": state.state,
        "reason": state.reason,
        "folder": str(state.folder),
        "progress": state.progress,
        "costs": costs.data(),
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


def _is_file(record: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a record is of weights from one of the files, named as METHOD:PATH; its label knows the file's name."""
    label = str(record.get("label")).rpartition("@")[0]
    return any(f"{name.partition(':')[0]}:{Path(name).name}" == label for name in names if ":" in name)


def only(
    records: Sequence[dict[str, Any]],
    registry: Registry,
    methods: str | None,
    tasks: str | None,
    values: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """The records of these methods and tasks with these values; BenchError where a value stands in no record.

    A record that uses no corpus belongs to every corpus, and to every budget whose transfers are as long.
    """
    kept = list(records)
    for kind, expression in (("method", methods), ("task", tasks)):
        if expression is not None:
            names = registry.select(kind, expression)
            kept = [record for record in kept if record.get(kind) in names or _is_file(record, names)]
    for name, value in values.items():
        known = sorted({str(record[name]) for record in records if record.get(name) is not None})
        if value is not None and value not in known:
            near = suggest(value, known) or (
                f"; records have {', '.join(known)}" if known else "; there are no records"
            )
            raise BenchError(f"no record has the {name} {value!r}{near}")
        if value is not None:
            judged = _judged_as(kept, value) if name == "budget" else set()
            kept = [record for record in kept if record.get(name) in (value, None) or _loose(record) in judged]
    return kept


def _judged_as(records: Sequence[Mapping[str, Any]], budget: str) -> set[str]:
    """What the transfers of a budget are called without what concerns pretraining alone."""
    return {str(record.get("transfer_budget", budget)) for record in records if record.get("budget") == budget}


def _loose(record: Mapping[str, Any]) -> str | None:
    """The budget of a record that uses no corpus."""
    return None if record.get("corpus") else str(record.get("budget"))
