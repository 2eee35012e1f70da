"""What Slurm says of jobs: which are in the queue, and how those ended that are not.

`sacct` knows the end of a job where the cluster keeps accounts, `scontrol` for some minutes, and the job's own log, to
which Slurm writes why it killed it, always. How a job ended is never an error here: what is not known is said so.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.spec import FAILED, OUT_OF_MEMORY, TIMED_OUT

PATIENCE = 60.0  # seconds for one answer
TAIL_BYTES = 20_000
_OVER = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
}
_OVER |= {"PREEMPTED"}
_SAID = (  # by Slurm, in the log of a job that it killed
    ("DUE TO TIME LIMIT", "TIMEOUT"),
    ("DUE TO NODE FAILURE", "NODE_FAIL"),
    ("DUE TO PREEMPTION", "PREEMPTED"),
    ("oom-kill event", "OUT_OF_MEMORY"),
    ("oom_kill event", "OUT_OF_MEMORY"),
    ("CANCELLED AT", "CANCELLED"),
)
TURN = "--- bench: a turn begins"  # what a job writes into that log at its start
_PUT_BACK = "DUE TO JOB REQUEUE"  # in the line that ends a turn after which another follows


class NoAnswer(Exception):
    """A command of Slurm is missing, failed or took too long; the message is its last line."""


def ask(words: Sequence[str]) -> str:
    """What a command of Slurm prints; NoAnswer where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{words[0]}: {type(error).__name__}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoAnswer(lines[-1] if lines[-1].startswith(words[0]) else f"{words[0]}: {lines[-1]}")
    return done.stdout


def user() -> str:
    """Who submits from here."""
    return getpass.getuser()


@cache
def cluster() -> str:
    """The name of the cluster that answers here; empty where it does not tell."""
    try:
        told = re.search(r"(?m)^ClusterName\s*=\s*(\S+)", ask(["scontrol", "show", "config"]))
    except NoAnswer:
        told = None
    return told[1] if told else os.environ.get("SLURM_CLUSTER_NAME", "")


def queue(users: Iterable[str] = ()) -> dict[tuple[str, str], str]:
    """(task's label, job's name) -> state, of every task of this and other users that waits or runs; NoAnswer.

    A cluster may keep other users' tasks to itself.
    """
    names = ",".join(sorted({user(), *users}))
    text = ask(["squeue", "--noheader", "--array", f"--user={names}", "--format=%i|%j|%T"])
    rows = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 2]
    return {(label, name): state for label, name, state in rows if state not in _OVER}


@dataclass(frozen=True)
class End:
    """How a task ended: Slurm's word for it, empty where nothing tells, and the signal that killed it, or 0."""

    state: str
    signal: int = 0


def ends(job: str, labels: Iterable[str], log: Path) -> dict[str, End]:
    """How tasks of one job ended; `log` is the folder of the logs."""
    labels, found = list(labels), dict[str, End]()
    accounts = ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=JobID,State,ExitCode"]
    try:
        rows = [line.split("|") for line in ask(accounts).splitlines()]
        found = {row[0]: _end(row[1], row[2]) for row in rows if len(row) == 3}
    except NoAnswer:
        pass
    told = {label: end for label, end in found.items() if end.state in _OVER}
    return {label: told.get(label) or _from_control(label) or _from_log(label, log) for label in labels}


def _end(state: str, code: str) -> End:
    number = code.partition(":")[2]
    return End(state.partition(" ")[0].rstrip("+"), int(number) if number.isdigit() else 0)


def _from_control(label: str) -> End | None:
    try:
        text = ask(["scontrol", "--oneliner", "show", "job", label])
    except NoAnswer:
        return None
    found = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", text))
    end = _end(found.get("JobState", ""), found.get("ExitCode", ""))
    return end if end.state in _OVER else None


def _from_log(label: str, folder: Path) -> End:
    """What Slurm wrote of the last turn; why it ended an earlier one is not why it ended this one."""
    lines = tail(folder / f"{label}_0_log.err").splitlines()
    begin = max((at for at, line in enumerate(lines) if line.startswith(TURN) or _PUT_BACK in line), default=-1)
    text = "\n".join(lines[begin + 1 :])
    return next((End(state) for said, state in _SAID if said in text), End(""))


def tail(path: Path) -> str:
    """The last of a file; nothing where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def explain(end: End, label: str) -> tuple[str, str]:
    """Status and reason of a record for a cell whose job ended without one."""
    job = f"job {label}"
    if end.state == "OUT_OF_MEMORY":
        return OUT_OF_MEMORY, f"{job} took more memory than it had asked for"
    if end.state in ("TIMEOUT", "DEADLINE"):
        return TIMED_OUT, f"{job} reached its time limit"
    if end.state in ("NODE_FAIL", "BOOT_FAIL"):
        return FAILED, f"the node of {job} failed"
    if end.state == "PREEMPTED":
        return FAILED, f"{job} was preempted, and the cluster did not put it back"
    if end.state in ("CANCELLED", "REVOKED"):
        return FAILED, f"{job} was cancelled"
    if end.signal:
        return FAILED, f"{job} was killed by signal {end.signal}" + (" (out of memory?)" if end.signal == 9 else "")
    if end.state == "":
        return FAILED, f"{job} is gone without a word, and this cluster keeps no account of it"
    return FAILED, f"{job} ended ({end.state.lower()}) and left no result"


def withdraw(labels: Sequence[str]) -> None:
    """Takes waiting tasks out of the queue; one that has begun meanwhile goes on. NoAnswer."""
    ask(["scancel", "--state=PENDING", *labels])


def goes_on(label: str) -> bool:
    """Whether a task runs and nothing has been decided of its end: neither cancelled nor put back."""
    try:
        text = ask(["scontrol", "--oneliner", "show", "job", label])
    except NoAnswer:
        return False
    return re.search(r"\bJobState=RUNNING(\s|$)", text) is not None


def requeue(label: str) -> None:
    """Puts a running task back into the queue; NoAnswer where the cluster does not do so."""
    ask(["scontrol", "requeue", label])
