"""Tables: a pure function of records and a layout; no torch.

`build` sorts records into panels, one per condition, and turns every (row, column) into a number or a named gap;
`render` writes the result down and `draw` makes a picture of it. Scores of records are in [0, 1] (or mm); in tables
shares are percent.
"""

from __future__ import annotations

from bench.table.build import build
from bench.table.figure import draw
from bench.table.layout import default_layout, load_layout, load_layouts, load_published
from bench.table.panel import Table
from bench.table.render import FORMATS, render

__all__ = [
    "FORMATS",
    "Table",
    "build",
    "default_layout",
    "draw",
    "load_layout",
    "load_layouts",
    "load_published",
    "render",
]
