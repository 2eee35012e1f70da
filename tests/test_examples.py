"""What a stranger adds, each one file of at most 60 lines: it runs by its path, and does what its first line says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.run import pretrain
from bench.run.turns import Turn
from bench.spec import Site
from tests.conftest import pretrain_cell, textured_corpus

HOME = Path(__file__).resolve().parent.parent
EXAMPLES = {path.stem: path for path in sorted((HOME / "tests" / "examples").glob("*.py"))}
LINES = 60
TASK = next(iter(registry.scan().tasks))


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BENCH_DATA"}
    environment |= {"PYTHONPATH": str(HOME)}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def records_of(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Method -> its record, of a smoke run in an empty folder."""
    done = bench(folder, "run", *arguments, "--budget", "smoke", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in (folder / "results" / "records").glob("*.json")]
    return {record["method"]: record for record in found}


def cases_of(folder: Path, record: dict[str, Any]) -> list[dict[str, str]]:
    head, *rows = [line.split(",") for line in (folder / "runs" / record["scores_file"]).read_text().splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("path", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_is_short_and_reads_as_the_house_does(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 120


def test_points_are_found_without_training_and_scored_in_pixels(tmp_path: Path) -> None:
    found = records_of(tmp_path, "--methods", "scratch", "--tasks", str(EXAMPLES["landmarks"]))
    record = found["scratch"]
    assert record["truth"] == "points" and list(record["scores"]) == ["mre_px"]
    assert 0 < record["scores"]["mre_px"] < record["image_size"]
    assert list(record["structures"]["mre_px"]) == ["disc", "fovea"]
    rows = cases_of(tmp_path, record)
    assert {row["structure"] for row in rows} == {"disc", "fovea"} and len(rows) == 2 * record["n_images"]
    mean = sum(float(row["value"]) for row in rows) / len(rows)
    assert mean == pytest.approx(record["score"], rel=1e-9)


def test_grades_are_told_apart_and_scored_over_all_cases(tmp_path: Path) -> None:
    record = records_of(tmp_path, "--methods", "scratch", "--tasks", str(EXAMPLES["grades"]))["scratch"]
    assert record["truth"] == "grade" and list(record["scores"]) == ["auc", "kappa"]
    assert 0 <= record["scores"]["auc"] <= 1 and -1 <= record["scores"]["kappa"] <= 1
    assert record["score"] == record["scores"]["auc"]


def test_methods_run_on_volumes_as_they_are(tmp_path: Path) -> None:
    """With a network of three dimensions from the same file, and the corpus that the task declares."""
    path = str(EXAMPLES["balls"])
    chosen = ("--methods", "scratch,simclr", "--tasks", path, "--backbone", path, "--image-size", "32")
    found = records_of(tmp_path, *chosen)
    assert set(found) == {"scratch", "simclr"}
    for record in found.values():
        assert record["backbone"] == "example_cubes" and 0 < record["scores"]["dsc"] < 1
        assert record["n_images"] == record["n_cases"] == 4 and record["phantom"]


def test_adversaries_run_from_the_command_line(tmp_path: Path) -> None:
    found = records_of(tmp_path, "--methods", str(EXAMPLES["adversary"]), "--tasks", TASK)
    assert set(found) == {"scratch", "example_adversary"}
    progress = json.loads(next((tmp_path / "runs" / "pretrain").glob("example_adversary*/progress.json")).read_text())
    assert set(progress["losses"]) == {"loss", "verdict", "discriminator"}


def test_a_turn_of_the_generator_leaves_the_discriminator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    shelves = registry.scan()
    shelves.add_file(EXAMPLES["adversary"])
    spec = shelves.methods["example_adversary"]
    cell = replace(pretrain_cell("simclr", steps=3), method=spec.name, hparams=tuple(spec.defaults.items()))
    fabric = pretrain.set_up(Site(Path(), Path(), None))
    run = pretrain._Run(cell, spec, textured_corpus(8, 32, 3), fabric)
    run.method.train()
    seen: list[tuple[int, set[str]]] = []
    alone = Turn.alone

    def state() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in run.method.state_dict().items()}

    @contextmanager
    def watched(turn: Turn, method: torch.nn.Module) -> Iterator[None]:
        before = state()
        with alone(turn, method):
            yield
        moved = {name.partition(".")[0] for name, value in state().items() if not value.equal(before[name])}
        seen.append((turn.number, moved))

    monkeypatch.setattr(Turn, "alone", watched)
    for step in range(cell.steps):
        run.enter(step)
        run.train_step()
    assert seen == [(0, {"backbone", "generator"}), (1, {"discriminator"})] * cell.steps
