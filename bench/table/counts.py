"""A table of the networks' parameters: counted when it is asked for, not taken from records. torch is imported then."""

from __future__ import annotations

from dataclasses import replace

from bench.spec import DONE, BenchError
from bench.table import notes as words
from bench.table.layout import Layout, Row
from bench.table.panel import Cell, Condition, Head, Measure, Panel, PanelRow, Table

MILLION = 1_000_000
CHANNELS = 3  # of the images that the networks are counted for
NOWHERE = Condition(backbone="", budget="", protocol="", phantom=False, corpus=None, label_fraction=None)


def count_parameters(layout: Layout, published: Layout | None) -> Table:
    """The table of a layout whose rows are backbones and whose columns are parts of a segmentation network."""
    rows = [PanelRow(row.key, row.label, row.section, "", tuple(_cells(row, layout, published))) for row in layout.rows]
    panel = Panel(
        condition=NOWHERE,
        corpora=(),
        seeds=(),
        n=1,
        selections=(),
        data="",
        heads=tuple(Head(c.key, c.label, c.section, (c.key,), Measure(), is_mean=False) for c in layout.columns),
        rows=tuple(rows),
        against=published is not None,
        header=f"parameters in millions, for images of {CHANNELS} channels, of the networks as this version makes them",
    )
    notes = ["The decoder is that of the transfer; pretraining has its own."]
    if any(cell.inside is not None for cell in panel.cells) and published is not None:
        notes.append(f"≈ within ±{published.tolerance:g} of the published number.")
    panel = replace(panel, title=words.title(layout.title, panel), notes=tuple(notes))
    return Table(
        layout.name, layout.title, layout.source, (panel,), tuple(words.source(published) if published else ())
    )


def _cells(row: Row, layout: Layout, published: Layout | None) -> list[Cell]:
    """The parameters of the parts that the layout's columns name, in millions."""
    from bench.nets import Backbone, SegmentationNet, parameters

    network = SegmentationNet(Backbone(row.backbone, CHANNELS))
    found = {"encoder": parameters(network.backbone), "decoder": parameters(network.decoder)}
    found["total"] = parameters(network)
    cells = []
    for column in layout.columns:
        if column.task not in found:
            raise BenchError(f"the layout {layout.name} counts {column.task!r}, which is not one of {', '.join(found)}")
        number = found[column.task] / MILLION
        cell = Cell(unit="10^6", values=(number,), mean=number)
        printed = published.values.get((row.key, column.key)) if published is not None else None
        if printed is not None and published is not None:
            inside = abs(number - printed) <= published.tolerance if published.tolerance is not None else None
            cell = replace(cell, published=printed, published_status=DONE, difference=number - printed, inside=inside)
        cells.append(cell)
    return cells
