"""From choices to cells, and what of them is left to do."""

from __future__ import annotations

from bench.run.grid.cells import BASELINE_GROUP, Grid, expand, expand_layout
from bench.run.grid.planning import PlanRow, memory_needed, plan, totals
from bench.run.grid.request import OPTIONS, Request, load_profile, parse_folds, parse_fractions

__all__ = [
    "BASELINE_GROUP",
    "OPTIONS",
    "Grid",
    "PlanRow",
    "Request",
    "expand",
    "expand_layout",
    "load_profile",
    "memory_needed",
    "parse_folds",
    "parse_fractions",
    "plan",
    "totals",
]
