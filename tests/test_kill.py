"""Runs killed at the worst moments, and two at once: the command line as a user has it, in processes of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_images

HOME = Path(__file__).resolve().parent.parent
WORDS = (
    *("run", "--methods", "rd,moco", "--tasks", "chase,stare", "--corpus", "folder:../pool", "--budget", "smoke"),
    *("--steps", "12", "--seeds", "1", "--runs", "runs", "--results", "results", "--jobs", "2", "--device", "cpu"),
    *("--checkpoint-seconds", "0"),
)
TRANSFERS, PRETRAININGS = 6, 2  # (rd, moco, scratch) x 2 tasks; scratch does not train
PATIENCE = 300.0  # seconds for a run
COSTS = {  # what may differ between two records of one cell: when it was made, and what that took
    *("finished", "seconds", "device_seconds", "energy_joules", "peak_memory", "steps_run", "seal", "versions"),
    *("pretrain_seconds", "pretrain_device_seconds", "pretrain_energy_joules"),
}

pytestmark = [
    pytest.mark.kill,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for survivors in /proc"),
]


# ------------------------------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Moment:
    """An instant of a run: one side of a call of the system on a path, in whichever process comes there first."""

    name: str
    call: str  # of the module os: link, rename, replace, fsync
    side: str  # before, after; half: before, and the file has lost the second half of its content
    path: str  # pattern of what the call makes or flushes
    victim: str = "group"  # every process at once, or the driver alone: then the one that came there stands still


MOMENTS = (
    Moment("a cache is claimed and nothing of it made", "link", "after", "*/runs/cache/claims/*/claim.*"),
    Moment("the arrays of a cache are half on disk", "fsync", "half", "*/runs/cache/*.making/images.npy", "driver"),
    Moment("a cache is whole and has no name yet", "rename", "before", "*/runs/cache/*"),
    Moment("a cell is claimed and nobody knows it yet", "link", "after", "*/runs/pretrain/*/claim.*", "driver"),
    Moment("a checkpoint is half written", "fsync", "half", "*/runs/pretrain/*/.checkpoint.*.tmp"),
    Moment("the old checkpoint made way", "replace", "after", "*/runs/pretrain/*/checkpoint.previous.safetensors"),
    Moment("a checkpoint has no name yet", "replace", "before", "*/runs/pretrain/*/checkpoint.safetensors", "driver"),
    Moment("an encoder is there, its state not", "replace", "after", "*/runs/pretrain/*/encoder.safetensors"),
    Moment("a state is half written", "fsync", "half", "*/runs/pretrain/*/.state.json.*.tmp", "driver"),
    Moment("a pretraining is over and nobody was told", "replace", "after", "*/runs/pretrain/*/state.json"),
    Moment("a transfer's checkpoint is half written", "fsync", "half", "*/runs/transfer/*/.checkpoint.*.tmp", "driver"),
    Moment("the old checkpoint of one made way", "replace", "after", "*/transfer/*/checkpoint.previous.safetensors"),
    Moment("a record is half written", "fsync", "half", "*/results/records/.*.json.*.tmp"),
    Moment("a record has no name yet", "replace", "before", "*/results/records/*.json", "driver"),
    Moment("a record is there and nobody was told", "replace", "after", "*/results/records/*.json"),
)

# Python imports this in every process of the run. Who removes the file `armed` is the one who strikes.
STRIKER = """
import fnmatch, json, os, signal, time

def strike(moment):
    try:
        os.unlink(moment["armed"])
    except FileNotFoundError:
        return
    if moment["victim"] == "group":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpgrp(), signal.SIGKILL)
    while True:
        time.sleep(1)

def guarded(moment):
    call = getattr(os, moment["call"])
    def guard(*given, **named):
        path = os.path.abspath(os.readlink(f"/proc/self/fd/{given[0]}") if len(given) == 1 else given[1])
        here = fnmatch.fnmatchcase(path, moment["path"]) and os.path.exists(moment["armed"])
        if here and moment["side"] == "half":
            os.truncate(path, os.stat(path).st_size // 2)
        if here and moment["side"] != "after":
            strike(moment)
        found = call(*given, **named)
        if here and moment["side"] == "after":
            strike(moment)
        return found
    return guard

if "STRIKE" in os.environ:
    moment = json.loads(os.environ["STRIKE"])
    setattr(os, moment["call"], guarded(moment))
"""


# --------------------------------------------------------------------------------------------------------------- runs


@contextmanager
def driver(folder: Path, moment: Moment | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The command at work in `folder`, leader of a process group of its own, writing to `PID.txt` there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("BENCH_DATA", "FORCE_COLOR")}
    environment |= {"PYTHONPATH": str(HOME)}
    if moment is not None:
        (folder / "armed").touch()
        (folder / "striker").mkdir(exist_ok=True)
        (folder / "striker" / "sitecustomize.py").write_text(STRIKER)
        plan = asdict(moment) | {"armed": str(folder / "armed")}
        environment |= {"PYTHONPATH": f"{folder / 'striker'}{os.pathsep}{HOME}", "STRIKE": json.dumps(plan)}
    command = ["sh", "-c", 'exec "$0" "$@" >$$.txt 2>&1', sys.executable, "-m", "bench", *WORDS]
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said_by(process: subprocess.Popen[bytes], folder: Path) -> str:
    return (folder / f"{process.pid}.txt").read_text()


def completed(folder: Path) -> str:
    """Everything that a run nobody disturbs says."""
    with driver(folder) as process:
        code = process.wait(PATIENCE)
        text = said_by(process, folder)
    assert code == 0, text
    return text


def table_of(text: str) -> str:
    return text[text.index("phantom: generated images, not data") : text.index("cost of these numbers")]


def survivors(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()  # proc(5), from field 3: state, ppid, pgrp
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return found


def die_out(groups: list[int], seconds: float = 15.0) -> list[int]:
    """What is left of process groups after so long."""
    deadline = time.monotonic() + seconds
    while (left := [pid for group in groups for pid in survivors(group)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


# ------------------------------------------------------------------------------------------------------------- results


def records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((folder / "results" / "records").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def pretrainings(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((folder / "runs" / "pretrain").glob("*/state.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def outcome(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that must be the same bit for bit: records, per-case scores and encoders, by cell."""
    judged: dict[str, tuple[Any, ...]] = {}
    for key, record in records(folder).items():
        known = {name: value for name, value in record.items() if name not in COSTS}
        if "scores_file" in record:
            digest = hashlib.sha256((folder / "runs" / record["scores_file"]).read_bytes()).hexdigest()
            assert digest == record["scores_sha256"]
        judged[key] = (record["status"], json.dumps(known, sort_keys=True))
    for name, state in pretrainings(folder).items():
        encoder = folder / "runs" / "pretrain" / name / "encoder.safetensors"
        judged[name] = (state["status"], hashlib.sha256(encoder.read_bytes()).hexdigest())
    return judged


def events(folder: Path) -> dict[str, list[dict[str, str]]]:
    """What happened to every cell, by the end of its folder's name (12 digits of its key)."""
    paths = sorted((folder / "runs").glob("*/*/events.jsonl"))
    return {path.parent.name[-12:]: [json.loads(line) for line in path.read_bytes().splitlines()] for path in paths}


def ended_at(folder: Path) -> dict[str, str]:
    """When the result of every cell was made, keyed as `events`."""
    found = {**records(folder), **{state["key"]: state for state in pretrainings(folder).values()}}
    return {key[:12]: value["finished"] for key, value in found.items()}


def assert_every_cell_was_finished_once(folder: Path) -> None:
    """A kill may fall between a result and its `finished` event; a second start after the result is the fault."""
    happened, ended = events(folder), ended_at(folder)
    assert set(happened) == set(ended)
    assert len(ended) == TRANSFERS + PRETRAININGS
    for cell, lines in happened.items():
        names = [line["event"] for line in lines]
        assert names.count("finished") <= 1, names
        assert set(names) <= {"started", "finished"}, names
        assert max(line["time"] for line in lines if line["event"] == "started") <= ended[cell], (cell, lines)


def assert_another_run_starts_nothing(folder: Path) -> None:
    watched = [*folder.glob("results/records/*"), *folder.glob("runs/*/*/*"), folder / "runs" / "timings.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in watched}
    text = completed(folder)
    assert "nothing was trained" in text
    after = [*folder.glob("results/records/*"), *folder.glob("runs/*/*/*"), folder / "runs" / "timings.jsonl"]
    assert {path: path.stat().st_mtime_ns for path in after} == before


# --------------------------------------------------------------------------------------------------------------- tests


@dataclass(frozen=True)
class Undisturbed:
    """What comes of a run that nobody disturbs."""

    outcome: dict[str, tuple[Any, ...]]
    table: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs have their folders, beside the images that they pretrain on."""
    folder = tmp_path_factory.mktemp("home")
    write_images(folder / "pool", 24, 64)
    return folder


def made(home: Path, name: str) -> Path:
    (home / name).mkdir()
    return home / name


@pytest.fixture(scope="module")
def reference(home: Path) -> Undisturbed:
    folder = made(home, "reference")
    text = completed(folder)
    assert len(records(folder)) == TRANSFERS
    assert_every_cell_was_finished_once(folder)
    return Undisturbed(outcome(folder), table_of(text))


def both_completed(folder: Path) -> list[str]:
    """What two runs say that work in one folder at once."""
    with driver(folder) as one, driver(folder) as other:
        codes = [process.wait(PATIENCE) for process in (one, other)]
        texts = [said_by(process, folder) for process in (one, other)]
    assert codes == [0, 0], texts
    return texts


def test_killed_runs_end_as_if_nothing_had_happened(home: Path, reference: Undisturbed) -> None:
    folder, groups = made(home, "killed"), list[int]()
    try:
        for moment in MOMENTS:
            with driver(folder, moment) as process:
                groups.append(process.pid)
                code = process.wait(PATIENCE)
                assert code == -signal.SIGKILL, f"{moment.name}: {said_by(process, folder)}"
        texts = both_completed(folder)  # whatever lies there now, two runs at once end it
        assert die_out(groups) == []
    finally:
        for pid in die_out(groups, 0.0):
            os.kill(pid, signal.SIGKILL)
    assert [table_of(text) for text in texts] == [reference.table] * 2
    assert outcome(folder) == reference.outcome
    assert_every_cell_was_finished_once(folder)
    assert_another_run_starts_nothing(folder)
    results = [*records(folder).values(), *pretrainings(folder).values()]
    assert any(0 < item["steps_run"] < item["steps"] for item in results), "no kill fell between two checkpoints"


def test_two_runs_at_once_share_the_work(home: Path, reference: Undisturbed) -> None:
    folder = made(home, "shared")
    texts = both_completed(folder)
    assert [table_of(text) for text in texts] == [reference.table] * 2
    assert outcome(folder) == reference.outcome
    assert {cell: [line["event"] for line in lines] for cell, lines in events(folder).items()} == {
        cell: ["started", "finished"] for cell in ended_at(folder)
    }
