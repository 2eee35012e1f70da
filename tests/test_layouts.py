"""Layouts: rows with hyper-parameters, backbones and label fractions, and that a layout's cells fill its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.registry import Registry, scan
from bench.run.cell import record_of
from bench.run.grid import Request, expand
from bench.spec import DONE, BenchError
from bench.table import FORMATS, Table, build, load_layout, load_layouts, load_published, render
from bench.table.layout import Column, Layout, Row, read_layout
from bench.table.panel import UNAVAILABLE

HPARAMS = {"clusters": 16, "grid": 8, "mixup": True}


def record(method: str, task: str, score: float, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "schema": 1,
        "method": method,
        "label": method,
        "hparams": HPARAMS,
        "task": task,
        "corpus": "photos",
        "phantom": False,
        "backbone": "tiny",
        "budget": "paper",
        "protocol": "finetune",
        "label_fraction": 1.0,
        "seed": 0,
        "status": DONE,
        "reason": "",
        "metric": "dsc",
        "score": score,
        "higher_is_better": True,
        "selection": "-",
    } | changes
    names = ("label", "task", "seed", "backbone", "label_fraction")
    return fields | {"cell_key": "-".join(str(fields[name]) for name in names)}


def numbers(table: Table, panel: int = 0) -> dict[tuple[str, str], float | str]:
    shown = table.panels[panel]
    return {
        (row.label, head.name): cell.status if cell.mean is None else round(cell.mean, 6)
        for row in shown.rows
        for head, cell in zip(shown.heads, row.cells, strict=True)
    }


def layout(*rows: Row, columns: tuple[Column, ...] = (Column("veins", "Veins"),)) -> Layout:
    return Layout("mine", "T", "S", columns=columns, rows=rows)


# ---------------------------------------------------------------------------------------------------------------- table


def test_a_row_takes_the_records_with_its_hyper_parameters() -> None:
    rows = [Row("rd", f"C = {number}", name=f"c{number}", set={"clusters": number}) for number in (4, 16)]
    records = [
        record("rd", "veins", 0.4, label="rd[clusters=4]", hparams=HPARAMS | {"clusters": 4}),
        record("rd", "veins", 0.6),  # the default need not stand in the label
        record("rd", "veins", 0.7, label="rd[clusters=4,grid=2]", hparams=HPARAMS | {"clusters": 4, "grid": 2}),
    ]
    assert numbers(build(records, layout(*rows))) == {
        ("C = 4", "veins"): 40.0,
        ("C = 16", "veins"): 60.0,
        ("rd[clusters=4,grid=2]", "veins"): 70.0,  # named by no row: one of its own, below
    }


def test_a_record_that_does_not_say_its_hyper_parameters_is_known_by_its_label() -> None:
    rows = [Row("rd", f"C = {number}", name=f"c{number}", set={"clusters": number}) for number in (4, 16)]
    old = record("rd", "veins", 0.4, label="rd[clusters=4]")
    del old["hparams"]
    assert numbers(build([old], layout(*rows)))["C = 4", "veins"] == 40.0
    assert numbers(build([old], layout(*rows)))["C = 16", "veins"] == "missing"


def test_rows_with_backbones_share_a_panel_and_others_split_by_them() -> None:
    rows = [Row("rd", name, name=name, backbone=name) for name in ("tiny", "large")]
    records = [record("rd", "veins", 0.5), record("rd", "veins", 0.7, backbone="large")]
    strange = record("rd", "veins", 0.9, backbone="huge")
    made = build([*records, strange], layout(*rows))
    assert len(made.panels) == 1 and "tiny" not in made.panels[0].header
    assert numbers(made) == {("tiny", "veins"): 50.0, ("large", "veins"): 70.0}
    assert made.notes == ("1 record of backbones that this layout does not show: huge.",)
    assert len(build(records, layout(Row("rd", "Rd"))).panels) == 2


def test_columns_of_one_task_take_a_label_fraction_each() -> None:
    columns = tuple(Column("veins", f"{share:.0%}", name=f"v{share}", label_fractions=(share,)) for share in (0.2, 1.0))
    records = [record("rd", "veins", 0.5, label_fraction=0.2), record("rd", "veins", 0.7)]
    made = build(records, layout(Row("rd", "Rd"), columns=columns))
    assert numbers(made) == {("Rd", "v0.2"): 50.0, ("Rd", "v1.0"): 70.0}
    assert "labels as the columns say" in made.panels[0].header


def test_published_numbers_belong_to_rows_by_name() -> None:
    rows = (Row("rd", "C = 4", name="c4", set={"clusters": 4}), Row("rd", "C = 16", name="c16", set={"clusters": 16}))
    printed = replace(layout(*rows), values={("c4", "veins"): 50.0, ("c16", "veins"): 58.0})
    records = [record("rd", "veins", 0.6)]
    cells = {row.label: row.cells[0] for row in build(records, printed, published=printed).panels[0].rows}
    assert cells["C = 4"].published == 50.0 and cells["C = 4"].difference is None
    assert cells["C = 16"].difference == pytest.approx(2.0)


@pytest.mark.parametrize("form", FORMATS)
def test_the_networks_have_as_many_parameters_as_the_paper_prints(form: str) -> None:
    made = build([], load_layout("ld_table3"), published=load_published("ld_table3"))
    cells = [cell for row in made.panels[0].rows for cell in row.cells]
    assert len(cells) == 18 and all(cell.inside for cell in cells)
    assert "0.92" in render(made, form, width=100, colour=False)


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_layout_like_another_takes_what_it_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'title = "B"\nsource = "S"\ntolerance = 1.0\nconditions = {budget = "paper"}\n'
        'columns = [{task = "a", label = "A"}]\nrows = [{method = "m", label = "M"}]'
    )
    (tmp_path / "mine.toml").write_text('like = "base"\ntitle = "T"\nsource = "S"\ntolerance = 2.0')
    made = read_layout(tmp_path / "mine.toml")
    assert [column.task for column in made.columns] == ["a"] and made.conditions == {"budget": "paper"}
    assert made.tolerance == 2.0 and made.title == "T" and made.rows == ()
    (tmp_path / "lost.toml").write_text('like = "nothing"\ntitle = "T"\nsource = "S"')
    with pytest.raises(BenchError, match=r"nothing\.toml cannot be read"):
        read_layout(tmp_path / "lost.toml")


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = 'rows = [{method = "m", label = "A"}, {method = "m", label = "B", set = {x = 1}}]'
    (tmp_path / "mine.toml").write_text(f'title = "T"\nsource = "S"\n{rows}')
    with pytest.raises(BenchError, match="names the row 'm' twice; give each a name of its own"):
        read_layout(tmp_path / "mine.toml")


# ---------------------------------------------------------------------------------------------------------------- cells


@pytest.fixture(scope="module")
def shelves() -> Registry:
    return scan()


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(budget="paper", runs=tmp_path / "runs", results=tmp_path / "results")


@pytest.mark.parametrize("name", sorted(load_layouts()))
def test_the_cells_of_a_layout_fill_its_table(name: str, shelves: Registry, request_: Request) -> None:
    shown = load_layout(name)
    if shown.counted:
        with pytest.raises(BenchError, match=f"nothing of the layout {name} runs"):
            expand(replace(request_, layout=name), shelves)
        return
    grid = expand(replace(request_, layout=name), shelves)
    assert not grid.skipped and len({cell.key for cell in grid.transfers}) == len(grid.transfers)
    records = [record_of(cell, shelves, DONE, "") | {"score": 0.5} for cell in grid.transfers]
    made = build(records, shown, unavailable=grid.unavailable)
    assert len(made.panels) == 1 and made.notes == ()
    assert [row.label for row in made.panels[0].rows] == [row.label for row in shown.rows]
    lost = {label for (label, _), number in numbers(made).items() if isinstance(number, str)}
    assert lost <= {row.label for row in shown.rows if shelves.methods[row.method].needs}
    states = {number for number in numbers(made).values() if isinstance(number, str)}
    assert states <= {UNAVAILABLE}


def test_a_layout_counts_as_its_paper_does(shelves: Registry, request_: Request) -> None:
    grid = expand(replace(request_, layout="ld_table4"), shelves)
    assert sorted({cell.pretrain.label for cell in grid.transfers}) == [
        "pd_mix",
        "rd",
        "rd[clusters=12]",
        "rd[clusters=4]",
        "rd[clusters=8]",
    ]
    assert len(grid.transfers) == 5 * (8 + 4 * 5) and len(grid.pretrainings) == 5 * 2
    encoders = expand(replace(request_, layout="ld_fig9"), shelves)
    assert len({cell.pretrain.backbone for cell in encoders.transfers}) == 6
    shares = expand(replace(request_, layout="ld_fig10", methods="rd"), shelves)
    assert {cell.label_fraction for cell in shares.transfers} == {0.2, 0.4, 0.6, 0.8, 1.0}


def test_methods_and_tasks_choose_of_a_layout(shelves: Registry, request_: Request) -> None:
    few = replace(request_, layout="ld_table4", methods="rd", tasks="chase,hrf", seeds=2)
    grid = expand(few, shelves)
    assert {cell.task for cell in grid.transfers} == {"chase", "hrf"} and len(grid.transfers) == 4 * 2 * 2
    with pytest.raises(BenchError, match="leave no row of the layout ld_table4"):
        expand(replace(few, methods="moco"), shelves)
    with pytest.raises(BenchError, match=r"the layout ld_table4 sets rd\.clusters itself"):
        expand(replace(few, set=("rd.clusters=2",)), shelves)
    changed = expand(replace(few, set=("rd.grid=4",)), shelves)
    assert "rd[clusters=4,grid=4]" in {cell.pretrain.label for cell in changed.transfers}


def test_a_table_is_a_group_of_methods_in_its_order(shelves: Registry, request_: Request) -> None:
    rows = [row.method for row in load_layout("ld_table2").rows]
    asked = replace(request_, methods="ld_table2", tasks="chase,scr_lung")
    grid = expand(asked, shelves)
    assert list(grid.methods) == rows == shelves.groups("method")["ld_table2"]
    assert {method for method, _ in grid.unavailable} == {"supervised", "emmd"}
    assert {task for _, task in grid.unavailable} == {"scr_lung"}
    fewer = expand(replace(asked, methods="ld_table2,!cluster,!rd"), shelves)
    cluster = shelves.groups("method")["cluster"]
    assert list(fewer.methods) == [row for row in rows if row not in cluster and row != "rd"]
    with pytest.raises(BenchError, match="rows of the table ld_table4 are more than methods: write --layout ld_table4"):
        expand(replace(asked, methods="ld_table4"), shelves)


def test_what_no_plug_in_answers_to_is_named(request_: Request, shelves: Registry) -> None:
    fewer = replace(shelves, methods={name: shelves.methods[name] for name in ("scratch", "rd")})
    grid = expand(replace(request_, layout="ld_table4"), fewer)
    assert grid.skipped == (("ld_table4, row pd_mix", "nothing of that name is registered"),)
