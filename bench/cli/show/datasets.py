"""Datasets and corpora: how much of them is there, what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.cli.show.amounts import counted
from bench.cli.show.terminal import TONES, columns, facts, say

if TYPE_CHECKING:
    from bench.cli.checkup import Finding, Report, Status

SHOWN = 20  # findings of one kind about the same datasets, before the rest is only counted


def statuses(found: Sequence[Status]) -> None:
    """A row per dataset, then where to get what is not whole, and how to cite what is there."""
    rows = [(item.name, item.kind, item.state, item.counts, item.masks or "", item.licence) for item in found]
    columns(["name", "kind", "state", "images", "masks", "licence"], rows, right=["images", "masks"])
    words: dict[tuple[str, str], list[str]] = {}
    for item in found:
        for what, text in _about(item):
            words.setdefault((what, text), []).append(item.name)
    for what, title in (("lacking", "not whole"), ("source", "get it from"), ("citation", "cite")):
        lines = [(", ".join(names), text) for (kind, text), names in words.items() if kind == what]
        if lines:
            say(f"\n{title}:")
            facts(lines)


def _about(item: Status) -> list[tuple[str, str]]:
    lines = [("lacking", sentence) for sentence in item.damaged]
    if item.images and item.missing:
        lines.append(("lacking", f"{item.lacking}; --allow-partial runs on the rest"))
    if item.state != "found":
        lines.append(("source", item.source))
    if item.images:
        lines.append(("citation", item.citation))
    return [(what, text) for what, text in lines if text]


def status_data(item: Status) -> dict[str, Any]:
    """One dataset's status for programs."""
    return asdict(item)


def findings(found: Sequence[Finding]) -> None:
    """A line each; of many alike the first ones."""
    told: dict[tuple[str, str, tuple[str, ...]], int] = {}
    for item in found:
        kind = (item.level, item.kind, item.names)
        told[kind] = told.get(kind, 0) + 1
        if told[kind] <= SHOWN:
            say(f"{item.level}: {_whose(item.names)}{item.text}", TONES[item.level])
    for (level, what, names), number in told.items():
        if number > SHOWN:
            say(f"{level}: {_whose(names)}{number - SHOWN} more of this kind ({what}); --json lists them", TONES[level])


def _whose(names: Sequence[str]) -> str:
    return f"{', '.join(names)}: " if names else ""


def report(found: Report) -> None:
    """What is wrong, a line each, then a row per dataset."""
    findings(found.findings)
    if found.checked:
        if found.findings:
            say()
        rows = [
            (
                item.status.name,
                item.status.kind,
                item.state,
                item.status.counts,
                item.status.masks or "",
                item.sizes,
                item.problems or "",
            )
            for item in found.checked
        ]
        heads = ["name", "kind", "state", "images", "masks", "size", "problems"]
        columns(heads, rows, right=["images", "masks", "problems"])
        say()
    if found.problems:
        say(f"{counted(found.problems, 'problem')} found", "red")
    else:
        say("all is well", "green")


def report_data(found: Report) -> dict[str, Any]:
    """What `verify` found, for programs."""
    return {
        "problems": found.problems,
        "findings": [asdict(item) for item in found.findings],
        "datasets": [
            {**asdict(item.status), "state": item.state, "sizes": item.sizes, "problems": item.problems}
            for item in found.checked
        ],
    }
