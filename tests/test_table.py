"""Tables: golden files, every gap, tie groups, conditions that never mix, and the published numbers themselves.

`python tests/test_table.py` rewrites the golden files after a deliberate change; look at the difference before you
commit it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.cli.show.cells import only
from bench.registry import Registry
from bench.spec import BenchError, TaskSpec
from bench.stats import interval
from bench.table import FORMATS, Table, build, default_layout, load_layout, load_layouts, load_published, render
from bench.table.layout import Column, Layout, Mean, Row, read_layout
from bench.table.panel import MARKS

GOLDEN = Path(__file__).parent / "golden" / "table"
SUFFIXES = {"text": "txt", "md": "md", "csv": "csv", "latex": "tex", "json": "json"}
SELECTION = "lowest validation loss (20 % of train)"
SOURCES: dict[str, dict[str, Any]] = {
    "method": {
        name: SimpleNamespace(name=name, version=1, origin=SimpleNamespace(does=does))
        for name, does in {"alpha": "a1", "beta": "b1", "gamma": "g2"}.items()
    },
    "task": {},
}
FOOTNOTES = {"gamma": "read from the paper; its code & data are not public"}
ORDER = ["scratch", "alpha", "beta", "gamma"]
WHY = "graded needs image-level grades, which the corpus photos does not have"


def spec(name: str, title: str, section: str, group: str) -> TaskSpec:
    empty = dict.fromkeys(("licence", "citation", "source", "revision", "layout"), "")
    return TaskSpec(name, 1, title, (group,), section, "corpus", 3, folders=(), train=20, test=8, **empty)


TASKS = {
    task.name: task
    for task in (
        spec("veins", "Veins", "Vessel", "eyes"),
        spec("disc", "Disc_OD", "Disc & cup", "eyes"),
        spec("cup", "Cup", "Disc & cup", "eyes"),
        spec("heart", "Heart", "Organ", "chests"),
    )
}


def record(method: str, task: str, seed: int, score: float | None, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "schema": 1,
        "method": method,
        "label": method,
        "task": task,
        "group": "eyes",
        "corpus": None if method == "scratch" else "photos",
        "phantom": False,
        "backbone": "tiny",
        "budget": "quick",
        "protocol": "finetune",
        "label_fraction": 1.0,
        "seed": seed,
        "status": "done",
        "reason": None,
        "metric": "dsc",
        "score": score,
        "higher_is_better": True,
        "n_images": 8,
        "selection": SELECTION,
        "sources": {"method": f"{method[0]}1", "task": "t1"},
    }
    fields |= changes
    fields.setdefault("cell_key", "-".join(str(fields[name]) for name in ("label", "task", "seed", "budget", "corpus")))
    fields["cell_key"] += f"-{fields['label_fraction']}"
    return fields


def column(method: str, task: str, scores: list[float], **changes: Any) -> list[dict[str, Any]]:
    return [record(method, task, seed, score, **changes) for seed, score in enumerate(scores)]


def table(records: list[dict[str, Any]], **options: Any) -> Table:
    return build(records, default_layout(records, TASKS, ORDER), **options)


def cells(made: Table, panel: int = 0) -> dict[tuple[str, str], Any]:
    shown = made.panels[panel]
    return {
        (row.label, head.name): cell for row in shown.rows for head, cell in zip(shown.heads, row.cells, strict=True)
    }


# -------------------------------------------------------------------------------------------------------- golden files


def golden_records(name: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((GOLDEN / "records" / f"{name}.json").read_text(encoding="utf-8"))
    return records


def golden_table(name: str) -> Table:
    records = golden_records(name)
    if name == "paper":
        return build(records, load_layout("ld_table2"), published=load_published("ld_table2"))
    if name == "real":
        return table(records, unavailable={("graded", task): WHY for task in ("veins", "disc")})
    return table(records, current_sources=SOURCES, notes=FOOTNOTES)


def golden_text(name: str, form: str) -> str:
    return render(golden_table(name), form, width=100, colour=False)


GOLDEN_FILES = [(name, form) for name in ("grid", "real") for form in FORMATS]
GOLDEN_FILES += [("paper", form) for form in FORMATS if form != "json"]


@pytest.mark.parametrize(("name", "form"), GOLDEN_FILES)
def test_golden_files(name: str, form: str) -> None:
    expected = (GOLDEN / f"{name}.{SUFFIXES[form]}").read_text(encoding="utf-8")
    assert golden_text(name, form) == expected


@pytest.mark.parametrize("name", ["grid", "real", "paper"])
def test_the_order_of_records_changes_nothing(name: str) -> None:
    records = golden_records(name)
    layout = load_layout("ld_table2") if name == "paper" else default_layout(records, TASKS, ORDER)
    assert render(build(records[::-1], layout), "json") == render(build(records, layout), "json")


def test_latex_has_as_many_cells_in_every_line_as_columns() -> None:
    for name in ("grid", "real", "paper"):
        lines = golden_text(name, "latex").splitlines()
        width = 0
        for line in lines:
            if line.startswith("\\begin{tabular}"):
                width = len(line.removeprefix("\\begin{tabular}{").removesuffix("}"))
            elif line == "\\end{tabular}":
                width = 0
            elif width and line.endswith("\\\\") and "multicolumn" not in line:
                assert line.replace("\\&", "").count("&") == width - 1, line
        text = "\n".join(lines).replace("\\{", "").replace("\\}", "")
        assert text.count("{") == text.count("}")
        assert not set("±≈·‡–…≥†§¶") & set(text)
        assert not re.search(r"\\\\\s*[*\[]", text)  # the line break would take it as its argument


def test_csv_and_json_say_the_same() -> None:
    made = golden_table("grid")
    rows = list(csv.DictReader(io.StringIO(render(made, "csv"))))
    data = json.loads(render(made, "json"))
    flat = [row for panel in data["panels"] for row in panel["rows"]]
    assert len(rows) == len(flat) > 3
    for line, row in zip(rows, flat, strict=True):
        for name, cell in row["cells"].items():
            assert line[name] == ("" if cell["mean"] is None else f"{cell['mean']:.2f}")
            assert line[f"{name}_status"] == cell["status"]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_text_fits_the_terminal(width: int) -> None:
    lines = render(golden_table("paper"), "text", width=width, colour=False).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("method") for line in lines) == {80: 4, 120: 3, 200: 2}[width]


def test_colour_changes_no_letter() -> None:
    plain = render(golden_table("grid"), "text", width=120, colour=False)
    coloured = render(golden_table("grid"), "text", width=120, colour=True)
    assert coloured != plain
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


# ------------------------------------------------------------------------------------------------------------- numbers


def test_mean_and_spread_over_seeds_in_percent() -> None:
    cell = cells(table(column("alpha", "veins", [0.70, 0.71, 0.75])))["alpha", "veins"]
    assert cell.mean == pytest.approx(72.0)
    assert cell.std == pytest.approx(2.6457513110645906)
    assert cell.n == 3


def test_one_seed_has_no_spread_and_nothing_is_best() -> None:
    records = column("alpha", "veins", [0.7]) + column("beta", "veins", [0.8])
    made = table(records)
    assert not any(cell.best for cell in cells(made).values())
    text = render(made, "text", width=120, colour=False)
    assert "80.00" in text and "±" not in text
    assert "\nNothing is marked: with one seed nothing can be said of methods.\n" in text


def test_a_single_row_is_not_best() -> None:
    assert not any(cell.best for cell in cells(table(column("alpha", "veins", [0.7, 0.8]))).values())


def cased(method: str, task: str, scores: list[float], cases: int = 20, **changes: Any) -> list[dict[str, Any]]:
    """Records of schema 2 with these scores: what every case adds is the same for all rows, but for a little."""
    rng = np.random.default_rng([*method.encode(), *task.encode()])
    own = np.random.default_rng([*task.encode()]).normal(0, 0.06, cases)
    made = []
    for seed, score in enumerate(scores):
        values = score + own - own.mean() + (noise := rng.normal(0, 0.01, cases)) - noise.mean()
        told = {"names": [f"{task}{at}" for at in range(cases)], "patients": [""] * cases}
        told |= {"scores": {"dsc": {"": values.tolist()}}}
        more = {"schema": 2, "cases": told, "n_images": cases, "n_cases": cases, "false_marks": None}
        made.append(record(method, task, seed, score, **(more | changes)))
    return made


def test_rows_that_cannot_be_told_from_the_best_are_marked() -> None:
    records = cased("alpha", "veins", [0.80, 0.81, 0.82]) + cased("beta", "veins", [0.79, 0.81, 0.80])
    records += cased("scratch", "veins", [0.60, 0.61, 0.62])
    made = table(records)
    found = cells(made)
    assert [found[method, "veins"].best for method in ("alpha", "beta", "scratch")] == [True, True, False]
    text = render(made, "md")
    assert "not to be told from the best of its column (p ≥ 0.05" in text
    assert "The least lead that would have been found, in % (seeds that half would take): Veins " in text


def test_an_interval_is_the_statistics_own() -> None:
    records = cased("alpha", "veins", [0.70, 0.71, 0.75])
    scores = 100 * np.array([item["cases"]["scores"]["dsc"][""] for item in records])
    expected = interval(scores)
    cell = cells(table(records))["alpha", "veins"]
    assert cell.half == pytest.approx((expected.high - expected.low) / 2) and cell.half > cell.std
    assert cell.spread == cell.half
    old = cells(table(records, intervals=False))["alpha", "veins"]
    assert old.half is None and old.spread == old.std
    assert "mean ± half width of its 95 % interval for new seeds and new cases; n = 3" in render(table(records), "md")
    assert "mean ± standard deviation over n = 3 seeds" in render(table(records, intervals=False), "md")


def test_one_seed_has_an_interval_of_its_cases_only() -> None:
    made = table(cased("alpha", "veins", [0.7]) + cased("beta", "veins", [0.9]))
    text = render(made, "text", width=200, colour=False)
    assert cells(made)["alpha", "veins"].half > 0 and not any(cell.best for cell in cells(made).values())
    assert "cases only: with one seed" in text and "with one seed nothing can be said of methods" in text


def test_marks_of_a_mean_count_every_task() -> None:
    """A lead that no single task shows is found on the mean of several."""
    names = ("veins", "disc", "cup")
    records = []
    for at, task in enumerate(names):
        jitter = [0.02 * ((seed + at) % 3 - 1) for seed in range(3)]
        records += cased("alpha", task, [0.70 + value for value in jitter])
        records += cased("beta", task, [0.74 - value for value in jitter])
        records += cased("gamma", task, [0.70 + value / 2 for value in jitter])
    found = cells(table(records))
    assert found["beta", "mean_eyes"].best
    assert found["beta", "mean_eyes"].half < max(found["beta", task].half for task in names)
    assert len(found["beta", "mean_eyes"].designs) == 3


def test_records_without_scores_of_cases_are_not_marked_and_say_why() -> None:
    records = column("alpha", "veins", [0.80, 0.81, 0.82]) + column("beta", "veins", [0.5, 0.51, 0.52])
    made = table(records)
    assert not any(cell.best for cell in cells(made).values())
    text = render(made, "md")
    assert "mean ± standard deviation over n = 3 seeds" in text
    assert "Nothing is marked under Veins: its records hold no scores of single cases to compare by." in text


def test_rows_on_different_cases_are_not_printed() -> None:
    records = cased("alpha", "veins", [0.8, 0.82]) + cased("beta", "veins", [0.7, 0.72])
    for item in records[2:]:
        item["cases"]["scores"]["dsc"][""][3] = None
    with pytest.raises(BenchError, match="alpha and beta of Veins are averaged over 20 and 19 cases that are not"):
        table(records)
    for item in records[:2]:
        item["cases"]["scores"]["dsc"][""][3] = None
    found = cells(table(records))
    assert len(found["alpha", "veins"].designs[0].cases) == 19


def test_images_of_a_patient_are_one_case() -> None:
    records = cased("alpha", "veins", [0.8, 0.82]) + cased("beta", "veins", [0.7, 0.72])
    for item in records:
        item["cases"]["patients"] = [f"p{at // 2}" for at in range(20)]
    one = cells(table(records))["alpha", "veins"].designs[0]
    values = records[0]["cases"]["scores"]["dsc"][""]
    assert len(one.cases) == 10
    assert one.of(0, "p3") == pytest.approx(50 * (values[6] + values[7]))


def test_cases_without_target_are_counted_with_what_rows_mark_in_them() -> None:
    records = cased("alpha", "veins", [0.8], n_cases=22, false_marks=0.5)
    records += cased("beta", "veins", [0.7], n_cases=22, false_marks=0.0)
    note = next(note for note in table(records).panels[0].notes if "without target" in note)
    assert (
        note == "Veins: 20 of 22 images; 2 without target, in which rows mark something falsely: alpha 50 %, beta 0 %."
    )


def test_a_column_with_a_single_seed_somewhere_is_not_marked() -> None:
    records = cased("alpha", "veins", [0.80, 0.81]) + cased("beta", "veins", [0.9])
    made = table(records)
    assert not any(cell.best for cell in cells(made).values())
    assert "Nothing is marked under Veins: some row has fewer than two seeds in common." in render(made, "md")
    assert "(n=1)" in render(made, "md")


DICE = {"title": "DSC", "unit": "%", "higher_is_better": True, "scale": 100.0, "digits": 2}
LENGTH = {"title": "MRE", "unit": "mm", "higher_is_better": False, "scale": 1.0, "digits": 3}
SHARE = {"title": "Hits", "unit": "%", "higher_is_better": True, "scale": 100.0, "digits": 1}


def measured(method: str, task: str, lengths: list[float], **changes: Any) -> list[dict[str, Any]]:
    """Records of schema 2 with a length as headline and a share beside it."""
    return [
        record(method, task, seed, length, schema=2, metric="length", higher_is_better=False,
               metrics={"length": LENGTH, "share": SHARE}, scores={"length": length, "share": 1 / (1 + length)},
               cases={"names": ["a", "b", "c"], "patients": [""] * 3, "scores": {
                   "length": {"": [length - 0.1, length, length + 0.1 + seed / 100]}}},
               **changes)
        for seed, length in enumerate(lengths)
    ]  # fmt: skip


def test_a_lower_error_is_better() -> None:
    made = table(measured("alpha", "heart", [2.50, 2.52, 2.51]) + measured("beta", "heart", [1.5, 1.52, 1.51]))
    found = cells(made)
    assert found["beta", "heart"].best and not found["alpha", "heart"].best
    assert found["beta", "heart"].mean == pytest.approx(1.51)  # mm, not percent
    assert "MRE in mm, lower is better." in made.panels[0].notes
    for form in ("text", "md", "latex"):
        assert "Heart (mm)" in render(made, form) and "1.510 ± 0." in render(made, form).replace(r"$\pm$", "±")


def test_tasks_of_different_metrics_are_panels_of_their_own() -> None:
    """With the digits, the direction and the mean of each; nothing is averaged over two metrics."""
    records = column("alpha", "veins", [0.7, 0.72]) + column("alpha", "disc", [0.8, 0.82])
    records += measured("alpha", "cup", [2.0, 2.2]) + measured("alpha", "heart", [4.0, 4.2], group="eyes")
    made = table(records)
    assert [panel.measure.metric for panel in made.panels] == ["dsc", "length"]
    assert [[head.name for head in panel.heads if not head.is_mean] for panel in made.panels] == [
        ["veins", "disc"], ["cup", "heart"]
    ]  # fmt: skip
    assert cells(made)["alpha", "mean_eyes"].mean == pytest.approx(76.0)
    assert "length" not in made.panels[0].header and "MRE in mm" in made.panels[1].header
    lines = list(csv.DictReader(io.StringIO(render(made, "csv"))))
    assert [(line["metric"], line["unit"]) for line in lines] == [("dsc", "%"), ("length", "mm")]
    assert lines[1]["cup"] == "2.100" and lines[0]["veins"] == "71.00"


def test_another_metric_than_the_headline_can_be_asked_for() -> None:
    records = measured("alpha", "heart", [1.0, 3.0]) + column("alpha", "veins", [0.7])
    layout = default_layout(records, TASKS, ORDER)
    made = build(records, layout, metric="share")
    assert cells(made)["alpha", "heart"].mean == pytest.approx(37.5)
    assert made.panels[0].measure.title == "Hits" and len(made.panels) == 1
    assert "1 record of tasks without share: veins." in made.notes
    with pytest.raises(BenchError, match="no record has the metric 'shares'; did you mean 'share'"):
        build(records, layout, metric="shares")
    with pytest.raises(BenchError, match="no record has the metric 'x'; records have dsc, length, share"):
        build(records, layout, metric="x")


def test_a_record_that_lacks_the_metric_is_a_gap() -> None:
    records = measured("alpha", "heart", [1.0]) + measured("beta", "heart", [2.0])
    del records[1]["scores"]["share"]
    made = build(records, default_layout(records, TASKS, ORDER), metric="share")
    assert cells(made)["beta", "heart"].status == "no score"


def test_folds_are_averaged_within_a_seed_and_never_over_a_part() -> None:
    def folds(method: str, seed: int, scores: dict[int, float]) -> list[dict[str, Any]]:
        return [
            record(method, "veins", seed, score, fold=fold, folds=3, cell_key=f"{method}{seed}{fold}")
            for fold, score in scores.items()
        ]

    records = folds("alpha", 0, {0: 0.6, 1: 0.7, 2: 0.8}) + folds("alpha", 1, {0: 0.5, 1: 0.7, 2: 0.9})
    records += folds("beta", 0, {0: 0.6, 1: 0.7, 2: 0.8}) + folds("beta", 1, {0: 0.9, 2: 0.9})
    records += folds("gamma", 0, {0: 0.9})
    made = table(records)
    found = cells(made)
    assert found["alpha", "veins"].values == pytest.approx((70.0, 70.0)) and found["alpha", "veins"].n == 2
    assert found["beta", "veins"].values == pytest.approx((70.0,))
    assert found["gamma", "veins"].status == "part of the folds" and found["gamma", "veins"].mark == "1/3"
    assert "3 folds x seeds 0-1" in made.panels[0].header
    assert "mean ± standard deviation over n = 2 seeds, each the mean over 3 folds" in render(made, "md")
    assert "k/m = only k of the m folds" in render(made, "md")


def test_a_task_with_two_metrics_is_refused() -> None:
    records = column("alpha", "veins", [0.7]) + column("beta", "veins", [0.7], metric="iou")
    with pytest.raises(BenchError, match=r"task 'veins' disagree on the metric.*dsc, iou"):
        table(records)


def test_mean_only_over_tasks_that_all_rows_have() -> None:
    records = (
        column("alpha", "veins", [0.6, 0.8]) + column("alpha", "cup", [0.8, 0.8]) + column("alpha", "disc", [0.1, 0.1])
    )
    records += column("beta", "veins", [0.5, 0.5]) + column("beta", "cup", [0.9, 0.7])
    records += [record("beta", "disc", seed, None, status="failed", reason="NaN") for seed in (0, 1)]
    records += [record("gamma", task, 0, None, status="failed", reason="NaN") for task in ("veins", "cup", "disc")]
    made = table(records)
    head = made.panels[0].heads[-1]
    assert (head.label, head.tasks) == ("mean (2/3)", ("veins", "cup"))
    found = cells(made)
    assert found["alpha", "mean_eyes"].values == pytest.approx((70.0, 80.0))
    assert found["beta", "mean_eyes"].mean == pytest.approx(65.0)
    assert found["gamma", "mean_eyes"].status == "failed"
    assert "mean (2/3): over Veins, Cup, which every compared row has." in made.panels[0].notes


def test_no_common_task() -> None:
    found = cells(table(column("alpha", "veins", [0.6]) + column("beta", "cup", [0.6])))
    assert {found[label, "mean_eyes"].status for label in ("alpha", "beta")} == {"no common task"}


def test_a_mean_of_tasks_with_different_seeds_has_no_spread() -> None:
    records = column("alpha", "veins", [0.6, 0.8]) + [record("alpha", "cup", seed, 0.5) for seed in (0, 7)]
    cell = cells(table(records))["alpha", "mean_eyes"]
    assert (cell.mean, cell.std, cell.n) == (pytest.approx(60.0), None, 0)


# ---------------------------------------------------------------------------------------------------------------- gaps


@pytest.mark.parametrize("status", ["failed", "blocked", "out of memory", "timed out", "running", "interrupted"])
def test_a_gap_shows_its_status_and_reason(status: str) -> None:
    reason = f"step 31: {'long ' * 40}\n\nTraceback (most recent call last)"
    records = [*column("alpha", "veins", [0.5]), record("beta", "veins", 0, None, status=status, reason=reason)]
    made = table(records)
    assert cells(made)["beta", "veins"].status == status
    text = render(made, "text", width=200, colour=False)
    assert MARKS[status] in text.split("DSC")[0]
    assert "step 31: long" in text and "… (beta on Veins, seed 0)" in text and "Traceback" not in text
    others = [mark for mark in MARKS.values() if mark != MARKS[status] and len(mark) > 1]
    assert not any(f"\n{mark} =" in text or f"\n{mark}:" in text for mark in others)


def test_a_missing_cell_and_a_score_that_is_none() -> None:
    records = column("alpha", "veins", [0.5]) + column("alpha", "cup", [0.5]) + column("beta", "veins", [float("nan")])
    made = table(records)
    found = cells(made)
    assert found["beta", "cup"].status == "missing"
    assert found["beta", "veins"].status == "no score"
    assert "– = missing, no record." in made.panels[0].notes
    assert "no score: the record says nan (beta on Veins, seed 0)" in made.panels[0].notes


def test_a_failed_seed_among_good_ones() -> None:
    records = column("alpha", "veins", [0.5, 0.6, 0.7]) + column("beta", "veins", [0.5, 0.6])
    records.append(record("beta", "veins", 2, None, status="timed out", reason="time limit"))
    text = render(table(records), "text", width=120, colour=False)
    assert "55.00 ± 7.07 (n=2)" in text
    assert "timeout = timed out: time limit (beta on Veins, seed 2)" in text


def test_many_reasons_are_counted() -> None:
    records = [record("alpha", "veins", seed, None, status="failed", reason=f"reason {seed}") for seed in range(9)]
    assert "failed: 3 more reasons, see `bench status`." in table(records).panels[0].notes


def test_older_source_is_marked() -> None:
    records = column("alpha", "veins", [0.5]) + column("gamma", "veins", [0.5])
    made = table(records, current_sources=SOURCES)
    assert cells(made)["gamma", "veins"].stale and not cells(made)["alpha", "veins"].stale
    assert "50.00‡" in render(made, "md")


@pytest.mark.parametrize(
    ("source", "stale"),
    [({"version": 1, "does": "a1"}, False), ({"version": 1, "does": "a0"}, True), ({"version": 2, "does": "a1"}, True)],
)
def test_a_source_is_its_version_and_what_it_does(source: dict[str, Any], stale: bool) -> None:
    made = table(column("alpha", "veins", [0.5], sources={"method": source}), current_sources=SOURCES)
    assert cells(made)["alpha", "veins"].stale == stale


# ----------------------------------------------------------------------------------------------- real data, leaks, gaps


def test_leaks_are_marked_by_kind_and_said_once_under_the_table() -> None:
    made = golden_table("real")
    found = cells(made)
    assert found["alpha", "disc"].leaks == ("test", "train") and found["alpha", "cup"].leaks == ("known",)
    assert found["scratch", "disc"].leaks == found["alpha", "veins"].leaks == ()
    assert found["alpha", "mean_eyes"].leaks == ("test", "train", "known")
    text = golden_text("real", "text")
    assert re.search(r"alpha .*\*?†§ .*¶", text)
    for mark, kind in (("†", "test"), ("§", "train"), ("¶", "known")):
        lines = [line for line in made.panels[0].notes if line.startswith(mark)]
        assert len(lines) == 1 and kind in lines[0]
    assert not any(note[0] in "†§¶" for note in made.panels[1].notes)  # the panel whose corpus lost its leaks
    line = next(csv.DictReader(io.StringIO(render(made, "csv"))))
    assert line["data"].startswith("veins (14/28, 28/28), ")


def test_the_header_counts_images_of_real_data_alone() -> None:
    assert "data veins (14/28, 28/28), disc (20/81), cup (14/45) · " in golden_table("real").panels[0].header
    phantom = column("alpha", "veins", [0.5], phantom=True, present=28, expected=28)
    assert "28" not in table(phantom).panels[0].header
    assert " · data" not in table(column("alpha", "veins", [0.5])).panels[0].header  # a record of before


def test_partial_data_and_its_split_are_said() -> None:
    notes = golden_table("real").panels[0].notes
    assert "disc: 20 of 81 images are there; the last third of the sorted names is the test part." in notes
    assert "cup: 14 of 45 images are there; the official split." in notes
    assert not any(note.startswith("veins: 28") for note in notes)


def test_rows_on_other_data_are_not_compared() -> None:
    made = golden_table("real")
    assert not any(cell.best for (_, name), cell in cells(made).items() if name in ("veins", "mean_eyes"))
    notes = made.panels[0].notes
    tied = next(note for note in notes if note.startswith("Nothing is marked under"))  # compared, and all alike
    assert "Disc" in tied and "Veins" not in tied and "mean" not in tied
    assert "Veins, mean: the rows have not all the same data, so they do not compare." in notes
    assert not any(note.startswith("No best is marked") for note in notes)


def test_a_corpus_with_and_without_its_leaks_makes_two_panels() -> None:
    headers = [panel.header for panel in golden_table("real").panels]
    assert len(headers) == 2 and "corpus photos (8 leaked images left out)" in headers[1]
    alone = table(column("alpha", "veins", [0.5], dropped=8) + column("scratch", "veins", [0.4]))
    assert len(alone.panels) == 1 and "corpus photos (8 leaked images left out)" in alone.panels[0].header
    assert any(note.startswith("--drop-leaks left 8 images of photos out") for note in alone.panels[0].notes)


def test_corpora_of_one_name_that_hold_other_images_make_two_panels() -> None:
    first = column("alpha", "veins", [0.5, 0.6], corpus_fingerprint="a" * 64)
    other = column("beta", "veins", [0.7, 0.8], corpus_fingerprint="b" * 64)
    same = [item | {"corpus_fingerprint": "a" * 64} for item in other]
    scratch = column("scratch", "veins", [0.4, 0.5])
    assert len(table(first + same + scratch).panels) == 1
    headers = [panel.header for panel in table(first + other + scratch).panels]
    assert ["its content aaaaaaa" in header for header in headers] == [True, False]
    assert ["its content bbbbbbb" in header for header in headers] == [False, True]


def test_a_budget_keeps_the_baseline_that_was_judged_alike() -> None:
    trained = column("alpha", "veins", [0.5], budget="quick (steps=100)", transfer_budget="quick")
    found = trained + column("scratch", "veins", [0.4]) + column("scratch", "veins", [0.3], budget="smoke")
    kept = only(found, Registry(), None, None, {"budget": "quick (steps=100)"})
    assert [item["score"] for item in kept] == [0.5, 0.4]


def test_a_method_that_cannot_be_had_is_not_available() -> None:
    found = cells(golden_table("real"))
    assert found["graded", "veins"].status == found["graded", "disc"].status == "not available"
    assert found["graded", "cup"].status == "missing"
    note = next(note for note in golden_table("real").panels[0].notes if note.startswith("n/a"))
    assert note == f"n/a = not available: {WHY} (graded on Veins, and 1 more)"


# ---------------------------------------------------------------------------------------------- conditions, duplicates


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "large"),
        ("budget", "quick (steps=500)"),
        ("protocol", "linear"),
        ("corpus", "films"),
        ("phantom", True),
        ("label_fraction", 0.2),
    ],
)
def test_conditions_never_mix(field: str, value: Any) -> None:
    records = column("alpha", "veins", [0.5]) + column("alpha", "veins", [0.9], **{field: value})
    made = table(records)
    assert len(made.panels) == 2
    assert {cells(made, panel)["alpha", "veins"].mean for panel in (0, 1)} == {50.0, 90.0}
    shown = "20 % labels" if field == "label_fraction" else "(phantom)" if value is True else str(value)
    assert sum(shown in panel.header for panel in made.panels) == 1


def test_phantom_stands_in_the_title_of_every_phantom_panel() -> None:
    records = column("alpha", "veins", [0.5], phantom=True) + column(
        "alpha", "veins", [0.5], phantom=True, budget="paper"
    )
    made = table(records + column("alpha", "veins", [0.5]))
    assert ["phantom: generated images, not data" in panel.title for panel in made.panels] == [False, True, True]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_first_line_of_a_phantom_table_says_so(width: int) -> None:
    records = paper_records("rd", {"chase": 0.8109}, phantom=True)
    for layout in (load_layout("ld_table2"), default_layout(records, TASKS, ORDER)):
        text = render(build(records, layout), "text", width=width, colour=False)
        assert "phantom" in text.splitlines()[0]


def test_a_method_without_corpus_joins_every_panel_that_agrees() -> None:
    records = column("scratch", "veins", [0.4]) + column("scratch", "heart", [0.3])
    records += column("alpha", "veins", [0.5]) + column("alpha", "heart", [0.5], corpus="films")
    records += column("alpha", "veins", [0.6], budget="paper")
    made = table(records)
    panels = {panel.header: {row.label: row for row in panel.rows} for panel in made.panels}
    with_scratch = [header for header, rows in panels.items() if "scratch" in rows]
    assert len(panels) == 3
    assert sorted(header.split(" · ")[0] for header in with_scratch) == ["corpus films", "corpus photos"]
    assert all("quick" in header for header in with_scratch)
    assert all(len(panel.heads) == 1 for panel in made.panels)


def test_scratch_alone_is_shown() -> None:
    records = column("scratch", "veins", [0.4]) + column("scratch", "heart", [0.3]) + column("alpha", "veins", [0.5])
    made = table(records)
    assert [panel.header.split(" · ")[0] for panel in made.panels] == ["corpus photos", "no corpus"]
    assert cells(made, 1)["scratch", "heart"].mean == pytest.approx(30.0)


def test_a_changed_hyper_parameter_is_a_row_of_its_own() -> None:
    records = column("alpha", "veins", [0.5]) + column("beta", "veins", [0.6])
    records += column("alpha", "veins", [0.9], label="alpha (temperature=0.1)")
    assert [row.label for row in table(records).panels[0].rows] == ["alpha", "alpha (temperature=0.1)", "beta"]


def test_two_keys_of_one_cell_are_not_averaged() -> None:
    records = column("alpha", "veins", [0.5], cell_key="k1") + column("alpha", "veins", [0.9], cell_key="k2")
    made = table(records)
    assert cells(made)["alpha", "veins"].status == "ambiguous"
    assert any("keys k1-1.0, k2-1.0" in note for note in made.panels[0].notes)
    assert cells(table([records[0], records[0]]))["alpha", "veins"].n == 1


def test_the_present_source_wins_over_an_older_one() -> None:
    old = {"method": "a0", "task": "t1"}
    records = column("alpha", "veins", [0.5], cell_key="k1", sources=old) + column(
        "alpha", "veins", [0.9], cell_key="k2"
    )
    made = table(records, current_sources=SOURCES)
    assert cells(made)["alpha", "veins"].mean == pytest.approx(90.0)
    assert any("1 record of older source left out" in note for note in made.panels[0].notes)


def test_other_schemas_are_counted_and_left_out() -> None:
    made = table(column("alpha", "veins", [0.5]) + column("alpha", "veins", [0.9], schema=99))
    assert cells(made)["alpha", "veins"].mean == pytest.approx(50.0)
    assert made.notes == ("1 record with schema 99 left out: this version reads schema 2.",)
    broken = record("alpha", "cup", 0, 0.5)
    del broken["budget"]
    assert "fields are missing (the first lacks budget)" in table([broken]).notes[0]


@pytest.mark.parametrize("form", FORMATS)
def test_no_records(form: str) -> None:
    made = build([], load_layout("ld_table2"), published=load_published("ld_table2"))
    text = render(made, form, width=120, colour=False)
    assert not made.panels
    if form == "csv":
        assert len(text.splitlines()) == 1
    else:
        assert "No records to show" in text


# ------------------------------------------------------------------------------------------- layouts, published numbers


def test_unknown_names_suggest_neighbours() -> None:
    with pytest.raises(BenchError, match=r"no table layout is called 'ld_tabel2'; did you mean 'ld_table2'"):
        load_layout("ld_tabel2")
    with pytest.raises(BenchError, match="no table format is called 'latx'; did you mean 'latex'"):
        render(table(column("alpha", "veins", [0.5])), "latx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "not valid TOML"),
        ('title = "T"', "source"),
        ('title = "T"\nsource = "S"\ncolour = 3', "colour"),
        ('title = "T"\nsource = "S"\ncolumns = [{task = "a", label = "A", sectoin = "x"}]', "sectoin"),
        ('title = "T"\nsource = "S"\ncolumns = [{task = "a", label = "A"}, {task = "a", label = "B"}]', "'a' twice"),
        ('title = "T"\nsource = "S"\nmeans = [{name = "m", label = "M", tasks = ["b"]}]', "uses 'b'"),
    ],
)
def test_a_wrong_layout_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        read_layout(path)


def test_published_numbers_that_are_none_are_explained(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('title = "T"\nsource = "S"\ncolumns = [{task = "a", label = "A"}]')
    (tmp_path / "mine.csv").write_text("method,a\nrd,8o.1\n")
    with pytest.raises(BenchError, match=r"mine.csv: rd, a: '8o.1' is neither a number nor '-'"):
        read_layout(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", sorted(load_layouts()))
def test_layouts_and_their_numbers_fit(name: str) -> None:
    layout = load_layout(name)
    names = [column.key for column in layout.columns] + [mean.name for mean in layout.means]
    places = {(row.key, name) for row in layout.rows for name in names}
    assert layout.source and layout.rows and layout.columns and (layout.conditions or layout.counted)
    assert set(layout.values) <= places
    if name not in ("ld_fig8", "ld_fig9", "ld_fig10"):  # drawings, of which few or no numbers are printed
        assert set(layout.values) == places


@pytest.mark.parametrize("name", ["ld_table4", "ld_v1_table2", "ld_v1_table3", "ld_v1_table4"])
def test_printed_means_follow_from_the_columns(name: str) -> None:
    layout = load_layout(name)
    wrong = []
    for row, mean in ((row, mean) for row in layout.rows for mean in layout.means):
        parts = [layout.values[row.key, task] for task in mean.tasks]
        printed = layout.values[row.key, mean.name]
        if printed is not None and abs(sum(part or 0.0 for part in parts) / len(parts) - printed) > 0.011:
            wrong.append((row.key, mean.name))
    assert wrong == ([("scratch_small_vgg16", "mean_fundus")] if name == "ld_v1_table4" else [])  # as its note says


def test_ld_table2_is_the_printed_table() -> None:
    layout, published = load_layout("ld_table2"), load_published("ld_table2")
    assert (len(layout.rows), len(layout.columns), len(layout.means)) == (23, 12, 2)
    assert sum(value is None for value in published.values.values()) == 10  # two methods without chest X-rays
    assert published.values["rd", "siim_pneumothorax"] == 43.20
    assert published.values["scratch", "chase"] == 79.37
    best = {
        column.task: max(layout.rows, key=lambda row: published.values[row.method, column.task] or 0.0).method
        for column in layout.columns
    }
    theirs = {row.method for row in layout.rows if row.section.startswith("Ours")}
    assert sum(method in theirs for method in best.values()) == 9  # "winning 9 tasks out of all 12" (Sec. 6.1.3)


def test_ld_table2_printed_means_follow_from_the_columns() -> None:
    layout, values = load_layout("ld_table2"), load_published("ld_table2").values
    wrong, cut, checked = [], 0, 0
    for row in layout.rows:
        for mean in layout.means:
            printed = values[row.method, mean.name]
            parts = [values[row.method, task] for task in mean.tasks]
            assert (printed is None) == (None in parts)
            if printed is None:
                continue
            exact = sum(part for part in parts if part is not None) / len(parts)
            checked += 1
            cut += exact - printed > 0.00501
            if abs(exact - printed) > 0.011:
                wrong.append((row.method, mean.name, printed, exact))
    assert not wrong
    assert (cut, checked) == (13, 44)  # as the layout's note says


def paper_records(method: str, scores: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    setting = {"backbone": "tiny_vgg16", "budget": "paper", "corpus": "kaggle_dr"} | changes
    return [record(method, task, 0, score, **setting) for task, score in scores.items()]


def test_differences_from_the_published_numbers() -> None:
    layout, published = load_layout("ld_table2"), load_published("ld_table2")
    records = paper_records("rd", {"chase": 0.8150, "hrf": 0.7900})
    found = cells(build(records, layout, published=published))
    assert found["Rd", "chase"].difference == pytest.approx(0.41)
    assert (found["Rd", "chase"].inside, found["Rd", "hrf"].inside) == (True, False)
    assert found["Rd", "mean_fundus"].difference is None  # two tasks of ours, eight of theirs
    assert (
        found["Supervised", "scr_heart"].status == found["Supervised", "scr_heart"].published_status == "not available"
    )
    assert "81.09 (+0.41 ≈)" in render(build(records, layout, published=published), "md")


def test_phantoms_and_other_budgets_are_never_compared_silently() -> None:
    layout, published = load_layout("ld_table2"), load_published("ld_table2")
    records = paper_records("rd", {"chase": 0.8109}, phantom=True, budget="quick")
    panel = build(records, layout, published=published).panels[0]
    assert "phantom: generated images" in panel.title and "which are from real data" in panel.title
    assert any("phantoms" in note and "budget quick instead of paper" in note for note in panel.notes)
    assert all(cell.inside is None for row in panel.rows for cell in row.cells)
    foreign = build(paper_records("rd", {"chase": 0.8}, corpus="photos"), layout, published=published).panels[0]
    assert any("corpus photos instead of kaggle_dr" in note for note in foreign.notes)
    changed = build(paper_records("rd", {"chase": 0.8}, label="rd (clusters=4)"), layout, published=published)
    assert cells(changed)["rd (clusters=4)", "chase"].published is None
    assert cells(changed)["Rd", "chase"].status == "missing"


def test_a_part_of_a_dataset_never_counts_as_agreement() -> None:
    layout, published = load_layout("ld_table2"), load_published("ld_table2")
    whole = paper_records("rd", {"chase": 0.8109}, present=28, expected=28)
    records = whole + paper_records("rd", {"hrf": 0.8140}, present=14, expected=45)
    made = build(records, layout, published=published)
    found = cells(made)
    assert (found["Rd", "chase"].inside, found["Rd", "hrf"].inside) == (True, None)
    assert found["Rd", "hrf"].difference == pytest.approx(0.0)
    assert "Not the same experiment: ours ran with a part of the images of HRF." in made.panels[0].notes


def test_chest_columns_are_means_over_five_label_fractions() -> None:
    layout = load_layout("ld_table2")
    records: list[dict[str, Any]] = []
    for fraction, score in ((0.2, 0.5), (0.4, 0.6), (0.6, 0.7), (0.8, 0.8), (1.0, 0.9)):
        records += paper_records("rd", {"scr_heart": score}, label_fraction=fraction, corpus="chestxray8")
    made = build(records + paper_records("rd", {"chase": 0.8}), layout)
    assert len(made.panels) == 1
    assert cells(made)["Rd", "scr_heart"].mean == pytest.approx(70.0)
    assert cells(made)["Rd", "chase"].mean == pytest.approx(80.0)
    assert "kaggle_dr for CHASE, chestxray8 for Heart" in made.panels[0].header
    partly = build(records[:3], layout)
    assert cells(partly)["Rd", "scr_heart"].mark == "3/5"
    assert any(note.startswith("k/m = only k of the m label fractions") for note in partly.panels[0].notes)


def test_what_a_closed_layout_does_not_show_is_named() -> None:
    records = paper_records("rd", {"chase": 0.8, "my_task": 0.7}) + paper_records("mine", {"chase": 0.8})
    records += paper_records("rd", {"hrf": 0.8}, label_fraction=0.2)
    notes = " ".join(build(records, load_layout("ld_table2")).notes)
    assert "1 record of tasks that this layout does not show: my_task." in notes
    assert "1 record of methods that this layout does not show: mine." in notes
    assert "1 record of label fractions that this layout does not show: HRF at 20 %." in notes


def test_rows_and_means_of_a_closed_layout_keep_their_order() -> None:
    layout = Layout(
        name="mine",
        title="T",
        source="",
        columns=(Column("cup", "Cup"), Column("veins", "Veins")),
        means=(Mean("both", "Both", ("veins", "cup")),),
        rows=(Row("beta", "B"), Row("alpha", "A")),
    )
    panel = build(column("alpha", "veins", [0.5]), layout).panels[0]
    assert [head.name for head in panel.heads] == ["cup", "veins", "both"]
    assert [row.label for row in panel.rows] == ["B", "A"]
    assert len(build(column("alpha", "veins", [0.5]), replace(layout, open=True)).panels[0].rows) == 1


def test_the_module_needs_no_torch() -> None:
    code = (
        "import sys, bench.table; print([m for m in ('torch', 'pandas', 'scipy', 'numpy', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def write_golden() -> None:
    for name, form in GOLDEN_FILES:
        (GOLDEN / f"{name}.{SUFFIXES[form]}").write_text(golden_text(name, form), encoding="utf-8")


if __name__ == "__main__":
    write_golden()


def test_a_failure_on_other_files_does_not_hide_the_number() -> None:
    good = column("alpha", "veins", [0.5], cell_key="good")
    bad = column("alpha", "veins", [None], cell_key="bad", status="failed", reason="a damaged mask")
    made = cells(table(bad + good + column("scratch", "veins", [0.4])))
    assert made["alpha", "veins"].mean == 50.0
