"""One cell: whatever happens to it ends in a record with one line of reason, and calling again repeats nothing."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench.data.store import Store, read_events, read_progress, save_tensors
from bench.run import cell as cell_module
from bench.run.cell import BUSY, INTERRUPTED, PARENT_LOST, CellOutcome, run_cell
from bench.run.meter import Meter
from bench.spec import (
    BenchError,
    Cell,
    CellError,
    PretrainCell,
    Site,
    TransferCell,
    cell_to_dict,
    file_digest,
    site_to_dict,
)

PLUGINS = """
from dataclasses import dataclass
from bench.registry import method, task

@dataclass(frozen=True)
class HParams:
    rate: float = 0.1

@method("fake_method", HParams, version=1, title="Fake", paper="-", groups=())
class Fake: ...

@task("fake_task", version=1, title="Fake task", groups=("first", "second"), section="-",
      corpus="-", channels=3, licence="free", citation="-", source="-", revision="1",
      folders=("-",), layout="-",
      train=4, test=2)
def load(root, split): ...
"""
PRETRAIN = PretrainCell(
    method="fake_method",
    version=1,
    hparams=(("rate", 0.1),),
    label="fake_method",
    corpus="pool",
    corpus_fingerprint="f",
    phantom=True,
    backbone="net",
    channels=3,
    budget="quick (steps=5)",
    steps=5,
    image_size=64,
    batch_size=4,
    seed=0,
)
TRANSFER = TransferCell(
    pretrain=PRETRAIN,
    task="fake_task",
    task_version=1,
    dataset_fingerprint="d",
    phantom=True,
    protocol="finetune",
    label_fraction=1.0,
    fold=0,
    image_size=64,
    phase_steps=4,
    phase_epochs=1,
    checks=1,
    batch_size=2,
    budget="quick",
    seed=0,
)
Work = Callable[[Path, Callable[[Mapping[str, Any]], None]], dict[str, Any]]


class Bench:
    """A store with two loops that do what a test says."""

    def __init__(self, folder: Path) -> None:
        plugin = folder / "plugins.py"
        plugin.write_text(PLUGINS)
        self.site = Site(folder / "runs", folder / "results", None, plugins=(str(plugin),))
        self.store = Store(self.site.runs, self.site.results)
        self.calls: list[str] = []
        self.pretrain: Work = good_pretrain
        self.transfer: Work = good_transfer

    def run(self, cell: Cell, **more: Any) -> CellOutcome:
        plain = json.loads(json.dumps([cell_to_dict(cell), site_to_dict(self.site)]))
        return run_cell(*plain, **more)

    def record(self) -> dict[str, Any]:
        found = self.store.read(TRANSFER.key)
        assert found is not None
        return found


def steps(report: Callable[[Mapping[str, Any]], None], count: int = 5) -> None:
    for step in range(1, count + 1):
        report({"phase": "stage 1", "step": step, "steps": count, "losses": {"loss": 1 / step}})


def good_pretrain(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    steps(report)
    save_tensors(folder / "encoder.safetensors", {"x": torch.ones(3)}, {})
    return {"steps": 5, "steps_run": 5, "seconds": 2.5, "loss": 0.2}


def good_transfer(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    steps(report)
    cases = {"names": ["one", "two, with a comma"], "patients": ["a", ""], "scores": {"dsc": {"": [0.25, 0.75]}}}
    scores = {"score": 0.5, "scores": {"dsc": 0.5}, "structures": {}, "cases": cases, "n_images": 2}
    return {**scores, "selection": "best of two", "seconds": 1.5}


def raising(error: BaseException) -> Work:
    def work(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        report({"phase": "stage 1", "step": 1, "steps": 5, "losses": {}})
        raise error

    return work


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)

    def pretrain(cell: Any, spec: Any, registry: Any, site: Any, folder: Path, report: Any) -> dict[str, Any]:
        made.calls.append(f"pretrain {spec.name}")
        return made.pretrain(folder, report)

    def transfer(
        cell: Any, registry: Any, site: Any, folder: Path, weights: Path | None, report: Any
    ) -> dict[str, Any]:
        made.calls.append(f"transfer {weights.name if weights else None}")
        return made.transfer(folder, report)

    for name, function in (("pretrain", pretrain), ("transfer", transfer)):
        fake = ModuleType(f"bench.run.{name}")
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, f"bench.run.{name}", fake)
    return made


# ------------------------------------------------------------------------------------------------------------- results


def test_a_pretraining_leaves_its_state_and_is_not_done_twice(bench: Bench) -> None:
    assert bench.run(PRETRAIN) == CellOutcome("done", ran=True)
    assert bench.run(PRETRAIN) == CellOutcome("done", ran=False)
    assert bench.calls == ["pretrain fake_method"]
    state = bench.store.pretrained(PRETRAIN)
    assert state is not None and state["loss"] == 0.2 and state["seconds_per_step"] == 0.5
    assert state["encoder_sha256"] == file_digest(bench.store.encoder(PRETRAIN))
    assert [event["event"] for event in read_events(bench.store.folder(PRETRAIN))] == ["started", "finished"]
    assert [timing["seconds"] for timing in bench.store.timings()] == [0.5]


def test_a_transfer_leaves_a_record_that_says_everything(bench: Bench) -> None:
    bench.run(PRETRAIN)
    assert bench.run(TRANSFER).status == "done" and bench.run(TRANSFER) == CellOutcome("done")
    assert bench.calls == ["pretrain fake_method", "transfer encoder.safetensors"]
    record = bench.record()
    wanted = {
        "schema": 2,
        "method": "fake_method",
        "label": "fake_method",
        "task": "fake_task",
        "group": "first",
        "corpus": "pool",
        "phantom": True,
        "backbone": "net",
        "budget": "quick (steps=5)",
        "transfer_budget": "quick",
        "protocol": "finetune",
        "label_fraction": 1.0,
        "seed": 0,
        "status": "done",
        "reason": "",
        "metric": "dsc",
        "score": 0.5,
        "higher_is_better": True,
        "metrics": {"dsc": {"title": "DSC", "unit": "%", "higher_is_better": True, "scale": 100.0, "digits": 2}},
        "scores": {"dsc": 0.5},
        "structures": {},
        "cases": {"names": ["one", "two, with a comma"], "patients": ["a", ""], "scores": {"dsc": {"": [0.25, 0.75]}}},
        "fold": 0,
        "folds": 0,
        "truth": "mask",
        "n_images": 2,
        "pretrain_key": PRETRAIN.key,
        "cell_key": TRANSFER.key,
        "selection": "best of two",
        "seconds": 1.5,
        "pretrain_seconds": 2.5,
        "licence": "free",
        "dataset_fingerprint": "d",
    }
    assert {name: record[name] for name in wanted} == wanted
    assert record["peak_memory"] > 1e6 and record["device_seconds"] >= 0 and record["device"]
    assert record["versions"]["torch"] and record["versions"]["python"]
    assert set(record["sources"]) == {"method", "task", "protocol"}
    scores = bench.site.runs / record["scores_file"]
    assert file_digest(scores) == record["scores_sha256"]
    with scores.open() as stream:
        assert list(csv.reader(stream)) == [
            ["name", "patient", "metric", "structure", "value"],
            ["one", "a", "dsc", "", "0.25"],
            ["two, with a comma", "", "dsc", "", "0.75"],
        ]


def test_a_result_of_an_older_encoder_names_the_source_that_made_it(bench: Bench) -> None:
    bench.run(PRETRAIN)
    made_by = bench.store.pretrained(PRETRAIN)
    assert made_by is not None
    Path(bench.site.plugins[0]).write_text(PLUGINS + "\nEDITED = 1\n")
    bench.run(TRANSFER)
    sources = bench.record()["sources"]
    assert sources["method"] == made_by["sources"]["method"] != sources["task"]


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (CellError("failed", "the loss became nan at step 3"), "failed", "the loss became nan at step 3"),
        (CellError("timed out", "after 3 h"), "timed out", "after 3 h"),
        (BenchError("mask.png is no image"), "failed", "mask.png is no image"),
        (ZeroDivisionError("division by zero\nmore"), "failed", "ZeroDivisionError: division by zero"),
        (ValueError(), "failed", "ValueError"),
        (MemoryError(), "out of memory", "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory", "OutOfMemoryError: CUDA out of memory."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
            "RuntimeError: DefaultCPUAllocator",
        ),
    ],
)
def test_every_failure_is_a_status_and_one_line(
    bench: Bench, error: Exception, status: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.run(PRETRAIN)
    bench.transfer = raising(error)
    outcome = bench.run(TRANSFER)
    assert (outcome.status, outcome.ran) == (status, True) and outcome.reason.startswith(reason)
    record = bench.record()
    assert record["status"] == status and record["reason"] == outcome.reason and record["score"] is None
    assert "Traceback" in capfd.readouterr().err
    assert read_events(bench.store.folder(TRANSFER))[-1]["event"] == "failed"
    bench.transfer = good_transfer
    assert bench.run(TRANSFER).status == "done" and bench.record()["score"] == 0.5


def test_a_plug_in_that_was_broken_meanwhile_is_the_reason(bench: Bench) -> None:
    bench.run(PRETRAIN)
    Path(bench.site.plugins[0]).write_text("class Fake(:\n")
    outcome = bench.run(TRANSFER)
    assert outcome.status == "failed" and "plugins.py cannot be read as Python" in outcome.reason
    assert bench.store.read(TRANSFER.key) is None  # the launcher, which knows the task, writes it


def test_a_failed_pretraining_keeps_its_reason_and_is_tried_again(bench: Bench) -> None:
    bench.pretrain = raising(CellError("failed", "the loss became inf at step 1"))
    assert bench.run(PRETRAIN).reason == "the loss became inf at step 1"
    state = bench.store.state(PRETRAIN)
    assert state is not None and state["status"] == "failed" and bench.store.pretrained(PRETRAIN) is None
    bench.pretrain = good_pretrain
    assert bench.run(PRETRAIN).status == "done"


def test_a_score_that_is_no_number_is_a_failure(bench: Bench) -> None:
    bench.run(PRETRAIN)
    bench.transfer = lambda folder, report: {**good_transfer(folder, report), "score": math.nan}
    assert bench.run(TRANSFER).status == "failed" and "not a number" in bench.record()["reason"]


def test_facts_that_are_no_numbers_become_null(bench: Bench) -> None:
    bench.run(PRETRAIN)
    bench.transfer = lambda folder, report: {**good_transfer(folder, report), "best": math.inf, "more": [math.nan, 1.0]}
    bench.run(TRANSFER)
    assert bench.record()["best"] is None and bench.record()["more"] == [None, 1.0]


def test_a_fresh_failure_is_taken_an_old_one_tried_again(bench: Bench) -> None:
    began = time.time() - 1
    bench.pretrain = raising(CellError("failed", "broken"))
    bench.run(PRETRAIN)
    bench.pretrain = good_pretrain
    assert bench.run(PRETRAIN, since=began) == CellOutcome("failed", "broken")
    assert len(bench.calls) == 1
    assert bench.run(PRETRAIN, since=time.time() + 1).status == "done"


# ------------------------------------------------------------------------------------------------------ lost and found


def test_a_transfer_without_its_encoder_says_so(bench: Bench) -> None:
    assert bench.run(TRANSFER).status == PARENT_LOST and bench.calls == []
    assert bench.store.read(TRANSFER.key) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_encoder_is_set_aside_and_its_pretraining_open_again(bench: Bench, damage: Any) -> None:
    bench.run(PRETRAIN)
    damage(bench.store.encoder(PRETRAIN))
    outcome = bench.run(TRANSFER)
    assert outcome.status == PARENT_LOST and bench.store.pretrained(PRETRAIN) is None
    assert len(outcome.warnings) == 1 and "encoder.safetensors.damaged-1" in outcome.warnings[0]
    assert bench.run(PRETRAIN).ran and bench.run(TRANSFER).status == "done"


def test_a_damaged_state_is_named_and_the_pretraining_taken_up_again(bench: Bench) -> None:
    bench.run(PRETRAIN)
    cut(bench.store.folder(PRETRAIN) / "state.json")
    (bench.store.folder(PRETRAIN) / "state.json").write_text("{")
    outcome = bench.run(PRETRAIN)
    assert outcome.ran and outcome.status == "done" and "state.json.damaged-1" in outcome.warnings[0]


def test_a_state_that_lacks_what_others_rely_on_counts_as_damaged(bench: Bench) -> None:
    bench.run(PRETRAIN)
    path = bench.store.folder(PRETRAIN) / "state.json"
    path.write_text(path.read_text().replace("encoder_sha256", "encoder_sha255"))
    assert [cell.state for cell in bench.store.overview()] == ["interrupted"]
    outcome = bench.run(PRETRAIN)
    assert outcome.ran and outcome.status == "done" and "state.json.damaged-1" in outcome.warnings[0]


def test_a_cell_that_cannot_be_claimed_fails_with_the_cause(bench: Bench) -> None:
    bench.site.runs.mkdir()
    (bench.site.runs / "pretrain").write_text("in the way")
    outcome = bench.run(PRETRAIN)
    assert outcome.status == "failed" and "a file stands where a folder is needed" in outcome.reason
    assert bench.calls == []


def test_only_a_transfer_run_in_one_go_tells_how_long_one_takes(bench: Bench) -> None:
    bench.run(PRETRAIN)
    known = len(bench.store.timings())
    bench.transfer = lambda folder, report: {**good_transfer(folder, report), "steps": 8, "steps_run": 3}
    assert bench.run(TRANSFER).status == "done"
    assert len(bench.store.timings()) == known


def test_a_cell_somebody_holds_is_left_to_him(bench: Bench) -> None:
    held = bench.store.begin(PRETRAIN)
    assert held is not None
    assert bench.run(PRETRAIN) == CellOutcome(BUSY) and bench.calls == []
    held.release()
    assert bench.run(PRETRAIN).ran


def test_a_cell_asked_to_stop_ends_between_two_steps_and_can_go_on(bench: Bench) -> None:
    stop, seen = threading.Event(), list[int]()

    def work(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        for step in range(1, 6):
            seen.append(step)
            if step == 3:
                stop.set()
            report({"phase": "stage 1", "step": step, "steps": 5, "losses": {}})
        return {}

    bench.pretrain = work
    outcome = bench.run(PRETRAIN, stop=stop)
    assert outcome.status == INTERRUPTED and seen == [1, 2, 3] and bench.store.state(PRETRAIN) is None
    event = read_events(bench.store.folder(PRETRAIN))[-1]
    assert (event["event"], event["step"]) == ("interrupted", 3)
    bench.pretrain = good_pretrain
    assert bench.run(PRETRAIN).status == "done"


def test_a_cell_that_was_taken_over_stops(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        (folder / "claim.2").write_text("{}")
        for step in range(1, 10_000):
            report({"phase": "stage 1", "step": step, "steps": 10_000, "losses": {}})
            time.sleep(0.01)
        return {}

    bench.pretrain = work
    monkeypatch.setattr("bench.data.store.claims.HEARTBEAT_SECONDS", 0.05)
    assert bench.run(PRETRAIN) == CellOutcome(INTERRUPTED, "another process took this cell over", True)


def test_progress_shows_where_a_cell_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[dict[str, Any]]()
    original = cell_module.write_progress
    monkeypatch.setattr(
        cell_module, "write_progress", lambda folder, facts: (written.append(facts), original(folder, facts))
    )

    def work(folder: Path, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        steps(report, 1000)
        return good_pretrain(folder, report)

    bench.pretrain = work
    bench.run(PRETRAIN)
    assert 2 <= len(written) < 10  # at most one a second, and the last
    progress = read_progress(bench.store.folder(PRETRAIN))
    assert progress is not None and (progress["phase"], progress["step"], progress["steps"]) == ("stage 1", 5, 5)
    assert progress["losses"] == {"loss": 0.2} and progress["seconds_left"] == 0


def test_half_written_files_of_a_killed_cell_are_swept(bench: Bench) -> None:
    folder = bench.store.folder(PRETRAIN)
    folder.mkdir(parents=True)
    (folder / ".checkpoint.safetensors.host.1.2.tmp").write_bytes(b"x")
    bench.run(PRETRAIN)
    assert not list(folder.glob(".*.tmp"))


def test_peak_memory_is_of_this_cell_alone() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak cannot be set back here")
    big = bytearray(400_000_000)
    big[::4096] = b"x" * len(big[::4096])
    high = Meter("cpu").peak_memory
    del big
    assert Meter("cpu").peak_memory < high - 300_000_000
