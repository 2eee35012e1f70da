"""Figures of tables: what stands in them, that they depend on the table alone, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench import cli
from bench.data.store import Store
from bench.spec import BenchError
from bench.table import Table, build, draw, load_layout
from bench.table.figure import FIGURES, picture
from tests.test_table import column, golden_table, table


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def curve(phantom: bool = True) -> Table:
    records = [
        item
        for share in (0.2, 0.4, 0.6, 0.8, 1.0)
        for method, corpus, base in (("scratch", None, 0.5), ("rd", "chestxray8", 0.6))
        for item in column(
            method,
            "scr_heart",
            [base + 0.2 * share, base + 0.22 * share],
            label_fraction=share,
            corpus=corpus,
            backbone="tiny_vgg16",
            phantom=phantom,
        )
    ]
    return build(records, load_layout("ld_fig10"))


def test_a_chart_per_task_with_rows_marks_and_notes() -> None:
    made = golden_table("real")
    figure = picture(made)
    said = words(figure)
    charts = sum(sum(head.is_mean or bool(head.measure.metric) for head in panel.heads) for panel in made.panels)
    assert len(figure.axes) == charts == 5
    for part in ("alpha", "graded", "n/a", "†§", "¶", "DSC, % →", "PHANTOM"):
        assert (part in said) == (part != "PHANTOM")
    for panel in made.panels:
        assert panel.header.split(" · ")[0] in said


def test_a_footnote_is_found_from_its_row() -> None:
    said = words(picture(golden_table("grid")))
    assert "gamma [1]" in said and "[1] read from the paper" in said


def test_published_numbers_and_rows_without_records() -> None:
    records = column("scratch", "chase", [0.7, 0.72], corpus=None, budget="paper", backbone="tiny_vgg16")
    layout = load_layout("ld_table2")
    plain = words(picture(build(records, layout)))
    assert "Not drawn, for there is no record: Supervised, InstDisc" in plain.replace("\n", " ")
    beside = picture(build(records, layout, published=layout))
    assert "Diamonds: published." in words(beside) and "EmbInva" in words(beside)
    assert len(beside.axes) == 14


def test_label_fractions_are_curves() -> None:
    figure = picture(curve())
    assert len(figure.axes) == 1
    lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert list(lines["Rd"].get_xdata()) == [20, 40, 60, 80, 100]
    assert lines["Rd"].get_ydata()[0] == pytest.approx(100 * (0.6 + 0.21 * 0.2))
    assert "PHANTOM" in words(figure) and "phantom: generated images" in words(figure)
    assert "PHANTOM" not in words(picture(curve(phantom=False)))


@pytest.mark.parametrize("suffix", FIGURES)
def test_a_figure_depends_on_the_table_alone(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("a", "b")]
    for file in files:
        draw(golden_table("real"), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 5000


def test_what_cannot_be_drawn_is_explained(tmp_path: Path) -> None:
    made = table(column("alpha", "veins", [0.5, 0.6]))
    with pytest.raises(BenchError, match=r"written as \.png, \.pdf, \.svg, not as 'a\.jpg'"):
        draw(made, tmp_path / "a.jpg")
    for name in ("ld_table2", "ld_table3"):  # without records; counted, not measured
        with pytest.raises(BenchError, match="there is no score to draw"):
            draw(build([], load_layout(name)), tmp_path / "a.png")
    with pytest.raises(BenchError, match="cannot be written"):
        draw(made, tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]])
def test_flat_columns_and_single_seeds_have_an_axis_of_some_width(scores: list[float]) -> None:
    axes = picture(table(column("alpha", "veins", scores))).axes[0]
    low, high = axes.get_xlim()
    assert high - low >= 1 and low < 100 * scores[0] < high


def test_the_command_line_draws_and_plans_by_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_DATA", raising=False)
    store = Store(tmp_path / "runs", tmp_path / "results")
    for number, record in enumerate(column("scratch", "chase", [0.7, 0.72], corpus=None)):
        store.write(record | {"cell_key": f"{number:064d}"})
    file = tmp_path / "table.png"
    assert cli.main(["table", "--results", str(store.results), "--figure", str(file)]) == 0
    assert "71.00" in capsys.readouterr().out and file.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["table", "--results", str(store.results), "--figure", "table.jpg"]) == 2
    assert ".png, .pdf, .svg" in capsys.readouterr().err
    asked = ["plan", "--layout", "ld_table4", "--tasks", "chase", "--budget", "smoke", "--runs", str(store.runs)]
    assert cli.main(asked) == 0
    assert "rd[clusters=12]" in capsys.readouterr().out
    assert cli.main(["plan", "--layout", "ld_tabel4"]) == 2
    assert "did you mean 'ld_table4'" in capsys.readouterr().err
