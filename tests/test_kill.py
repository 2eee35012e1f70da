"""Runs killed at random moments, and two runs at once: the command line as a user has it, in processes of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parent.parent
WORDS = (
    *("run", "--methods", "rd,moco", "--tasks", "chase,drishti_od", "--budget", "smoke", "--steps", "12"),
    *("--seeds", "1", "--runs", "runs", "--results", "results", "--jobs", "2", "--device", "cpu"),
    *("--checkpoint-seconds", "0"),
)
TRANSFERS, PRETRAININGS = 6, 2  # (rd, moco, scratch) x 2 tasks; scratch does not train
KILLS = 10
EARLIEST, LATEST = 0.05, 0.95  # moment of a kill, as a share of what an uninterrupted run takes
PATIENCE = 300.0  # seconds for a run that nobody kills

pytestmark = [
    pytest.mark.kill,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for survivors in /proc"),
]


# --------------------------------------------------------------------------------------------------------------- runs


@contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command at work in `folder`, leader of a process group of its own, writing to `PID.txt` there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("BENCH_DATA", "FORCE_COLOR")}
    environment |= {"PYTHONPATH": str(HOME)}
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
    """Everything that must be the same bit for bit: scores, per-image scores and encoders, by cell."""
    judged: dict[str, tuple[Any, ...]] = {}
    for key, record in records(folder).items():
        digest = hashlib.sha256((folder / "runs" / record["scores_file"]).read_bytes()).hexdigest()
        assert digest == record["scores_sha256"]
        judged[key] = (record["status"], record["score"].hex(), digest)
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


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[Any, ...]], str, float]:
    """Outcome and table of a run that nobody disturbs, and the seconds it took."""
    folder = tmp_path_factory.mktemp("reference")
    began = time.monotonic()
    text = completed(folder)
    seconds = time.monotonic() - began
    assert len(records(folder)) == TRANSFERS
    assert_every_cell_was_finished_once(folder)
    return outcome(folder), table_of(text), seconds


class Killer:
    """Kills at moments drawn from one seed, in turn the whole process group and the driver alone."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.draw, self.seconds, self.kills = random.Random(seed), seconds, 0
        self.groups: list[int] = []

    def run(self, folder: Path) -> str:
        """Starts the command again until it ends by itself, and returns what it says then."""
        while self.kills < KILLS:
            with driver(folder) as process:
                self.groups.append(process.pid)
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(self.draw.uniform(EARLIEST, LATEST) * self.seconds)
                    text = said_by(process, folder)
                    assert code == 0, text
                    return text
                (os.killpg if self.kills % 2 == 0 else os.kill)(process.pid, signal.SIGKILL)
                code = process.wait()
                assert code in (-signal.SIGKILL, 0), said_by(process, folder)  # 0: it was faster than the signal
                self.kills += code != 0
        return completed(folder)


def test_killed_runs_end_as_if_nothing_had_happened(
    reference: tuple[dict[str, tuple[Any, ...]], str, float], tmp_path: Path
) -> None:
    wanted, table, seconds = reference
    killer, folders = Killer(2026, seconds), list[Path]()
    try:
        while killer.kills < KILLS:
            folders.append(tmp_path / f"killed-{len(folders)}")
            folders[-1].mkdir()
            text = killer.run(folders[-1])
            assert table_of(text) == table
            assert outcome(folders[-1]) == wanted
            assert_every_cell_was_finished_once(folders[-1])
            assert_another_run_starts_nothing(folders[-1])
        assert die_out(killer.groups) == []
    finally:
        for pid in die_out(killer.groups, 0.0):
            os.kill(pid, signal.SIGKILL)
    made = [item for folder in folders for item in (*records(folder).values(), *pretrainings(folder).values())]
    assert any(0 < item["steps_run"] < item["steps"] for item in made), "no kill fell between two checkpoints"


def test_two_runs_at_once_share_the_work(
    reference: tuple[dict[str, tuple[Any, ...]], str, float], tmp_path: Path
) -> None:
    wanted, table, _ = reference
    with driver(tmp_path) as one, driver(tmp_path) as other:
        codes = [process.wait(PATIENCE) for process in (one, other)]
        texts = [said_by(process, tmp_path) for process in (one, other)]
    assert codes == [0, 0], texts
    assert [table_of(text) for text in texts] == [table, table]
    assert outcome(tmp_path) == wanted
    assert {cell: [line["event"] for line in lines] for cell, lines in events(tmp_path).items()} == {
        cell: ["started", "finished"] for cell in ended_at(tmp_path)
    }
