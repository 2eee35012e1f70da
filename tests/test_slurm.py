"""A grid on a real Slurm of two nodes: killed, preempted, crashed; then the table of a run on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.data.store import Store, read_events, read_json, read_progress
from bench.run.cluster import notes
from tests.conftest import write_images

HOME = Path(__file__).resolve().parent.parent
TESTBED, PROFILE = HOME / "slurm" / "testbed.sh", HOME / "slurm" / "testbed.toml"
TASKS = "chase,stare,drive"
STEPS = 120  # of a pretraining: long enough to be interrupted in the middle
PATIENCE = 600.0  # seconds for a grid
CRASH = """
        if batch.progress > 0.2 and Path({flag!r}).exists():
            raise RuntimeError("made to crash")
"""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="slurm/testbed.sh needs root"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="slurm/testbed.sh installs Debian packages"),
]


# ------------------------------------------------------------------------------------------------------------ the bed


def testbed(*words: str) -> str:
    done = subprocess.run(["bash", str(TESTBED), *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


testbed.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    """The test bed of all tests here, whose exports are in this process's environment meanwhile."""
    before = dict(os.environ)
    home = Path(tempfile.mkdtemp(prefix="bench-testbed-"))
    home.chmod(0o755)  # its daemons run as users of their own, which pytest's folders are closed to
    os.environ["BENCH_TESTBED"] = str(home)
    try:
        for line in testbed("start").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = value
        yield
    finally:
        testbed("stop")
        os.environ.clear()
        os.environ.update(before)


def ask(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


def eventually(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"it did not happen in {seconds:g} s; the queue: {ask('squeue', '-r')}")


# ------------------------------------------------------------------------------------------------------------ the runs


def fragile(folder: Path) -> tuple[Path, Path]:
    """A method of a user's own that raises in the middle while a flag lies there; its file and the flag."""
    command = [sys.executable, "-m", "bench", "new", "method", "fragile"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment())
    path, flag = folder / "fragile.py", folder / "crash"
    text = path.read_text().replace("from dataclasses", "from pathlib import Path\nfrom dataclasses", 1)
    line = '        """EDIT: `loss` is minimised, any other entry is logged beside it."""\n'
    assert line in text
    path.write_text(text.replace(line, line + CRASH.format(flag=str(flag)).lstrip("\n")))
    return path, flag


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("BENCH_DATA", "FORCE_COLOR")}
    return own | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}


@dataclass
class House:
    """A folder with a store, and the command line in it; beside it the folder of the images to pretrain on."""

    folder: Path
    methods: str = "rd,moco"
    tasks: str = TASKS
    steps: int = STEPS

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs", self.folder / "results")

    def command(self, *more: str) -> list[str]:
        words = ["--methods", self.methods, "--tasks", self.tasks, "--corpus", f"folder:{self.folder.parent / 'pool'}"]
        words += ["--budget", "smoke", "--steps", str(self.steps), "--checkpoint-seconds", "0.5"]
        return [sys.executable, "-m", "bench", "run", *words, *more]

    def start(self, *more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*more), cwd=self.folder, env=environment(), stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *more: str, code: int = 0) -> str:
        with self.start(*more) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == code, f"{out}\n{err}"
        return out

    def submit(self, *more: str, code: int = 0) -> str:
        return self.run("--profile", str(PROFILE), *more, code=code)

    def records(self) -> dict[str, dict[str, Any]]:
        return {record["cell_key"]: record for record in self.store.records()}

    def pretraining(self, method: str) -> Path:
        """The work folder of a method's pretraining."""
        (folder,) = (self.store.runs / "pretrain").glob(f"{method}-*")
        return folder

    def label(self, folder: Path) -> str:
        """The task that holds the cell of a work folder."""
        key = (read_json(folder / "cell.json") or {})["key"]
        held = [
            note.label(task)
            for note in notes.open_notes(self.store)
            for task, keys in enumerate(note.tasks)
            if key in keys
        ]
        return held[-1]

    def wait_for_step(self, method: str, step: int, starts: int) -> Path:
        """Until a pretraining has begun so often and come so far this time."""

        def there() -> Path | None:
            found = list((self.store.runs / "pretrain").glob(f"{method}-*/progress.json"))
            if not found or happened(found[0].parent).count("started") < starts:
                return None
            progress = read_progress(found[0].parent)
            trains = progress is not None and progress["phase"].startswith("stage")  # not: preparing images
            return found[0].parent if trains and progress is not None and progress["step"] >= step else None

        found: Path = eventually(there)
        return found


def houses(home: Path, methods: str, names: tuple[str, ...] = ("house",), **more: Any) -> list[House]:
    write_images(home / "pool", 24, 64)
    for name in names:
        (home / name).mkdir()
    return [House(home / name, methods, **more) for name in names]


def happened(folder: Path) -> list[str]:
    return [event["event"] for event in read_events(folder)]


def table_of(text: str) -> str:
    return text[text.index("phantom: generated images, not data") : text.index("selected by")]


def scores(records: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """What must be the same bit for bit."""
    names = ("score", "scores", "cases", "scores_sha256")
    return {key: (record["status"], *map(record.get, names)) for key, record in records.items()}


def node_of(label: str) -> str:
    return ask("squeue", "--noheader", "--array", f"--jobs={label}", "--format=%N").strip()


# --------------------------------------------------------------------------------------------------------------- tests


def test_a_grid_survives_what_a_cluster_does_to_it(tmp_path: Path) -> None:
    plugin, flag = fragile(tmp_path)
    here, there = houses(tmp_path, f"rd,moco,{plugin}", ("here", "there"))  # and scratch: 4 methods x 3 tasks
    reference = here.run("--jobs", "2", "--device", "cpu")
    flag.touch()
    began = time.monotonic()
    said = there.submit()
    assert time.monotonic() - began < 20 and "submitted 3 pretrainings and 12 transfers" in said, said
    assert "in the queue already" in there.submit()  # the same command again submits nothing
    preempted = there.wait_for_step("rd", 10, starts=1)
    ask("scancel", "--signal=USR2", there.label(preempted))
    requeued = there.wait_for_step("moco", 10, starts=1)
    ask("scontrol", "requeue", there.label(requeued))
    there.wait_for_step("moco", 30, starts=2)
    node = node_of(there.label(requeued))
    testbed("crash", node)
    eventually(lambda: node in ask("sinfo", "--noheader", "--format=%N", "--states=down"))
    testbed("revive", node)
    text = there.submit("--wait", code=1)
    assert "9 of 12 results" in text and "3 blocked" in text, text
    assert_resumed(preempted, interrupted=1)
    assert_resumed(requeued, interrupted=1)
    assert happened(requeued).count("started") >= 3
    blocked = [record for record in there.records().values() if record["status"] == "blocked"]
    assert {record["method"] for record in blocked} == {"fragile"} and len(blocked) == 3
    assert all("made to crash" in record["reason"] and "pretrain/fragile-" in record["reason"] for record in blocked)
    made = starts(there)
    flag.unlink()
    text = there.submit("--wait")
    assert "submitted 1 pretraining and 3 transfers" in text, text
    assert table_of(text) == table_of(reference)
    assert scores(there.records()) == scores(here.records()) and len(there.records()) == 12
    again = {name: number for name, number in starts(there).items() if number != made.get(name)}
    assert len(again) == 4 and all("fragile" in name for name in again)
    assert "nothing was trained" in there.submit()
    codes = {record["code"] for record in there.records().values()}
    assert len(codes) == 1 and (there.store.runs / "snapshots" / codes.pop()[:16]).is_dir()


def assert_resumed(folder: Path, interrupted: int) -> None:
    """A pretraining that stopped in the middle and went on from there, by its own count of steps."""
    events, state = read_events(folder), read_json(folder / "state.json")
    stops = [event["step"] for event in events if event["event"] == "interrupted"]
    assert len(stops) == interrupted and all(0 < step < STEPS for step in stops), events
    assert state is not None and state["status"] == "done" and 0 < state["steps_run"] <= STEPS - max(stops), state


def starts(house: House) -> dict[str, int]:
    """How often every cell was started."""
    return {
        path.parent.name: happened(path.parent).count("started") for path in house.store.runs.glob("*/*/events.jsonl")
    }


def test_two_runs_at_once_submit_every_cell_once(tmp_path: Path) -> None:
    (house,) = houses(tmp_path, "rd", tasks="chase,stare", steps=8)
    drivers = [house.start("--profile", str(PROFILE), "--wait") for _ in range(2)]
    texts = [driver.communicate(timeout=PATIENCE) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], texts
    assert all("4 of 4 results" in out for out, _ in texts)
    assert sum("submitted" in out for out, _ in texts) == 1 and sum("already (jobs" in out for out, _ in texts) == 1
    assert set(starts(house).values()) == {1} and len(starts(house)) == 5


def test_without_accounting_the_grid_ends_and_a_killed_cell_is_noticed(tmp_path: Path) -> None:
    """The last of these tests: the accounts do not come back."""
    (house,) = houses(tmp_path, "rd,moco", tasks="chase,stare", steps=40)
    testbed("forget")
    with pytest.raises(subprocess.CalledProcessError):
        ask("sacct")
    with house.start("--profile", str(PROFILE), "--wait") as watching:
        folder = house.wait_for_step("rd", 5, starts=1)
        ask("scancel", "--signal=KILL", house.label(folder))
        text, err = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1, f"{text}\n{err}"
    assert "4 of 6 results" in text and "2 blocked" in text, text
    state = read_json(folder / "state.json")
    assert state is not None and state["status"] == "failed" and "job " in state["reason"], state
    blocked = [record["reason"] for record in house.records().values() if record["status"] == "blocked"]
    assert len(blocked) == 2 and all("pretrain/rd-" in reason and "job " in reason for reason in blocked), blocked
    assert "6 of 6 results" in house.submit("--wait")
    state = read_json(folder / "state.json")
    assert state is not None and 0 < state["steps_run"] < 40, state  # from its last checkpoint
