"""Runs one cell on a node: claim, work, record. Safe to call again at any time, on any node, by anybody.

Whatever happens to a cell ends in its record (transfer) or state (pretraining): a result, or a status with one line of
reason and the traceback in the cell's `log.txt`. torch is imported when work starts, not with this module.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import __version__, registry
from bench.data.store import (
    Claim,
    Store,
    add_event,
    asked_to_stop,
    collected_warnings,
    forget_stop,
    read_events,
    utc_now,
    write_bytes,
    write_json,
    write_progress,
)
from bench.registry import Registry
from bench.registry.sources import source_of
from bench.run.costs import cost_of, cost_of_events
from bench.run.meter import Meter
from bench.run.provenance import code_digest, commit
from bench.run.ranks import STOP_SIGNALS, bind_to_parent
from bench.spec import (
    BLOCKED,
    DONE,
    FAILED,
    OUT_OF_MEMORY,
    SCHEMA,
    BenchError,
    Cell,
    CellError,
    CellInterrupted,
    CorpusSpec,
    MethodSpec,
    MetricSpec,
    PretrainCell,
    ProtocolSpec,
    Site,
    TaskSpec,
    TransferCell,
    cell_from_dict,
    file_digest,
    site_from_dict,
)

CANCELLED = "cancelled; the next `bench run` or `bench retry` goes on from its last checkpoint"
BUSY, INTERRUPTED, PARENT_LOST = "busy", "interrupted", "parent lost"  # outcomes that leave no record
PROGRESS_SECONDS = 1.0
_PACKAGES = ("torch", "torchvision", "lightly", "timm", "segmentation-models-pytorch", "safetensors", "numpy", "scipy")

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class CellOutcome:
    """How a call of `run_cell` ended: a status of records, or busy, interrupted, parent lost."""

    status: str
    reason: str = ""
    ran: bool = False  # whether this call did the work
    warnings: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------- records


@cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "bench": __version__, "commit": commit()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(torch.device(device))
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sources_of(cell: Cell, shelves: Registry) -> dict[str, Any]:
    """By which version and source of its plug-ins a cell is made."""
    method = cell.method if isinstance(cell, PretrainCell) else cell.pretrain.method
    made_by = {"method": source_of(shelves.get("method", method))}
    if isinstance(cell, TransferCell):
        made_by["task"] = source_of(shelves.get("task", cell.task))
        made_by["protocol"] = source_of(shelves.get("protocol", cell.protocol))
    return made_by


def record_of(cell: TransferCell, shelves: Registry, status: str, reason: str) -> dict[str, Any]:
    """The record of a cell, all choices and no result."""
    task: TaskSpec = shelves.get("task", cell.task)
    method: MethodSpec = shelves.get("method", cell.pretrain.method)
    corpus: CorpusSpec | None = shelves.corpora.get(cell.pretrain.corpus)
    protocol: ProtocolSpec = shelves.get("protocol", cell.protocol)
    metrics = shelves.metrics_of(task)
    return {
        "schema": SCHEMA,
        "method": cell.pretrain.method,
        "label": cell.pretrain.label,
        "method_title": method.title,
        "hparams": dict(cell.pretrain.hparams),
        "task": cell.task,
        "task_title": task.title,
        "group": task.groups[0] if task.groups else None,
        "truth": task.truth,
        "corpus": cell.pretrain.corpus or None,
        "corpus_fingerprint": cell.pretrain.corpus_fingerprint or None,
        "corpus_licence": corpus.licence if corpus else None,
        "phantom": cell.phantom or cell.pretrain.phantom,
        "backbone": cell.pretrain.backbone,
        "budget": cell.pretrain.budget,
        "transfer_budget": cell.budget,
        "pretrain_steps": cell.pretrain.steps,
        "pretrain_batch_size": cell.pretrain.batch_size,
        "image_size": cell.image_size,
        "precision": cell.precision,
        "protocol": cell.protocol,
        "label_fraction": cell.label_fraction,
        "fold": cell.fold,
        "folds": cell.folds,
        "seed": cell.seed,
        "status": status,
        "reason": reason,
        "metric": task.headline,
        "score": None,
        "higher_is_better": metrics[0].higher_is_better,
        "metrics": {spec.name: _told(spec) for spec in metrics},
        "scores": {},
        "structures": {},
        "cases": None,
        "n_images": None,
        "n_cases": None,
        "false_marks": None,
        "selection": protocol.selection,
        "weights": cell.pretrain.weights or None,
        "pretrain_key": cell.pretrain.key,
        "cell_key": cell.key,
        "seconds": None,
        "device_type": None,
        "device_seconds": None,
        "energy_joules": None,
        "job": None,
        "queue_seconds": None,
        "peak_memory": None,
        "versions": _versions(),
        "code": code_digest(),
        "sources": sources_of(cell, shelves),
        "dataset_fingerprint": cell.dataset_fingerprint,
        "licence": task.licence,
        "present": cell.present,
        "expected": cell.expected,
        "rule": cell.rule,
        "leaks": [list(leak) for leak in cell.leaks],
        "dropped": len(cell.pretrain.dropped),
        "finished": utc_now(),
    }


def _told(spec: MetricSpec) -> dict[str, Any]:
    """What a table must know of a metric, so that it can be printed where its file is not."""
    return {name: getattr(spec, name) for name in ("title", "unit", "higher_is_better", "scale", "digits")}


def end_badly(
    store: Store, shelves: Registry, cell: Cell, status: str, reason: str, costs: Mapping[str, Any] | None = None
) -> None:
    """Leaves the record or state of a cell that has no result; one that has it keeps it. costs: of this attempt."""
    reason = " ".join(reason.split())[:500]
    folder = store.folder(cell)
    store.note(cell)
    if isinstance(cell, TransferCell):
        store.write(record_of(cell, shelves, status, reason))
    elif store.pretrained(cell) is None:
        write_json(folder / "state.json", {"key": cell.key, "status": status, "reason": reason, "finished": utc_now()})
    if status != BLOCKED:
        add_event(folder, "failed", status=status, reason=reason, **(costs or {}))


def failed_since(store: Store, cell: Cell, since: float) -> CellOutcome | None:
    """How a cell failed after the time `since` (seconds since 1970), if it did."""
    ended = store.read(cell.key) if isinstance(cell, TransferCell) else store.state(cell)
    if ended is None or ended["status"] == DONE or datetime.fromisoformat(ended["finished"]).timestamp() < since:
        return None
    return CellOutcome(ended["status"], ended["reason"])


def _plain(value: Any) -> Any:
    """Facts as JSON can hold them: a number that is none becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


# ------------------------------------------------------------------------------------------------------------ progress


class _Cancelled(CellInterrupted):
    """Somebody wants this cell to be left alone, in this run."""


class _Reporter:
    """Takes the report of every step, writes `progress.json` at most once a second, passes on the wish to stop."""

    def __init__(self, folder: Path, claim: Claim, stop: threading.Event) -> None:
        self._folder, self._claim, self._stop = folder, claim, stop
        self._written = -math.inf
        self._phase: tuple[str, int, float] | None = None  # its name, its first step seen, when
        self.step = 0

    def __call__(self, facts: Mapping[str, Any]) -> None:
        self.step = int(facts["step"])
        if self._claim.lost.is_set():
            raise CellInterrupted("another process took this cell over")
        if self._stop.is_set():
            raise CellInterrupted("asked to stop")
        now = time.monotonic()
        if self._phase is None or self._phase[0] != facts["phase"]:
            self._phase = (facts["phase"], self.step, now)
        if now - self._written >= PROGRESS_SECONDS or self.step == facts["steps"]:
            if asked_to_stop(self._folder) is not None:
                raise _Cancelled(CANCELLED)
            self._written = now
            self._write(facts, now)

    def _write(self, facts: Mapping[str, Any], now: float) -> None:
        assert self._phase is not None
        _, first, began = self._phase
        pace = (now - began) / (self.step - first) if self.step > first else None
        losses = {name: _plain(float(value)) for name, value in facts.get("losses", {}).items()}
        progress = {"phase": facts["phase"], "step": self.step, "steps": facts["steps"], "losses": losses}
        left = pace * (facts["steps"] - self.step) if pace is not None else None
        write_progress(self._folder, {**progress, "seconds_left": left, "time": utc_now()})


# ---------------------------------------------------------------------------------------------------------------- work


def timing_of(cell: Cell) -> dict[str, Any]:
    """What the duration of a cell depends on, as plain data."""
    pretrain = cell if isinstance(cell, PretrainCell) else cell.pretrain
    common = {"kind": cell.kind, "backbone": pretrain.backbone, "image_size": cell.image_size}
    if isinstance(cell, PretrainCell):
        return common | {"method": cell.method, "batch_size": cell.batch_size}
    length = cell.phase_steps if cell.phase_steps is not None else f"{cell.phase_epochs} epochs of {cell.task}"
    fraction = cell.label_fraction if cell.phase_steps is None else 1.0
    return common | {"protocol": cell.protocol, "batch_size": cell.batch_size, "length": length, "fraction": fraction}


def _note_timing(store: Store, cell: Cell, seconds: float, memory: int, device: str) -> None:
    """For later estimates; a cell that is done stays done where this fails."""
    with suppress(OSError, BenchError):
        size = sum(path.stat().st_size for path in store.folder(cell).iterdir() if path.is_file())
        where = {"memory": memory, "device": device.partition(":")[0]}
        store.add_timing({"of": timing_of(cell), "seconds": seconds, "bytes": size, **where, "time": utc_now()})


def _pretrain(cell: PretrainCell, shelves: Registry, site: Site, store: Store, report: Report, meter: Meter) -> None:
    from bench.run.pretrain import pretrain

    facts = pretrain(cell, shelves.get("method", cell.method), shelves, site, store.folder(cell), report)
    encoder = store.encoder(cell)
    measured: dict[str, Any] = {
        "key": cell.key,
        "status": DONE,
        "reason": "",
        "finished": utc_now(),
        "encoder_bytes": encoder.stat().st_size,
        "encoder_sha256": file_digest(encoder),
        "sources": sources_of(cell, shelves),
        "device": _device_name(site.device),
        "ranks": site.ranks,
        "precision": cell.precision,
        **_spent(store.folder(cell), meter),
        "peak_memory": meter.peak_memory,
        "versions": _versions(),
        "code": code_digest(),
    }
    pace = facts["seconds"] / facts["steps_run"] if facts["steps_run"] else None
    write_json(store.folder(cell) / "state.json", {**_plain(facts), **measured, "seconds_per_step": pace})
    if pace is not None and site.ranks == 1:
        _note_timing(store, cell, pace, measured["peak_memory"], site.device)


def _transfer(
    cell: TransferCell,
    shelves: Registry,
    site: Site,
    store: Store,
    report: Report,
    meter: Meter,
    queue: Mapping[str, Any],
) -> None:
    from bench.run.transfer import transfer

    folder, state = store.folder(cell), None
    weights = None
    if cell.pretrain.trained:
        state, weights = _whole_parent(cell.pretrain, store), store.encoder(cell.pretrain)
    facts = dict(transfer(cell, shelves, site, folder, weights, report))
    if not math.isfinite(facts["score"]):
        raise CellError(FAILED, "the score is not a number: no test image has a defined metric")
    scores = _write_scores(folder / "scores.csv", facts["cases"])
    record = record_of(cell, shelves, DONE, "")
    if state is not None:
        record["sources"] |= {"method": state["sources"]["method"]}
        pace = state["seconds_per_step"]
        record["pretrain_seconds"] = pace * cell.pretrain.steps if pace is not None else None
        record["weights_match"] = state.get("weights_match")
        record |= {f"pretrain_{name}": state.get(name) for name in ("device_type", "device_seconds", "energy_joules")}
    measured: dict[str, Any] = {
        "device": _device_name(site.device),
        **_spent(folder, meter),
        **queue,
        "peak_memory": meter.peak_memory,
        "scores_file": f"{cell.folder}/scores.csv",
        "scores_sha256": scores,
    }
    store.write({**record, **_plain(facts), **measured})
    if facts.get("steps_run") == facts.get("steps"):  # one that was taken up again says nothing of the whole
        _note_timing(store, cell, facts["seconds"], measured["peak_memory"], site.device)


class _ParentLost(Exception):
    pass


def _whole_parent(cell: PretrainCell, store: Store) -> dict[str, Any]:
    """The state of a pretraining whose encoder is there, bit for bit."""
    state = store.pretrained(cell)
    if state is None:
        raise _ParentLost
    if file_digest(store.encoder(cell)) != state["encoder_sha256"]:
        store.discard_encoder(cell)
        raise _ParentLost
    return state


def _write_scores(path: Path, cases: Mapping[str, Any]) -> str:
    """Writes one row per case, metric and structure, and returns the file's SHA-256."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "patient", "metric", "structure", "value"))
    for metric, structures in cases["scores"].items():
        for structure, values in structures.items():
            for name, patient, value in zip(cases["names"], cases["patients"], values, strict=True):
                rows.writerow((name, patient, metric, structure, repr(float(value))))
    write_bytes(path, text.getvalue().encode())
    return file_digest(path)


def _explain(error: Exception) -> tuple[str, str]:
    """Status and one line of reason for what stopped a cell."""
    if isinstance(error, CellError):
        return error.status, error.reason
    first = next(iter(str(error).splitlines()), "")[:500]
    if isinstance(error, BenchError):
        return FAILED, first
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return (OUT_OF_MEMORY if memory or "can't allocate memory" in str(error) else FAILED), text


def _attempt(
    cell: Cell, site: Site, store: Store, claim: Claim, stop: threading.Event, since: float
) -> tuple[str, str]:
    folder, shelves, meter = store.folder(cell), Registry(), None
    report, queue = _Reporter(folder, claim, stop), _queue_facts(since)
    try:
        code_digest()  # kept from here on: the files may be edited while the cell is at work
        add_event(folder, "started", **queue)
        shelves = registry.scan(site.plugins)
        if isinstance(cell, PretrainCell):
            meter = Meter(site.device, site.ranks)
            _pretrain(cell, shelves, site, store, report, meter)
        else:
            meter = Meter(site.device)
            _transfer(cell, shelves, site, store, report, meter, queue)
    except _Cancelled as error:
        return _fail(store, shelves, cell, FAILED, str(error), meter)
    except CellInterrupted as error:
        add_event(folder, "interrupted", step=report.step, reason=str(error), **_costs(meter))
        return INTERRUPTED, str(error)
    except _ParentLost:
        add_event(folder, "interrupted", reason="the encoder it needs is gone", **_costs(meter))
        return PARENT_LOST, "the encoder it needs is gone"
    except Exception as error:
        _print_traceback()
        return _fail(store, shelves, cell, *_explain(error), meter)
    add_event(folder, "finished", step=report.step, **_costs(meter))
    return DONE, ""


def _fail(
    store: Store, shelves: Registry, cell: Cell, status: str, reason: str, meter: Meter | None
) -> tuple[str, str]:
    try:
        end_badly(store, shelves, cell, status, reason, _costs(meter))
    except BenchError:  # its plug-in was edited or the disk is full: the launcher leaves the record
        _print_traceback()
    return status, reason


def _print_traceback() -> None:
    with suppress(OSError):  # the log lies on the disk that may be full
        traceback.print_exc()


def _costs(meter: Meter | None) -> dict[str, Any]:
    return {} if meter is None else meter.costs()


def _spent(folder: Path, meter: Meter) -> dict[str, Any]:
    """What a cell took in this attempt and in those before it on the same type of device."""
    now = meter.costs()
    before = [event for event in read_events(folder) if event.get("device_type") == now["device_type"]]
    total = cost_of_events(before) + cost_of(now)
    seconds = total.gpu_seconds if now["device_type"] == "cuda" else total.cpu_seconds
    return now | {"device_seconds": seconds, "energy_joules": total.energy_joules}


def _queue_facts(since: float) -> dict[str, Any]:
    """The job that this process is part of, and how long it waited since it was submitted; nothing outside a job.

    A job that was put back into the queue ran in between, so only its first turn tells how long it waited.
    """
    job, start = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_START_TIME")
    if job is None:
        return {}
    first = start is not None and math.isfinite(since) and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    return {"job": job, "queue_seconds": max(0.0, float(start) - since) if first and start else None}


def _where(site: Site) -> dict[str, Any]:
    """What a cell needs to be run again beside its choices."""
    return {"data": None if site.data is None else str(site.data), "plugins": list(site.plugins)}


def run_cell(
    cell: Mapping[str, Any],
    site: Mapping[str, Any],
    since: float = math.inf,
    stop: threading.Event | None = None,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> CellOutcome:
    """Does the work of a cell that is not done, and leaves its record.

    cell, site: plain data of `cell_to_dict` and `site_to_dict`.
    since: a failure younger than this (seconds since 1970) is taken as it is, not tried again.
    stop: when set, the cell ends at the next report, to be continued.
    prepare: called with the cell's folder once the cell is claimed.
    """
    wanted, place = cell_from_dict(cell), site_from_dict(site)
    store = Store(place.runs, place.results)
    with collected_warnings() as warnings:
        if store.finished(wanted):
            return CellOutcome(DONE, warnings=tuple(warnings))
        try:
            claim = store.begin(wanted, _where(place))
        except BenchError as error:  # a full disk, a folder of somebody else
            return CellOutcome(FAILED, str(error), warnings=tuple(warnings))
        if claim is None:
            return CellOutcome(BUSY)
        try:
            if store.finished(wanted):
                return CellOutcome(DONE, warnings=tuple(warnings))
            failed = failed_since(store, wanted, since)
            if failed is not None:
                return failed
            asked = asked_to_stop(store.folder(wanted))
            if asked is not None and asked >= since:
                end_badly(store, registry.scan(place.plugins), wanted, FAILED, CANCELLED)
                return CellOutcome(FAILED, CANCELLED, warnings=tuple(warnings))
            forget_stop(store.folder(wanted))
            prepare(store.folder(wanted))
            status, reason = _attempt(wanted, place, store, claim, stop or threading.Event(), since)
        finally:
            claim.release()
    return CellOutcome(status, reason, True, tuple(warnings))


# ----------------------------------------------------------------------------------------------------- a child process


def _redirect(folder: Path) -> None:
    """Sends stdout and stderr of this process to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    print(f"--- {utc_now()} process {os.getpid()} on {platform.node()}", flush=True)


def child_main(cell: str, site: str, since: float, connection: Connection) -> None:
    """The whole life of a process made for one cell; cell and site as JSON, the outcome goes down the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    stop = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: stop.set())
    bind_to_parent()
    place = json.loads(site)
    import torch

    torch.set_num_threads(place["threads"])
    connection.send(run_cell(json.loads(cell), place, since, stop, _redirect))
    connection.close()
