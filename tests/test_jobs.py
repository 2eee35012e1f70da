"""`bench cancel`, `retry`, `gc`, `status --watch`, `logs --follow`, and what cells cost."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import pytest
from torch import Tensor, nn

from bench import cli
from bench.cli.show import follow
from bench.data.store import Store, add_event, ask_to_stop, read_events, read_json, write_json
from bench.nets import Backbone
from bench.registry import Registry, method, scan
from bench.run import upkeep
from bench.run.cell import CANCELLED, end_badly, run_cell
from bench.run.cluster import notes, slurm
from bench.run.cluster.standing import Standing
from bench.run.costs import Costs, cost_of_events, cost_of_records, waits
from bench.run.grid import Request, expand
from bench.run.meter import Meter
from bench.spec import CorpusInfo, PretrainCell, Recipe, Site, cell_to_dict, site_to_dict
from bench.views import Batch, Crop, Views
from tests.conftest import pretrain_cell, textured_images, transfer_cell

# ----------------------------------------------------------------------------------------------- a method that can fail


@dataclass(frozen=True)
class HParams:
    """Nothing to choose."""

    lr: float = 1e-3  # Adam


@method("fragile", HParams, version=1, title="Fragile", paper="this test", groups=(), paper_steps=4, paper_batch=2)
class Fragile(nn.Module):
    """Fails where a file named `fragile` lies in the working folder, and takes its time where one is named `slow`."""

    def __init__(self, backbone: Backbone, hparams: HParams, corpus_info: CorpusInfo) -> None:
        super().__init__()
        self.backbone = backbone

    def views(self) -> Views:
        return Views(each=((Crop((0.5, 1.0)),),))

    def recipe(self) -> Recipe:
        return Recipe("adam", 1e-3)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        if Path("fragile").exists():
            raise RuntimeError("it broke")
        if Path("slow").exists():
            time.sleep(0.5)
        return {"loss": self.backbone.pooled(batch.views[0].images).square().mean()}

    def export(self) -> dict[str, nn.Module]:
        return {"encoder": self.backbone.encoder}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a folder of few images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(textured_images(3, 64, 3)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder / "runs", folder / "results")


def cells_of(folder: Path, steps: int = 4) -> tuple[list[PretrainCell], Site, Registry]:
    shelves = scan([__file__])
    asked = Request(
        methods="fragile",
        tasks="chase",
        budget="smoke",
        steps=steps,
        corpus=f"folder:{folder / 'images'}",
        batch_size=2,
    )
    site = Site(folder / "runs", folder / "results", None, plugins=(__file__,), checkpoint_seconds=0.0)
    return list(expand(asked, shelves).pretrainings), site, shelves


def bench(*words: str) -> int:
    return cli.main([*words, "--runs", "runs", "--results", "results"])


# --------------------------------------------------------------------------------------------------------------- retry


def test_retry_runs_again_what_failed(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,), site, _ = cells_of(folder)
    (folder / "fragile").touch()
    assert run_cell(cell_to_dict(cell), site_to_dict(site)).status == "failed"
    assert bench("retry", "--blocked") == 0
    assert "nothing to run again" in capsys.readouterr().out
    (folder / "fragile").unlink()
    assert bench("retry", "--failed", "--device", "cpu", "--jobs", "1") == 0
    assert "1 of 1 cell done" in capsys.readouterr().out
    assert store.pretrained(cell) is not None
    assert bench("retry") == 0
    assert "nothing to run again" in capsys.readouterr().out


def test_retry_takes_a_blocked_transfer_with_its_pretraining(folder: Path, store: Store) -> None:
    (cell,), site, shelves = cells_of(folder)
    transfer = transfer_cell(cell, "chase")
    end_badly(store, shelves, transfer, "blocked", "its pretraining failed")
    store.note(cell, {"data": None, "plugins": [__file__]})
    states = store.overview()
    assert [state.state for state in upkeep.unfinished(states, failed=False, blocked=True)] == ["blocked"]
    again = upkeep.retry(store, states, replace(site, plugins=()))
    assert [(item.kind, item.key) for item in again.cells] == [("pretrain", cell.key), ("transfer", transfer.key)]
    assert again.site.plugins == (__file__,)
    assert again.left_out == ()


def test_retry_leaves_out_what_the_method_no_longer_makes(folder: Path, store: Store) -> None:
    (cell,), site, _ = cells_of(folder)
    store.note(replace(cell, version=7), {"data": None, "plugins": [__file__]})
    gone = replace(cell, method="gone")
    store.note(gone)
    again = upkeep.retry(store, store.overview(), site)
    assert again.cells == ()
    assert sorted(why.split(";")[0] for _, why in again.left_out) == [
        "it is of version 7 of the method fragile, which is now at 1",
        "there is no method gone any more",
    ]


def test_retry_wants_one_data_root(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,), _, _ = cells_of(folder)
    store.note(cell, {"data": "/one", "plugins": [__file__]})
    store.note(replace(cell, seed=1), {"data": "/other", "plugins": [__file__]})
    assert bench("retry") == 2
    assert "several data roots (/one, /other); say which with --data" in capsys.readouterr().err


def test_retry_refuses_what_is_done_or_contradicts(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("retry", "abc", "--failed") == 2
    assert "not both" in capsys.readouterr().err
    assert bench("retry", "--jobs", "0") == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- cancel


def wait_for(what: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_cancel_stops_a_cell_at_a_checkpoint(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,), site, _ = cells_of(folder, steps=1000)
    (folder / "slow").touch()
    outcomes = []
    run = threading.Thread(target=lambda: outcomes.append(run_cell(cell_to_dict(cell), site_to_dict(site), since=0.0)))
    run.start()
    work = store.folder(cell)
    wait_for(lambda: (read_json(work / "progress.json") or {"step": 0})["step"] >= 1)
    assert bench("cancel", cell.key[:12]) == 0
    assert "asked 1 cell to stop" in capsys.readouterr().out
    run.join(60)
    assert (outcomes[0].status, outcomes[0].reason) == ("failed", CANCELLED)
    assert (work / upkeep.CHECKPOINT).exists()
    ended = [state for state in store.overview() if state.key == cell.key]
    assert [(state.state, state.reason) for state in ended] == [("failed", CANCELLED)]
    costs = cost_of_events(read_events(work))
    assert costs.cpu_seconds is not None
    assert costs.cpu_seconds > 0


def test_a_cell_cancelled_before_its_turn_is_not_begun_by_that_run_but_by_the_next(folder: Path, store: Store) -> None:
    (cell,), site, _ = cells_of(folder)
    begun = time.time()
    ask_to_stop(store.folder(cell))
    outcome = run_cell(cell_to_dict(cell), site_to_dict(site), since=begun - 1)
    assert (outcome.status, outcome.reason, outcome.ran) == ("failed", CANCELLED, False)
    assert run_cell(cell_to_dict(cell), site_to_dict(site), since=time.time() + 1).status == "done"


def test_cancel_says_what_does_not_run(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,), _, _ = cells_of(folder)
    store.note(cell)
    assert bench("cancel") == 0
    assert "nothing runs or waits" in capsys.readouterr().out
    assert bench("cancel", cell.key) == 2
    assert "neither runs nor waits in a queue" in capsys.readouterr().err


def test_cancel_takes_whole_jobs_out_of_the_queue(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 7_0 holds two cells and keeps one, 7_1 loses its only one, 7_2 runs and has not come to its cell."""
    cells = [pretrain_cell("moco", seed=seed) for seed in range(4)]
    note = notes.write_note(store, "pretrain", 0.0, [cells[:2], cells[2:3], cells[3:]], {"site": {}})
    notes.noted(replace(note, job="7"))
    held = ("7_0", "7_0", "7_1", "7_2")
    labels = {cell.key: label for cell, label in zip(cells, held, strict=True)}
    standing = Standing(labels=labels, running={cells[3].key})
    monkeypatch.setattr(upkeep, "look", lambda store: standing)
    asked: list[list[str]] = []
    monkeypatch.setattr(slurm, "ask", lambda words: asked.append(list(words)) or "")
    waiting, _ = upkeep.queued(store)
    assert [(state.key, state.state, state.reason) for state in waiting] == [
        (cell.key, "queued", f"job {label}") for cell, label in zip(cells, held, strict=True)
    ]
    chosen = [waiting[0], waiting[2], waiting[3]]
    assert upkeep.cancel(chosen, standing) == ["7_1"]
    assert asked == [["scancel", "7_1"]]
    assert all((state.folder / "cancelled.json").exists() for state in chosen)


# ------------------------------------------------------------------------------------------------------------------ gc


def old(path: Path, content: bytes = b"x" * 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))
    return path


def test_gc_deletes_what_nobody_needs_and_nothing_else(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell, *_), site, _ = cells_of(folder)
    assert run_cell(cell_to_dict(cell), site_to_dict(site)).status == "done"
    done, open_cell = store.folder(cell), replace(cell, seed=1)
    store.note(open_cell)
    litter = [
        old(done / upkeep.CHECKPOINT),
        old(done / "checkpoint.previous.safetensors"),
        old(store.folder(open_cell) / "encoder.safetensors.damaged-1"),
        old(store.folder(open_cell) / ".state.json.host.1.2.tmp"),
        old(store.results / "quarantine" / "abc.json.damaged-1"),
    ]
    stale = site.cache / "left-0123456789ab"
    old(stale / "images.npy")
    os.utime(stale, (1e9, 1e9))
    needed = [
        old(store.folder(open_cell) / upkeep.CHECKPOINT),
        store.encoder(cell),
        done / "state.json",
        done / "events.jsonl",
        *(path for path in site.cache.iterdir() if path != stale),
    ]
    for path in needed:
        assert path.exists(), path
    assert bench("gc") == 2, "there is no terminal to ask on"
    said = capsys.readouterr()
    assert "add --yes" in said.err
    assert "checkpoint of a cell that is done" in said.out
    assert all(path.exists() for path in [*litter, stale])
    assert bench("gc", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bytes"], facts["deleted"]) == (6000, False)
    assert all(path.exists() for path in [*litter, stale])
    assert bench("gc", "--yes") == 0
    assert not any(path.exists() for path in [*litter, stale])
    assert all(path.exists() for path in needed)
    assert bench("gc") == 0
    assert "nothing to clear up" in capsys.readouterr().out


def test_gc_spares_what_is_being_worked_on(folder: Path, store: Store) -> None:
    (cell,), _, shelves = cells_of(folder)
    claim = store.begin(cell)
    assert claim is not None
    old(store.folder(cell) / "encoder.safetensors.damaged-1")
    assert upkeep.litter(store, shelves) == []
    claim.release()
    assert [item.what for item in upkeep.litter(store, shelves)] == ["damaged file"]


# -------------------------------------------------------------------------------------------------------------- costs


def attempt(event: str, seconds: float, device: str = "cuda", joules: float | None = None) -> dict[str, Any]:
    return {"event": event, "device_type": device, "device_seconds": seconds, "energy_joules": joules}


def test_every_attempt_costs() -> None:
    events = [attempt("failed", 60.0), attempt("interrupted", 30.0, joules=7.2e6), attempt("finished", 10.0)]
    assert cost_of_events([{"event": "started"}, *events]) == Costs(gpu_seconds=100.0, energy_joules=7.2e6)
    assert cost_of_events([attempt("finished", 5.0, "cpu")]) == Costs(cpu_seconds=5.0)
    assert cost_of_events([]) == Costs()
    assert waits([{"job": "7", "queue_seconds": 9.0}, {"job": "7", "queue_seconds": 9.0}]) == {"7": 9.0}


def test_the_cost_of_a_table_counts_every_pretraining_and_job_once() -> None:
    def record(seconds: float, pretrain: str, job: str) -> Mapping[str, Any]:
        trained = {"pretrain_device_type": "cuda", "pretrain_device_seconds": 3600.0, "pretrain_energy_joules": 3.6e6}
        own = {"device_type": "cuda", "device_seconds": seconds, "energy_joules": None}
        return {**own, **trained, "pretrain_key": pretrain, "job": job, "queue_seconds": 1800.0}

    total = cost_of_records([record(900.0, "a", "7"), record(900.0, "a", "7"), record(0.0, "b", "8")])
    assert total.data() == {"gpu_hours": 2.5, "cpu_hours": None, "energy_kwh": 2.0, "queue_hours": 1.0}
    assert total.text() == "2.50 GPU-hours, 2.00 kWh, 1.00 hours in the queue"
    assert cost_of_records([{"status": "failed", "device_seconds": 3.0}]).text() == ""


def test_status_shows_costs_per_cell_and_in_total(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, job in ((0, "7"), (1, "7")):
        cell = pretrain_cell("moco", seed=seed)
        store.note(cell)
        add_event(store.folder(cell), "started", job=job, queue_seconds=7200.0)
        add_event(store.folder(cell), **attempt("interrupted", 1800.0))
    assert bench("status") == 0
    said = capsys.readouterr().out
    assert said.count("0.50 GPU-hours") == 2
    assert "1.00 GPU-hours, 2.00 hours in the queue" in said
    assert bench("status", "--json") == 0
    assert [state["costs"]["gpu_hours"] for state in json.loads(capsys.readouterr().out)] == [0.5, 0.5]


def test_a_job_knows_how_long_it_waited(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,), site, _ = cells_of(folder)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1090")
    assert run_cell(cell_to_dict(cell), site_to_dict(site), since=1000.0).status == "done"
    started = read_events(store.folder(cell))[0]
    assert (started["job"], started["queue_seconds"]) == ("7", 90.0)


class _Nvml:
    """What is used of pynvml: a GPU whose counter rises by 5 J whenever it is read."""

    def __init__(self, processes: int) -> None:
        self.processes, self.counter = processes, 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[int]:
        return [1] * self.processes

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.counter += 5000
        return self.counter


@pytest.mark.parametrize(("processes", "joules"), [(1, 5.0), (2, None)])
def test_energy_is_told_of_a_gpu_that_is_not_shared(
    processes: int, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.run import meter

    nvml = _Nvml(processes)
    monkeypatch.setattr(meter, "import_module", lambda name: nvml)
    assert meter._Counter(["GPU-abc"]).joules() == joules


def test_without_nvml_and_without_a_gpu_no_energy_is_told() -> None:
    from bench.run import meter

    costs = Meter("cpu").costs()
    assert (costs["device_type"], costs["energy_joules"]) == ("cpu", None)
    assert meter._Counter(["GPU-none"]).joules() is None


# ---------------------------------------------------------------------------------------------------------- looking on


def test_status_watch_prints_changes_and_ends_when_nothing_runs(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("bench.cli.show.follow")
    cell = pretrain_cell("moco")
    claim = store.begin(cell)
    assert claim is not None
    naps = iter([lambda: None, claim.release])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: next(naps)())
    assert bench("status", "--watch") == 0
    said = capsys.readouterr().out
    assert said.count("1 cell: 1 running") == 1
    assert said.count("1 cell: 1 interrupted") == 2
    assert bench("status", "--watch", "--json") == 2


def test_logs_follow_a_cell_until_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    path = tmp_path / "log.txt"

    def life() -> Iterator[bool]:
        yield True  # no log yet
        path.write_text("one\n")
        yield True
        path.write_text("one\ntwo\n")
        yield False

    steps = life()
    follow(path, lambda: next(steps), sys.stdout, pause=0.0)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_logs_follow_ends_with_how_the_cell_ended(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = pretrain_cell("moco")
    store.note(cell)
    (store.folder(cell) / "log.txt").write_text("a word\n")
    write_json(
        store.folder(cell) / "state.json", {"key": cell.key, "status": "failed", "reason": "it broke", "finished": ""}
    )
    assert bench("logs", cell.key, "--follow") == 0
    said = capsys.readouterr()
    assert said.out == "a word\n"
    assert "is failed: it broke" in said.err
