"""A whole grid in real processes: killed, interrupted, crashed, shared; every cell ends with one record and one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.data.store import Store, live_owner, load_checkpoint, read_events, save_tensors
from bench.registry import bare
from bench.run import executor, launch
from bench.run.cell import PARENT_LOST, CellOutcome, child_main
from bench.run.executor import LocalExecutor
from bench.run.grid import Grid, Request, expand, plan
from bench.run.launch import Outcome, run
from bench.spec import BenchError, Cell, CellError, PretrainCell, Site, TransferCell

PLUGINS = """
from dataclasses import dataclass
from bench.registry import corpus, method, task

@dataclass(frozen=True)
class HParams:
    rate: float = 0.1

@method("zero", HParams, version=1, title="Zero", paper="-", groups=("baseline",), trains=False)
@method("one", HParams, version=1, title="One", paper="-", groups=(), paper_batch=4)
@method("two", HParams, version=1, title="Two", paper="-", groups=(), paper_batch=4)
class Fake: ...

@corpus("pool", version=1, title="Pool", channels=3, licence="-", citation="-", source="-", folders=("pool",),
        layout="-",
        phantom={"modality": "fundus", "images": 4, "cameras": [{}]})
def pool(root): ...

@task("left", version=1, title="Left", groups=("sides",), section="-", corpus="pool", channels=3,
      licence="free", citation="-", source="-", revision="1", folders=("left",), layout="-",
      train=4, test=2,
      phantom={"modality": "fundus", "target": "vessels", "camera": {}})
@task("right", version=1, title="Right", groups=("sides",), section="-", corpus="pool", channels=3,
      licence="free", citation="-", source="-", revision="1", folders=("right",), layout="-",
      train=4, test=2,
      phantom={"modality": "fundus", "target": "disc", "camera": {}})
def load(root, split): ...
"""
STEPS = 5


# ---------------------------------------------------------------------------- what the children do instead of training


def note(home: Path, text: str) -> None:
    with (home / "calls.txt").open("a") as stream:
        stream.write(f"{text}\n")


def calls(home: Path) -> list[str]:
    path = home / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def misbehave(script: Mapping[str, Any], step: int, home: Path) -> None:
    if step == script.get("at", 3):
        eventually(lambda: len(list(home.glob("driver-*"))) >= script.get("drivers", 0))
        if script.get("do") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if script.get("do") == "exit":
            os._exit(3)
        if script.get("do") == "nan":
            raise CellError("failed", f"the loss became nan at step {step}")
    time.sleep(script.get("sleep", 0))


def fake_loop(name: str, cell: Cell, site: Site, folder: Path, report: Callable[[Mapping[str, Any]], None]) -> int:
    """Counts to STEPS with a checkpoint after every step; returns the steps made in this call."""
    import torch

    home = site.results.parent
    script = json.loads((home / "script.json").read_text()).get(name, {}) if (home / "script.json").exists() else {}
    found = load_checkpoint(folder / "checkpoint.safetensors")
    first = found[1]["step"] if found else 0
    note(home, f"start {name} seed {cell.seed} at {first} on {site.device}")
    for step in range(first + 1, STEPS + 1):
        misbehave(script, step, home)
        report({"phase": "stage 1", "step": step, "steps": STEPS, "losses": {"loss": 1 / step}})
        save_tensors(folder / "checkpoint.safetensors", {"x": torch.ones(1) * step}, {"step": step}, keep_previous=True)
    note(home, f"end {name} seed {cell.seed}")
    return STEPS - first


def fake_pretrain(
    cell: PretrainCell, spec: Any, registry: Any, site: Site, folder: Path, report: Callable[[Any], None]
) -> dict[str, Any]:
    import torch

    made = fake_loop(cell.method, cell, site, folder, report)
    save_tensors(folder / "encoder.safetensors", {"x": torch.ones(3)}, {})
    return {"steps_run": made, "seconds": 0.1, "loss": 0.5}


def fake_transfer(
    cell: TransferCell, registry: Any, site: Site, folder: Path, weights: Path | None, report: Callable[[Any], None]
) -> dict[str, Any]:
    assert (weights is None) == (cell.pretrain.method == "zero") and (weights is None or weights.exists())
    fake_loop(f"{cell.pretrain.method}/{cell.task}", cell, site, folder, report)
    cases = {"names": ["a"], "patients": [""], "scores": {"dsc": {"": [0.5]}}}
    scores = {"score": 0.5, "scores": {"dsc": 0.5}, "structures": {}, "cases": cases, "n_images": 1}
    return {**scores, "selection": "-", "seconds": 0.1}


def fake_main(cell: str, site: str, since: float, connection: Connection) -> None:
    """`child_main` with the two loops above."""
    for name, function in (("pretrain", fake_pretrain), ("transfer", fake_transfer)):
        fake = ModuleType(f"bench.run.{name}")
        setattr(fake, name, function)
        sys.modules[f"bench.run.{name}"] = fake
    child_main(cell, site, since, connection)


# ------------------------------------------------------------------------------------------------------------ the house


class House:
    """A folder with plug-ins, a store, a script for the children, and a list of what they did."""

    def __init__(self, home: Path) -> None:
        self.home = home
        if not (home / "plugins.py").exists():
            (home / "plugins.py").write_text(PLUGINS)
        self.shelves = bare()
        self.shelves.add_plugin(str(home / "plugins.py"))
        self.store = Store(home / "runs", home / "results")

    def grid(self, methods: str = "one,two", **more: Any) -> Grid:
        return expand(self.request(methods, **more), self.shelves)

    def request(self, methods: str = "one,two", **more: Any) -> Request:
        return Request(methods, "sides", runs=self.store.runs, results=self.store.results, device="cpu", **more)

    def run(self, grid: Grid | None = None, jobs: int = 2, observer: launch.Observer | None = None) -> Outcome:
        site = self.request().site(self.shelves)
        return run(grid or self.grid(), self.store, site, jobs, observer, executor_with(jobs))

    def script(self, **entries: Any) -> None:
        text = {name.replace("__", "/"): entry for name, entry in entries.items()}
        (self.home / "script.json").write_text(json.dumps(text))

    def counts(self, word: str) -> Counter[str]:
        """How often each cell did `word` (start or end)."""
        return Counter(line.split()[1] for line in calls(self.home) if line.startswith(word))

    def statuses(self) -> Counter[str]:
        return Counter(record["status"] for record in self.store.records())


def executor_with(jobs: int) -> executor.MakeExecutor:
    return lambda site, since: LocalExecutor(site, jobs, since, ["cpu"], fake_main)


class Present(launch.Silent):
    """Leaves a file once its driver is at work."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def tick(self, running: Sequence[Cell], waiting: Sequence[Cell]) -> None:
        (self.home / f"driver-{os.getpid()}").touch()


def drive(home: str) -> None:
    """A driver as a program: prints its exit code's outcome as one line."""
    executor.PRELOAD = ("torch",)
    done = House(Path(home)).run(observer=Present(Path(home)))
    print(json.dumps({"counts": done.counts, "pretrained": done.pretrained, "transferred": done.transferred}))
    sys.exit(done.exit_code)


def start_driver(home: Path) -> subprocess.Popen[str]:
    code = f"import sys; sys.path = {sys.path!r}; from {__name__} import drive; drive({str(home)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(executor, "PRELOAD", ("torch",))
    made = House(tmp_path)
    yield made
    for folder in (*made.store.runs.glob("pretrain/*"), *made.store.runs.glob("transfer/*")):
        assert live_owner(folder) is None, f"{folder} still has an owner"


# ------------------------------------------------------------------------------------------------------------- the rule


def test_a_grid_runs_every_cell_once_and_nothing_the_second_time(house: House) -> None:
    first = house.run()
    assert (first.counts, first.exit_code) == ({"done": 6}, 0)
    assert (first.pretrained, first.transferred, first.warnings) == (2, 6, [])
    assert set(house.counts("start").values()) == {1} and len(house.counts("start")) == 8
    again = house.run()
    assert (again.counts, again.exit_code, again.pretrained, again.transferred) == ({"done": 6}, 0, 0, 0)
    assert sum(house.counts("start").values()) == 8


def test_pretrainings_come_first_the_longest_before_the_others(house: House) -> None:
    house.run(jobs=1)
    order = [line.split()[1] for line in calls(house.home) if line.startswith("start")]
    assert order[:2] == ["one", "two"] and set(order[2:4]) == {"zero/left", "zero/right"}


def test_an_observer_sees_every_cell(house: House) -> None:
    class Watch(launch.Silent):
        def __init__(self) -> None:
            self.begun, self.over, self.busy = list[str](), list[CellOutcome](), 0

        def started(self, cell: Cell) -> None:
            self.begun.append(cell.key)

        def ended(self, cell: Cell, outcome: CellOutcome) -> None:
            self.over.append(outcome)

        def tick(self, running: Any, waiting: Any) -> None:
            self.busy = max(self.busy, len(running))

    watch = Watch()
    house.run(observer=watch)
    assert len(set(watch.begun)) == len(watch.over) == 8 and {outcome.status for outcome in watch.over} == {"done"}
    assert watch.busy <= 2


def test_a_lost_pretraining_nobody_needs_is_not_made_again(house: House) -> None:
    house.run()
    for path in house.store.runs.glob("pretrain/*/encoder.safetensors"):
        path.unlink()
    assert house.run().pretrained == 0


def test_the_log_of_a_cell_holds_its_words(house: House) -> None:
    house.script(one={"do": "nan"})
    house.run()
    log = (house.store.folder(house.grid().pretrainings[0]) / "log.txt").read_text()
    assert "Traceback" in log and "the loss became nan at step 3" in log


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_loss_that_turns_nan_blocks_its_transfers_and_the_rest_goes_on(house: House) -> None:
    house.script(one={"do": "nan"})
    outcome = house.run()
    assert (outcome.counts, outcome.exit_code) == ({"done": 4, "blocked": 2}, 1)
    blocked = [record for record in house.store.records() if record["status"] == "blocked"]
    assert {record["method"] for record in blocked} == {"one"}
    assert all("pretrain/one-" in r["reason"] and "the loss became nan at step 3" in r["reason"] for r in blocked)
    house.script()
    healed = house.run()
    assert (healed.counts, healed.exit_code, healed.pretrained, healed.transferred) == ({"done": 6}, 0, 1, 2)
    assert "start one seed 0 at 2 on cpu" in calls(house.home)  # from its last good checkpoint


@pytest.mark.parametrize(
    ("what", "reason"), [("kill", "killed by signal 9 (out of memory?)"), ("exit", "exit code 3 and without a word")]
)
def test_a_child_that_dies_without_a_word_gets_a_record(house: House, what: str, reason: str) -> None:
    house.script(zero__left={"do": what})
    outcome = house.run(house.grid("zero"))
    assert (outcome.counts, outcome.exit_code) == ({"done": 1, "failed": 1}, 1)
    (cell, ended), (record,) = outcome.failures[0], [r for r in house.store.records() if r["status"] == "failed"]
    assert reason in record["reason"] and reason in ended.reason and record["cell_key"] == cell.key
    assert read_events(house.store.folder(cell))[-1]["event"] == "failed"
    house.script()
    assert house.run(house.grid("zero")).counts == {"done": 2}
    assert calls(house.home).count("start zero/left seed 0 at 2 on cpu") == 1


def test_a_plug_in_broken_while_the_grid_runs_is_the_recorded_reason(house: House) -> None:
    class Editor(launch.Silent):
        def ended(self, cell: Cell, outcome: CellOutcome) -> None:
            (house.home / "plugins.py").write_text("class Fake(:\n")

    outcome = house.run(house.grid("one,!zero"), observer=Editor())
    assert (outcome.counts, outcome.exit_code) == ({"failed": 2}, 1)
    assert all("plugins.py cannot be read as Python" in record["reason"] for record in house.store.records())


def test_a_damaged_encoder_is_healed_within_one_run(house: House) -> None:
    house.run(house.grid("one,!zero", seeds=1))
    encoder = house.store.encoder(house.grid("one").pretrainings[0])
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"\x01")
    for path in house.store.results.glob("records/*.json"):
        path.unlink()
    outcome = house.run(house.grid("one,!zero"))
    assert (outcome.counts, outcome.exit_code, outcome.pretrained) == ({"done": 2}, 0, 1)
    assert len(outcome.warnings) == 1 and "encoder.safetensors.damaged-1" in outcome.warnings[0]


def test_an_encoder_that_is_damaged_again_and_again_is_a_failure(house: House) -> None:
    house.run(house.grid("one,!zero"))
    for path in house.store.results.glob("records/*.json"):
        path.unlink()

    class Vandal(launch.Silent):
        def ended(self, cell: Cell, outcome: CellOutcome) -> None:
            if isinstance(cell, PretrainCell) and outcome.status == "done":
                path = house.store.encoder(cell)
                path.write_bytes(b"x" * path.stat().st_size)

    encoder = house.store.encoder(house.grid("one").pretrainings[0])
    encoder.write_bytes(b"x" * encoder.stat().st_size)
    outcome = house.run(house.grid("one,!zero"), observer=Vandal())
    assert (outcome.counts, outcome.exit_code) == ({"blocked": 2}, 1)
    assert all("damaged or deleted twice" in ended.reason for _, ended in outcome.failures)


def test_a_damaged_encoder_that_stays_where_it_is_ends_in_a_failure(house: House) -> None:
    grid = house.grid("one,!zero")
    house.run(grid)
    for path in house.store.results.glob("records/*.json"):
        path.unlink()
    queue = launch._Queue(
        launch.needed_cells(grid, house.store), house.store, house.shelves, time.time(), launch.Silent()
    )
    while queue.open:
        cell = queue.next()
        assert cell is not None
        queue.ended(executor.Ended(cell, CellOutcome(PARENT_LOST), 0))
    assert queue.outcome.counts == {"failed": 2}
    assert all("cannot be moved away" in ended.reason for _, ended in queue.outcome.failures)
    assert house.statuses() == {"failed": 2}


def test_a_damaged_record_is_named_and_made_again(house: House) -> None:
    house.run()
    path = next(house.store.results.glob("records/*.json"))
    path.write_bytes(path.read_bytes()[:50])
    outcome = house.run()
    assert (outcome.counts, outcome.exit_code, outcome.transferred) == ({"done": 6}, 0, 1)
    assert len(outcome.warnings) == 1 and path.name in outcome.warnings[0]


def test_folders_that_cannot_be_written_are_refused_before_any_work(house: House) -> None:
    house.store.results.write_text("a file")
    with pytest.raises(BenchError, match="a file stands where a folder is needed"):
        house.run()
    assert calls(house.home) == []


# -------------------------------------------------------------------------------------------------------- interruptions


def test_ctrl_c_stops_at_once_and_the_next_run_goes_on(house: House) -> None:
    house.script(one={"sleep": 0.3}, two={"sleep": 0.3})
    driver = start_driver(house.home)
    eventually(lambda: len(house.counts("start")) == 2)
    time.sleep(0.5)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=30)
    assert driver.returncode == 130 and err == "" and json.loads(out)["counts"] == {"missing": 6}
    events = [read_events(house.store.folder(cell))[-1] for cell in house.grid().pretrainings]
    assert [event["event"] for event in events] == ["interrupted", "interrupted"]
    assert {row.state for row in plan(house.grid(), house.store) if isinstance(row.cell, PretrainCell)} == {
        "interrupted"
    }
    house.script()
    assert house.run().counts == {"done": 6}
    resumed = [line for line in calls(house.home) if line.startswith("start one ")]
    assert len(resumed) == 2 and " at 0 " in resumed[0] and " at 0 " not in resumed[1]


def test_children_die_with_their_driver_and_the_next_run_goes_on(house: House) -> None:
    house.script(one={"sleep": 1.0}, two={"sleep": 1.0})
    driver = start_driver(house.home)
    folders = [house.store.folder(cell) for cell in house.grid().pretrainings]
    owners = eventually(lambda: [o for o in map(live_owner, folders) if o] if len(house.counts("start")) == 2 else None)
    eventually(lambda: all((folder / "checkpoint.safetensors").exists() for folder in folders))
    driver.kill()
    driver.wait()
    eventually(lambda: not any(Path(f"/proc/{owner['pid']}").exists() for owner in owners), 10)
    assert house.statuses() == {}
    house.script()
    assert house.run().counts == {"done": 6}
    starts = [line for line in calls(house.home) if line.startswith(("start one ", "start two "))]
    assert len(starts) == 4 and sum(" at 0 " in line for line in starts) == 2
    assert house.counts("end") == Counter(dict.fromkeys(house.counts("start"), 1))


# ----------------------------------------------------------------------------------------------------- several drivers


def test_two_drivers_at_once_run_no_cell_twice(house: House) -> None:
    house.script(one={"sleep": 0.05}, two={"sleep": 0.05})
    drivers = [start_driver(house.home) for _ in range(2)]
    outputs = [driver.communicate(timeout=90) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    results = [json.loads(out) for out, _ in outputs]
    assert [result["counts"] for result in results] == [{"done": 6}] * 2
    assert sum(result["pretrained"] for result in results) == 2
    assert sum(result["transferred"] for result in results) == 6
    assert house.counts("start") == house.counts("end") and set(house.counts("end").values()) == {1}
    assert not list(house.store.results.glob("quarantine/*"))


def test_a_driver_takes_the_failure_of_another(house: House) -> None:
    house.script(one={"do": "nan", "at": 5, "drivers": 2})
    drivers = [start_driver(house.home)]
    eventually(lambda: house.counts("start")["one"])
    drivers.append(start_driver(house.home))
    outputs = [driver.communicate(timeout=90) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [1, 1], outputs
    assert [json.loads(out)["counts"] for out, _ in outputs] == [{"done": 4, "blocked": 2}] * 2
    assert house.counts("start")["one"] == 1


def test_a_cell_of_a_driver_that_died_elsewhere_is_taken_over(house: House) -> None:
    cell = house.grid("one").pretrainings[0]
    held = house.store.begin(cell)
    assert held is not None
    held._stop.set()
    owner = json.loads(held.path.read_text())
    held.path.write_text(json.dumps(owner | {"machine": "another", "host": "another"}))
    os.utime(held.path, (time.time() - 117,) * 2)  # three seconds before it counts as dead
    outcome = house.run(house.grid("one"))
    assert outcome.counts == {"done": 4} and house.counts("start")["one"] == 1
    assert (house.store.folder(cell) / "claim.2").exists()


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:0"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(BenchError, match="unknown device"):
        executor.devices(device)


def test_devices_are_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "visible_gpus", lambda: 2)
    assert executor.devices("auto") == executor.devices("cuda") == ["cuda:0", "cuda:1"]
    assert executor.devices("cuda:1") == ["cuda:1"] and executor.devices("cpu") == ["cpu"]
    with pytest.raises(BenchError, match="there is no cuda:2: torch sees 2"):
        executor.devices("cuda:2")
    monkeypatch.setattr(executor, "visible_gpus", lambda: 0)
    assert executor.devices("auto") == ["cpu"]
    with pytest.raises(BenchError, match="torch sees no GPU here"):
        executor.devices("cuda")


def test_gpus_are_handed_out_by_index(house: House) -> None:
    site = house.request().site(house.shelves)
    outcome = run(
        house.grid("zero"),
        house.store,
        site,
        2,
        None,
        lambda s, since: LocalExecutor(s, 2, since, ["cpu", "cpu:0"], fake_main),
    )
    assert outcome.counts == {"done": 2}
    assert {line.rpartition(" ")[2] for line in calls(house.home) if line.startswith("start")} == {"cpu", "cpu:0"}


def test_gpus_are_counted_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(executor, "PRELOAD", ("torch",))
    assert executor.visible_gpus() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_cores_are_at_least_one() -> None:
    assert 1 <= executor.cpu_count() <= (os.cpu_count() or 1)
