"""What was handed over to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.cli.show.amounts import counted

if TYPE_CHECKING:
    from bench.run.cluster.driver import Submission
    from bench.run.grid import Grid


def submission_lines(submission: Submission) -> list[str]:
    """What was submitted, what was in the queue already, and what to do next."""
    lines = []
    if submission.dead:
        gone = counted(submission.dead, "cell was", "cells were")
        lines.append(f"{gone} left without a result by jobs that are gone: recorded, and submitted again")
    if submission.arrays:
        what = [(submission.new("pretrain"), "pretraining"), (submission.new("transfer"), "transfer")]
        cells = " and ".join(counted(number, noun) for number, noun in what if number)
        jobs = f"{counted(len(submission.arrays), 'array')} (jobs {', '.join(submission.jobs)})"
        lines.append(f"submitted {cells} as {jobs}")
    if submission.queued:
        held = submission.standing.jobs(cell.key for cell in submission.queued)
        lines.append(f"{counted(len(submission.queued), 'cell')} in the queue already (jobs {', '.join(held)})")
    return lines


def submission_data(submission: Submission, grid: Grid) -> dict[str, Any]:
    """The same for programs."""
    return {
        "cells": len(grid.transfers),
        "open": len(submission.open),
        "jobs": submission.jobs,
        "submitted": {kind: submission.new(kind) for kind in ("pretrain", "transfer")},
        "queued": len(submission.queued),
        "dead": submission.dead,
    }
