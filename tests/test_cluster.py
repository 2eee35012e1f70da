"""The login node's and the job's side of a cluster, against commands of Slurm that only pretend."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.data.store import asked_to_stop, read_events, read_json, write_json
from bench.registry import Registry, scan
from bench.run import executor, launch, upkeep
from bench.run.cell import failed_since
from bench.run.cluster import driver, notes, slurm, watch
from bench.run.cluster.arrays import WAVES, arrays_of, gpu_hours
from bench.run.cluster.snapshot import take
from bench.run.cluster.work import Job, Task
from bench.run.executor import LocalExecutor, Packing
from bench.run.grid import Request, load_profile, memory_needed
from bench.run.grid.profile import Cluster, Needs, read_cluster
from bench.run.provenance import SNAPSHOT, digest_of
from bench.spec import BenchError, PretrainCell, TransferCell
from tests.conftest import pretrain_cell, transfer_cell
from tests.test_launch import STEPS, House, calls, executor_with

HOME = Path(__file__).resolve().parent.parent
PROFILES = sorted((HOME / "slurm").glob("*.toml"))
PATH = Path("p.toml")


# ------------------------------------------------------------------------------------------------------------ profiles


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_profiles_that_are_shipped_are_whole(path: Path, shelves: Registry) -> None:
    found = load_profile(path)
    cluster = found.pop("cluster", None)
    Request("rd", "chase", **found)
    assert (cluster is None) == (path.stem == "local")
    if cluster is not None:
        assert cluster.with_names(shelves).needs.slots >= 1
        assert cluster.needs.gpus == (1 if path.stem in ("a100", "h200") else 0)


def test_a_profile_says_what_a_cell_needs(shelves: Registry) -> None:
    table = {
        **{"partition": "gpu", "gpus": 1, "cpus": 4, "memory": "32GB", "time": "1-02:30:01", "cells-per-gpu": 2},
        "options": {"constraint": "a100", "exclusive": True, "nice": 5},
        "method": {"simclr": {"memory": "500MB"}, "ld": {"time": "0:10:00"}},
        "task": {"idrid_*": {"gpus": 0, "partition": "cpu"}},
    }
    cluster = read_cluster(table, PATH).with_names(shelves)
    plain = cluster.needs
    assert (plain.partition, plain.memory, plain.minutes, plain.slots) == ("gpu", 32.0, 26 * 60 + 31, 2)
    assert dict(plain.options) == {"constraint": "a100", "exclusive": True, "nice": "5"}
    assert cluster.needs_of(pretrain_cell("moco")) == plain
    assert cluster.needs_of(pretrain_cell("simclr")) == replace(plain, memory=500 / 1024)
    assert cluster.needs_of(pretrain_cell("rd")).minutes == 10  # by its group
    assert cluster.needs_of(transfer_cell(pretrain_cell("simclr"), "chase")) == plain
    needs = cluster.needs_of(transfer_cell(pretrain_cell("simclr"), "idrid_od"))
    assert (needs.partition, needs.slots) == ("cpu", 4)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"partitoin": "gpu"}, "unknown key 'partitoin'; did you mean 'partition'"),
        ({"method": {"rd": {"tiem": "1:00:00"}}}, "[cluster.method.rd] has an unknown key 'tiem'; did you mean 'time'"),
        ({"method": {"rd": {"parallel": 3}}}, "unknown key 'parallel'; it may hold partition, account"),
        ({"method": "rd"}, "[cluster.method] must hold one table per name"),
        ({"task": {"chase": 1}}, "[cluster.task.chase] must be a table"),
        ({"gpus": -1}, "sets gpus to -1, but it takes a whole number from 0 on"),
        ({"cpus": 0}, "sets cpus to 0, but it takes a whole number from 1 on"),
        ({"cpus": True}, "sets cpus to True"),
        ({"array_size": 0}, "sets array_size to 0"),
        ({"memory": "32"}, 'a text such as "32GB"'),
        ({"memory": "0GB"}, 'a text such as "32GB"'),
        ({"time": "60"}, 'a text such as "4:00:00"'),
        ({"time": "0:00:00"}, 'a text such as "4:00:00"'),
        ({"partition": "a\nb"}, "a text of one line"),
        ({"setup": "module load x"}, "a list of shell lines"),
        ({"environment": {"A B": "c"}}, "a table of NAME = text"),
        ({"environment": ["A=b"]}, "a table of NAME = text"),
        ({"options": {"array": "0-3"}}, "options.array, which bench sets itself"),
        ({"options": {"nice": 1.5}}, "a table of options of sbatch"),
        ({"requeues": 1.5}, "sets requeues to 1.5"),
        ({"max_gpu_hours": "many"}, "a number of hours"),
        ("gpu", "[cluster] must be a table"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_in_one_sentence(table: Any, said: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_cluster(table, PATH)
    assert said in str(caught.value) and str(caught.value).startswith("the profile p.toml, [cluster")


def test_an_override_of_nothing_is_refused(shelves: Registry) -> None:
    with pytest.raises(BenchError, match="unknown method 'simclrr'; did you mean 'simclr'"):
        read_cluster({"method": {"simclrr": {"gpus": 1}}}, PATH).with_names(shelves)


# -------------------------------------------------------------------------------------------------------------- arrays


def grid_of(pretrainings: int, tasks: int = 3) -> list[PretrainCell | TransferCell]:
    first = pretrain_cell("rd")
    parents = [replace(first, seed=seed) for seed in range(pretrainings)]
    names = ("chase", "hrf", "stare", "rite", "idrid_od")[:tasks]
    judged = [transfer_cell(first, task) for task in names]
    return [*parents, *(replace(cell, pretrain=parent, seed=parent.seed) for parent in parents for cell in judged)]


def test_transfers_wait_for_their_own_pretrainings_only() -> None:
    cells = grid_of(3)
    scratch = transfer_cell(pretrain_cell("scratch"), "chase")
    first, *others = arrays_of([*cells, scratch], Cluster())
    assert first.stage == "pretrain" and len(first.tasks) == 3 and first.parents == ()
    assert others[0].cells == [scratch] and others[0].parents == ()
    assert [array.parents for array in others[1:]] == [(cell.key,) for cell in cells[:3]]
    for array in others[1:]:
        assert {cell.pretrain.key for cell in array.cells if isinstance(cell, TransferCell)} == set(array.parents)


def test_many_pretrainings_make_few_arrays_and_no_cell_is_lost() -> None:
    cells = grid_of(200, tasks=5)
    found = arrays_of(cells, Cluster(array_size=30))
    assert len(found) == 1 + WAVES and max(len(array.tasks) for array in found) <= 30
    assert sorted(cell.key for array in found for cell in array.cells) == sorted(cell.key for cell in cells)
    assert sum(len(array.parents) for array in found) == 200


def test_what_is_in_the_queue_already_is_waited_for() -> None:
    cells = grid_of(2)
    found = arrays_of(cells[2:], Cluster(), [cells[0].key])
    assert [array.parents for array in found] == [(), (cells[0].key,)]


def test_cells_that_run_side_by_side_share_a_job() -> None:
    cells = [cell for cell in grid_of(4, tasks=5) if isinstance(cell, TransferCell)]
    (packed,) = arrays_of(cells, Cluster(Needs(gpus=1, cells_per_gpu=8)))
    assert [len(task) for task in packed.tasks] == [7, 7, 6]
    (cores,) = arrays_of(cells, Cluster(Needs(cpus=4)))
    assert [len(task) for task in cores.tasks] == [4] * 5
    long = replace(pretrain_cell("rd"), steps=99)
    assert arrays_of([pretrain_cell("moco"), long], Cluster())[0].tasks[0] == (long,)


def test_gpu_hours_are_measured_or_at_most_the_time_limit() -> None:
    cells = grid_of(2, tasks=1)
    arrays = arrays_of(cells, Cluster(Needs(gpus=2, minutes=30)))
    assert gpu_hours(arrays, {}) == pytest.approx(3 * 2 * 0.5)  # 2 pretrainings of a job of 2 slots, 2 transfers alone
    known = dict.fromkeys((cell.key for cell in cells), 360.0)
    assert gpu_hours(arrays, known) == pytest.approx((2 * 360 / 2 + 2 * 360 / 2) * 2 / 3600)
    assert gpu_hours(arrays, dict.fromkeys(known, 1000000000.0)) == pytest.approx(3 * 2 * 0.5)


# ----------------------------------------------------------------------------------------------------------- a pretence

SBATCH = """#!/bin/sh
if [ -e "$FAKE/refuse" ]; then echo "sbatch: error: $(cat "$FAKE/refuse")" >&2; exit 1; fi
n=$(cat "$FAKE/next" 2>/dev/null || echo 100)
echo $((n + 1)) > "$FAKE/next"
cp "$1" "$FAKE/$n.job"
echo "Submitted batch job $n"
"""
SQUEUE = """#!/bin/sh
echo "$@" >> "$FAKE/squeue.log"
if [ -e "$FAKE/down" ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
for file in "$FAKE"/*.job; do
  [ -e "$file" ] || continue
  id=$(basename "$file" .job)
  name=$(sed -n 's/^#SBATCH --job-name=//p' "$file")
  last=$(sed -n "s/^#SBATCH --array='*0-\\([0-9]*\\)%.*/\\1/p" "$file")
  for label in $([ -n "$last" ] && seq -f "${id}_%.0f" 0 "$last" || echo "$id"); do
    state=$(cat "$FAKE/$label.state" 2>/dev/null || echo PENDING)
    [ "$state" = GONE ] || echo "$label|$name|$state"
  done
done
"""
SACCT = """#!/bin/sh
if [ -e "$FAKE/accounts" ]; then cat "$FAKE/accounts"; else echo "sacct: error: accounting is off" >&2; exit 1; fi
"""
SCONTROL = """#!/bin/sh
if [ "$*" = "show config" ]; then echo "ClusterName             = fake"; exit; fi
echo "$@" >> "$FAKE/scontrol.log"
case "$*" in
  requeue*) [ ! -e "$FAKE/never" ] || { echo "scontrol: error: Requested operation is disabled" >&2; exit 1; } ;;
  *) [ -e "$FAKE/control" ] || { echo "slurm_load_jobs error: Invalid job id" >&2; exit 1; }; cat "$FAKE/control" ;;
esac
"""


SCANCEL = """#!/bin/sh
shift
for label in "$@"; do echo GONE > "$FAKE/$label.state"; echo "$label" >> "$FAKE/scancel.log"; done
"""


class FakeSlurm:
    """The folder behind the pretended commands."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def jobs(self) -> list[str]:
        """The scripts that sbatch was given, in order."""
        return [path.read_text() for path in sorted(self.home.glob("*.job"))]

    def flags(self, script: str) -> dict[str, str]:
        lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
        return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}

    def set(self, name: str, text: str = "") -> None:
        (self.home / name).write_text(text)

    def state(self, note: notes.Note, task: int, state: str) -> None:
        self.set(f"{note.label(task)}.state", state)

    def end(self, store: Any) -> None:
        """Every task leaves the queue."""
        for note in notes.open_notes(store):
            for task in range(len(note.tasks)):
                self.state(note, task, "GONE")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    commands, home = tmp_path / "commands", tmp_path / "fake"
    commands.mkdir()
    home.mkdir()
    texts = {
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "sacct": SACCT,
        "scontrol": SCONTROL,
        "scancel": SCANCEL,
        "srun": "#!/bin/sh\n",
    }
    for name, text in texts.items():
        path = commands / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(home))
    slurm.cluster.cache_clear()
    return FakeSlurm(home)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    code = "c0de" * 16  # of a tree that may be edited while its tests run
    monkeypatch.setattr(executor, "PRELOAD", ("torch",))
    monkeypatch.setattr("bench.run.cluster.work.code_digest", lambda: code)
    monkeypatch.setattr("bench.run.cluster.snapshot.digest_of", lambda home: code)
    monkeypatch.setattr(Job, "_executor", lambda self: executor_with(self.order["slots"]))
    (tmp_path / "house").mkdir()
    yield House(tmp_path / "house")


def submit(house: House, cluster: Cluster | None = None, methods: str = "one,two") -> driver.Submission:
    request = replace(house.request(methods), cluster=cluster or Cluster(Needs(minutes=60)))
    return driver.submit(house.grid(methods), request, house.shelves, lambda hours: False)


def work(note: notes.Note, task: int, monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, int]:
    """Does in this process what a task would do on a node."""
    array, _, index = note.label(task).partition("_")
    given = {"SLURM_JOB_ID": "7777", **({"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index} if index else {})}
    for name, value in {**given, **environment}.items():
        monkeypatch.setenv(name, value)
    return Task(str(note.folder), task)()


def work_all(house: House, monkeypatch: pytest.MonkeyPatch, stage: str = "") -> None:
    for note in notes.open_notes(house.store):
        for task in range(len(note.tasks) if stage in ("", note.stage) else 0):
            work(note, task, monkeypatch)


# ---------------------------------------------------------------------------------------------------------- submission


def test_a_grid_is_a_handful_of_arrays_submitted_once(house: House, fake: FakeSlurm) -> None:
    cluster = Cluster(
        Needs("gpu", "lab", gpus=0, cpus=2, memory=1.5, minutes=90, options=(("constraint", "fast"),)),
        setup=("module load x",),
        environment=(("NAME", "two words"),),
        parallel=7,
    )
    first = submit(house, cluster)
    assert (first.new("pretrain"), first.new("transfer"), first.queued, first.dead) == (2, 6, [], 0)
    pretrainings, scratch, *children = [fake.flags(script) for script in fake.jobs()]
    assert pretrainings["partition"] == "gpu" and pretrainings["account"] == "lab" and pretrainings["time"] == "90"
    assert pretrainings["mem"] == "1536MB" and pretrainings["cpus-per-task"] == "2" and "requeue" in pretrainings
    assert pretrainings["constraint"] == "fast" and pretrainings["signal"] == "USR2@120"
    assert "array" not in pretrainings and "dependency" not in scratch  # two cells share a job of two cores
    assert [flags["dependency"] for flags in children] == ["afterany:100", "afterany:100"]
    script = fake.jobs()[0]
    assert "module load x\n" in script and "export NAME='two words'\n" in script and "--cpus-per-task=2" in script
    assert f"export PYTHONPATH={house.store.runs}/snapshots/" in script
    again = submit(house, cluster)
    assert len(fake.jobs()) == 4 and again.arrays == () and len(again.queued) == 8 and again.dead == 0


def test_tasks_of_an_array_wait_for_their_task(house: House, fake: FakeSlurm) -> None:
    submit(house)
    flags = [fake.flags(script) for script in fake.jobs()]
    assert [entry["array"] for entry in flags] == ["0-1%2"] * 4
    assert [entry.get("dependency") for entry in flags] == [None, None, "afterany:100_0", "afterany:100_1"]


def test_drivers_at_once_submit_every_cell_once(house: House, fake: FakeSlurm) -> None:
    made: list[driver.Submission] = []
    threads = [threading.Thread(target=lambda: made.append(submit(house))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(found.arrays) for found in made) == [0, 0, 0, 4] and len(fake.jobs()) == 4


def test_many_gpu_hours_are_asked_about(house: House, fake: FakeSlurm) -> None:
    cluster = Cluster(Needs(gpus=1, minutes=60), max_gpu_hours=7.9)
    with pytest.raises(BenchError, match=r"may take 8\.0 GPU-hours, more than the profile's max_gpu_hours = 7\.9"):
        submit(house, cluster)
    assert fake.jobs() == []
    request = replace(house.request(), cluster=cluster)
    assert len(driver.submit(house.grid(), request, house.shelves, lambda hours: hours == 8.0).arrays) == 4
    assert "gpus-per-node" in fake.flags(fake.jobs()[0])
    assert submit(house, replace(cluster, max_gpu_hours=0.0)).arrays == ()  # nothing new, nothing to ask


def test_what_sbatch_says_is_said(house: House, fake: FakeSlurm) -> None:
    fake.set("refuse", "invalid partition specified: gpu")
    with pytest.raises(BenchError, match=r"sbatch refused an array of 2 tasks: .*invalid partition specified: gpu"):
        submit(house)
    (fake.home / "refuse").unlink()
    assert len(submit(house).arrays) == 4


def test_a_job_needs_the_gpus_of_its_cells(house: House, fake: FakeSlurm) -> None:
    request = replace(house.request(gpus_per_cell=4), cluster=Cluster(Needs(gpus=2)))
    with pytest.raises(BenchError, match="--gpus-per-cell 4, but the profile's jobs have gpus = 2"):
        driver.submit(house.grid(), request, house.shelves, lambda hours: True)
    request = replace(request, cluster=Cluster(Needs(gpus=8)))
    made = driver.submit(house.grid(), request, house.shelves, lambda hours: True)
    assert [array.slots for _, array in made.arrays] == [2, 8, 8, 8]


def test_without_slurm_nothing_is_submitted(house: House, fake: FakeSlurm) -> None:
    fake.set("down")
    with pytest.raises(BenchError, match=r"Slurm, which does not answer here \(squeue: .*Unable to contact"):
        submit(house)


def test_a_driver_that_died_after_sbatch_is_made_good(house: House, fake: FakeSlurm) -> None:
    made = submit(house)
    for note, _ in made.arrays:
        notes.noted(replace(note, job=""))
    assert submit(house).arrays == () and len(fake.jobs()) == 4
    assert {note.job for note in notes.open_notes(house.store)} == {"100", "101", "102", "103"}


def test_jobs_of_a_colleague_are_seen_and_left_alone(house: House, fake: FakeSlurm) -> None:
    (first, _), *others = submit(house).arrays
    assert (first.user, first.cluster) == (slurm.user(), "fake")
    for note, _ in [(first, None), *others]:
        notes.noted(replace(note, user="ann"))
    assert submit(house).arrays == ()  # they hold the cells
    assert f"--user={','.join(sorted(['ann', slurm.user()]))}" in (fake.home / "squeue.log").read_text()
    fake.end(house.store)
    again = submit(house)
    assert again.dead == 0 and len(again.arrays) == 4  # how hers ended is hers to say
    assert not (first.folder / notes.CLOSED).exists()


def test_jobs_of_another_cluster_are_no_jobs_of_this(house: House, fake: FakeSlurm) -> None:
    made = submit(house).arrays
    for note, _ in made:
        notes.noted(replace(note, cluster="other"))
    again = submit(house)
    assert again.dead == 0 and len(again.arrays) == 4
    assert not any((note.folder / notes.CLOSED).exists() for note, _ in made)


# -------------------------------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize(
    ("state", "code", "status", "reason"),
    [
        ("OUT_OF_MEMORY", "0:125", "out of memory", "took more memory than it had asked for"),
        ("TIMEOUT", "0:0", "timed out", "reached its time limit"),
        ("NODE_FAIL", "0:0", "failed", "the node of job 100_0 failed"),
        ("CANCELLED by 1000", "0:0", "failed", "job 100_0 was cancelled"),
        ("PREEMPTED", "0:0", "failed", "was preempted, and the cluster did not put it back"),
        ("FAILED", "0:9", "failed", "killed by signal 9 (out of memory?)"),
        ("FAILED", "1:0", "failed", "ended (failed) and left no result"),
        ("COMPLETED", "0:0", "failed", "ended (completed) and left no result"),
    ],
)
def test_how_a_job_died_is_told_apart(
    house: House, fake: FakeSlurm, state: str, code: str, status: str, reason: str
) -> None:
    (note, _), *_ = submit(house).arrays
    fake.set("accounts", f"100_0|{state}|{code}\n100_1|RUNNING|0:0\n")
    fake.end(house.store)
    again = submit(house)
    assert again.dead == 4 and len(again.arrays) == 4  # two pretrainings, two transfers from scratch; no word of three
    one, two = (house.store.state(cell) for cell in house.grid().pretrainings)
    assert one is not None and two is not None
    assert one["status"] == status and reason in one["reason"] and one["reason"].endswith("before the cell began")
    assert two["reason"].startswith("job 100_1 is gone without a word, and this cluster keeps no account of it")
    blocked = [record for record in house.store.records() if record["status"] == "blocked"]
    assert len(blocked) == 4 and any(reason in record["reason"] for record in blocked)
    assert (note.folder / notes.CLOSED).exists() and len(notes.open_notes(house.store)) == 4


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("slurmstepd: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***", "NODE_FAIL"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***", "PREEMPTED"),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "CANCELLED"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=1.0.", "OUT_OF_MEMORY"),
        ("a loss of 0.5", ""),
        ("slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***", ""),
        (f"x CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n{slurm.TURN}, job 12_3\na loss of 0.5", ""),
        (
            f"x CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n{slurm.TURN}, job 12_3\ny oom-kill event",
            "OUT_OF_MEMORY",
        ),
    ],
)
def test_without_accounts_the_log_tells(tmp_path: Path, fake: FakeSlurm, said: str, state: str) -> None:
    (tmp_path / "12_3_0_log.err").write_text(f"x\n{said}\n")
    assert slurm.ends("12", ["12_3"], tmp_path) == {"12_3": slurm.End(state)}


def test_without_accounts_the_controller_tells_for_a_while(tmp_path: Path, fake: FakeSlurm) -> None:
    fake.set("control", "JobId=12 ArrayTaskId=3 JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15 NodeList=n1\n")
    assert slurm.ends("12", ["12_3"], tmp_path) == {"12_3": slurm.End("TIMEOUT", 15)}


def test_a_cell_that_somebody_works_on_is_not_dead(house: House, fake: FakeSlurm) -> None:
    submit(house)
    held = house.store.begin(house.grid().pretrainings[0])
    assert held is not None
    fake.end(house.store)
    orphans = [cell for cell in house.grid().transfers if cell.pretrain == house.grid().pretrainings[0]]
    assert submit(house).dead == 5  # the other pretraining, what needs none, and what waits for the one that goes on
    for cell in orphans:
        record = house.store.read(cell.key)
        assert record is not None and record["status"] == "failed" and "gone without a word" in record["reason"]
    held.release()
    assert house.store.state(house.grid().pretrainings[0]) is None


# ------------------------------------------------------------------------------------------------------------ snapshot


def test_the_code_that_runs_is_a_copy(tmp_path: Path) -> None:
    plugin, table = tmp_path / "mine.py", tmp_path / "mine.toml"
    plugin.write_text("x = 1\n")
    table.write_text("root = '.'\n")
    taken = take(tmp_path / "runs", [str(plugin), str(table)])
    assert taken.code == digest_of(HOME) == digest_of(taken.folder)
    assert (read_json(taken.folder / SNAPSHOT) or {})["code"] == taken.code
    copied, left = taken.plugins
    assert (
        Path(copied).read_text() == "x = 1\n" and Path(copied).is_relative_to(tmp_path / "runs") and left == str(table)
    )
    before = (taken.folder / SNAPSHOT).stat().st_mtime_ns
    plugin.write_text("x = 2\n")
    again = take(tmp_path / "runs", [str(plugin)])
    assert again.folder == taken.folder and (taken.folder / SNAPSHOT).stat().st_mtime_ns == before
    assert Path(again.plugins[0]).read_text() == "x = 2\n" and Path(copied).read_text() == "x = 1\n"
    assert sorted(path.name for path in (tmp_path / "runs" / "snapshots").iterdir()) == [taken.folder.name, "plugins"]


def test_a_copy_knows_what_it_is_a_copy_of(tmp_path: Path) -> None:
    taken = take(tmp_path, [])
    code = (
        "from bench.run.provenance import code_digest, commit, code_home; print(code_digest(), commit(), code_home())"
    )
    environment = {**os.environ, "PYTHONPATH": str(taken.folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(["python", "-c", code], cwd=HOME, env=environment, capture_output=True, text=True, check=True)
    digest, commit, home = done.stdout.split()
    assert digest == taken.code and home == str(taken.folder)
    assert commit == str((read_json(taken.folder / SNAPSHOT) or {})["commit"])


def test_other_code_on_a_node_is_refused(house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    (note, _), *_ = submit(house).arrays
    order = read_json(note.folder / notes.ORDER)
    write_json(note.folder / notes.ORDER, {**(order or {}), "code": "0" * 64})
    with pytest.raises(BenchError, match="found other code than was submitted"):
        work(note, 0, monkeypatch)


def test_a_file_that_was_edited_meanwhile_is_the_reason(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note, _), *_ = submit(house).arrays
    order = read_json(note.folder / notes.ORDER) or {}
    write_json(note.folder / notes.ORDER, {**order, "files": [[str(house.home / "plugins.py"), "0" * 64]]})
    monkeypatch.setattr("bench.registry.scan", lambda plugins=(): house.shelves)
    assert work(note, 0, monkeypatch) == {"failed": 1}
    state = house.store.state(house.grid().pretrainings[0])
    assert state is not None and "was changed after the jobs were submitted" in state["reason"]


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_jobs_bring_every_cell_to_its_record(house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(house)
    work_all(house, monkeypatch)
    assert house.statuses() == {"done": 6} and set(house.counts("start").values()) == {1}
    fake.end(house.store)
    after = submit(house)
    assert (after.arrays, after.open, after.dead) == ((), (), 0)
    fake.set("down")
    assert submit(house).open == ()  # with nothing to do Slurm is not asked


def test_a_failed_pretraining_blocks_its_transfers_only(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.script(one={"do": "nan"})
    submit(house)
    work_all(house, monkeypatch)
    assert house.statuses() == {"done": 4, "blocked": 2}
    reasons = [record["reason"] for record in house.store.records() if record["status"] == "blocked"]
    assert all("pretrain/one-" in why and "failed: the loss became nan at step 3" in why for why in reasons)
    house.script()
    fake.end(house.store)
    again = submit(house)
    assert (again.new("pretrain"), again.new("transfer"), again.dead) == (1, 2, 0)
    work_all(house, monkeypatch)
    assert house.statuses() == {"done": 6} and "start one seed 0 at 2 on cpu" in calls(house.home)


def test_transfers_that_still_wait_follow_their_pretraining_to_its_next_task(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.script(one={"do": "nan"})
    submit(house)
    work_all(house, monkeypatch, "pretrain")
    fake.state(notes.open_notes(house.store)[0], 0, "GONE")  # the one that failed
    house.script()
    again = submit(house)
    assert (again.new("pretrain"), again.new("transfer"), len(again.queued)) == (1, 2, 4)
    assert (fake.home / "scancel.log").read_text().split() == ["102_0", "102_1"]  # those of the failed pretraining
    assert fake.flags(fake.jobs()[-1])["dependency"] == "afterany:104"
    work_all(house, monkeypatch, "pretrain")
    for note, _ in again.arrays[1:]:
        for task in range(2):
            work(note, task, monkeypatch)
    assert house.statuses() == {"done": 2}
    assert submit(house).dead == 0  # those that were taken out are not taken for dead


def test_a_pretraining_that_died_is_recorded_by_its_transfers(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.run.cluster.work.PARENT_SECONDS", 0.1)
    submit(house)
    fake.set("accounts", "100_0|NODE_FAIL|0:0\n")
    work_all(house, monkeypatch, "transfer")
    state = house.store.state(house.grid().pretrainings[0])
    assert state is not None and "the node of job 100_0 failed" in state["reason"]
    blocked = [record["reason"] for record in house.store.records() if record["status"] == "blocked"]
    assert len(blocked) == 4 and sum("the node of job 100_0 failed" in reason for reason in blocked) == 2


def interrupted(
    house: House, monkeypatch: pytest.MonkeyPatch, number: int, note: notes.Note, **environment: str
) -> dict[str, int]:
    """A pretraining of slow steps that gets a signal after its second one."""
    house.script(one={"sleep": 0.2}, two={"sleep": 0.2})

    def send() -> None:
        folder = house.store.folder(house.grid().pretrainings[0])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if ((read_json(folder / "progress.json") or {}).get("step") or 0) >= 1:
                os.kill(os.getpid(), number)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return work(note, 0, monkeypatch, **environment)
    finally:
        thread.join()


def test_sigusr2_leaves_a_checkpoint_and_asks_for_another_turn(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note, _), *_ = submit(house).arrays
    interrupted(house, monkeypatch, signal.SIGUSR2, note)
    assert "requeue 100_0" in (fake.home / "scontrol.log").read_text()
    cell = house.grid().pretrainings[0]
    assert read_events(house.store.folder(cell))[-1]["event"] == "interrupted" and house.store.state(cell) is None
    house.script()
    work(note, 0, monkeypatch, SLURM_RESTART_COUNT="1")
    first, second = [line for line in calls(house.home) if line.startswith("start one")]
    assert " at 0 " in first and " at 0 " not in second and house.store.finished(cell)


def test_sigterm_leaves_the_rest_to_slurm(house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    (note, _), *_ = submit(house).arrays
    interrupted(house, monkeypatch, signal.SIGTERM, note)
    assert "requeue" not in (fake.home / "scontrol.log").read_text()
    assert read_events(house.store.folder(house.grid().pretrainings[0]))[-1]["event"] == "interrupted"


def test_sigterm_at_the_begin_of_a_preemption_asks_for_another_turn(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note, _), *_ = submit(house).arrays
    fake.set("control", "JobId=100 ArrayTaskId=0 JobState=RUNNING Reason=None ExitCode=0:0 NodeList=n1\n")
    interrupted(house, monkeypatch, signal.SIGTERM, note)
    assert "requeue 100_0" in (fake.home / "scontrol.log").read_text()


def test_a_failed_cell_is_submitted_again_while_its_neighbours_run(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.script(one={"do": "nan"})
    cluster = Cluster(Needs(minutes=60), array_size=1)
    notes_made = [note for note, _ in submit(house, cluster).arrays if note.stage == "pretrain"]
    assert [len(task) for note in notes_made for task in note.tasks] == [2]
    fake.state(notes_made[0], 0, "RUNNING")
    work(notes_made[0], 0, monkeypatch)
    house.script()
    again = [
        cell.key for _, array in submit(house, cluster).arrays for cell in array.cells if array.stage == "pretrain"
    ]
    assert again == [cell.key for cell in house.grid().pretrainings if cell.method == "one"]


def test_cells_that_their_job_has_not_come_to_can_be_cancelled(house: House, fake: FakeSlurm) -> None:
    submit(house)
    note = next(note for note in notes.open_notes(house.store) if note.stage == "pretrain")
    fake.state(note, 0, "RUNNING")
    waiting, standing = upkeep.queued(house.store)
    assert {state.key for state in waiting} == {
        cell.key for cell in (*house.grid().pretrainings, *house.grid().transfers)
    }
    upkeep.cancel([state for state in waiting if state.key in note.tasks[0]], standing)
    assert not (fake.home / "scancel.log").exists()
    assert all(
        asked_to_stop(house.store.folder(cell)) for cell in house.grid().pretrainings if cell.key in note.tasks[0]
    )


def test_transfers_of_pretrainings_on_several_devices_have_one(house: House, fake: FakeSlurm) -> None:
    request = replace(house.request(), cluster=Cluster(Needs(gpus=2, minutes=60)), gpus_per_cell=2)
    made = driver.submit(house.grid(), request, house.shelves, lambda hours: True)
    ranks = {note.stage: read_json(note.folder / "array.json")["site"]["ranks"] for note, _ in made.arrays}
    assert ranks == {"pretrain": 2, "transfer": 1}


@pytest.mark.parametrize("how", ["turns", "refused"])
def test_at_the_limit_without_another_turn_a_cell_is_timed_out(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (note, _), *_ = submit(house, Cluster(Needs(minutes=1), requeues=3)).arrays
    if how == "refused":
        fake.set("never")
    interrupted(house, monkeypatch, signal.SIGUSR2, note, SLURM_RESTART_COUNT="3" if how == "turns" else "0")
    state = house.store.state(house.grid().pretrainings[0])
    why = "it was put back 3 times already" if how == "turns" else "the cluster does not put it back (scontrol: "
    assert state is not None and state["status"] == "timed out" and why in state["reason"]


def test_preempted_for_good_a_cell_stays_interrupted(
    house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note, _), *_ = submit(house).arrays
    fake.set("never")
    interrupted(house, monkeypatch, signal.SIGUSR2, note)
    assert house.store.state(house.grid().pretrainings[0]) is None
    fake.set("accounts", "100_0|PREEMPTED|0:0\n")
    fake.end(house.store)
    assert submit(house).dead == 4
    state = house.store.state(house.grid().pretrainings[0])
    assert state is not None and "was preempted" in state["reason"] and f"of {STEPS}; see " in state["reason"]


def test_a_task_is_put_back_as_it_is() -> None:
    pytest.importorskip("submitit")
    task = Task("/somewhere", 3)
    assert task.checkpoint().function == task


# ------------------------------------------------------------------------------------------------------------- watching


def test_a_watch_ends_as_a_run_here_does(house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    house.script(one={"do": "nan"})
    submission = submit(house)
    found: list[launch.Outcome] = []
    thread = threading.Thread(
        target=lambda: found.append(watch.watch(submission, house.grid(), house.store, launch.Silent()))
    )
    thread.start()
    work_all(house, monkeypatch)
    thread.join(60)
    (outcome,) = found
    assert (outcome.counts, outcome.exit_code) == ({"done": 4, "blocked": 2}, 1)
    assert (outcome.pretrained, outcome.transferred, len(outcome.failures)) == (1, 4, 3)


def test_a_watch_notices_what_is_gone(house: House, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "QUEUE_SECONDS", 0.1)
    submission = submit(house)
    fake.end(house.store)
    outcome = watch.watch(submission, house.grid(), house.store, launch.Silent())
    assert outcome.counts == {"failed": 2, "blocked": 4} and outcome.exit_code == 1
    assert all("gone without a word" in how.reason for _, how in outcome.failures)


# ------------------------------------------------------------------------------------------------------ on this machine


def test_cells_share_a_gpu_as_far_as_its_memory_goes(house: House) -> None:
    cells = list(house.grid("zero").transfers)
    started: list[tuple[str, ...]] = []

    class Recorder(LocalExecutor):
        def submit(self, cell: Any) -> None:
            place = self._place(cell)
            assert place is not None
            slot, devices = place
            self._slots.remove(slot)
            started.append(devices)
            connection: Any = None  # nothing is started
            self._children.append(executor._Child(cell, slot, devices, None, connection, 0))

    def recorder(needed: int | None) -> Recorder:
        packing = Packing(10_000_000_000, 4, lambda cell: needed)
        return Recorder(house.request().site(house.shelves), 8, 0.0, ["cuda:0", "cuda:1"], packing=packing)

    for needed, fit in ((None, 8), (1_000_000_000, 8), (3_000_000_000, 4), (9_000_000_000, 2), (50_000_000_000, 2)):
        held = recorder(needed)
        started.clear()
        while held.free() and held.takes(cells[0]):
            held.submit(cells[0])
        devices = [device for used in started for device in used]
        assert len(started) == fit and devices.count("cuda:0") == devices.count("cuda:1"), needed


def test_the_memory_of_a_cell_is_what_its_like_took(house: House) -> None:
    cell = house.grid("zero").transfers[0]
    assert memory_needed(house.store)(cell) is None
    from bench.run.cell import timing_of

    for memory, device in ((5, "cuda"), (7, "cuda"), (99, "cpu")):
        house.store.add_timing({"of": timing_of(cell), "seconds": 1, "bytes": 1, "memory": memory, "device": device})
    assert memory_needed(house.store)(cell) == 7


def test_the_kernels_kills_are_counted(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert executor.memory_kills(tmp_path) == (2 if "0::" in Path("/proc/self/cgroup").read_text() else 0)
    assert executor.memory_kills(tmp_path / "none") == 0


def test_a_signal_to_every_process_of_a_job_kills_nobody(house: House) -> None:
    """SIGUSR2 goes to driver, fork server and children alike: the children stop, the server lives."""
    house.script(one={"sleep": 0.2}, two={"sleep": 0.2})
    from tests.test_launch import eventually, start_driver

    driver_process = start_driver(house.home)
    eventually(lambda: len(house.counts("start")) == 2)
    group = [
        int(pid)
        for pid in subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(driver_process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
    ]
    children = [
        int(pid)
        for parent in group
        for pid in subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
        ).stdout.split()
    ]
    for pid in (*group, *children, driver_process.pid):
        os.kill(pid, signal.SIGUSR2)
    out, err = driver_process.communicate(timeout=60)
    assert driver_process.returncode == 130 and err == "" and json.loads(out)["counts"] == {"missing": 6}
    last = [read_events(house.store.folder(cell))[-1]["event"] for cell in house.grid().pretrainings]
    assert last == ["interrupted", "interrupted"]
    assert all(failed_since(house.store, cell, 0.0) is None for cell in house.grid().pretrainings)
    assert scan(house.shelves.plugins).methods.keys() >= {"one", "two"}
