"""The two folders of a store: records of transfer cells, and the work of all cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data.store.claims import Claim, claim, live_owner, sweep
from bench.data.store.events import append_line, read_lines, read_progress
from bench.data.store.files import LOG, read_json, report_damage, set_aside, write_bytes, write_json
from bench.spec import DONE, SCHEMA, SCHEMAS, BenchError, Cell, PretrainCell, TransferCell, cell_to_dict, digest

_KINDS = ("pretrain", "transfer")


@dataclass(frozen=True)
class CellState:
    """One cell as `status` shows it."""

    kind: str
    name: str  # of its folder, or of the record where the folder is gone
    key: str
    state: str  # running, interrupted, or a record's status
    reason: str
    folder: Path
    choices: Mapping[str, Any]  # the cell as plain data, or the record
    progress: Mapping[str, Any] | None


@dataclass(frozen=True)
class Store:
    """The two folders everything lies in."""

    runs: Path
    results: Path

    def prepare(self) -> None:
        """Makes the folders and proves that they can be written to; BenchError otherwise."""
        for folder in (self.runs, self.results / "records"):
            probe = folder / ".writable"
            write_bytes(probe, b"x" * 4096)
            probe.unlink(missing_ok=True)

    # records

    def record_path(self, key: str) -> Path:
        return self.results / "records" / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """The record of a cell, or None; a damaged one is set aside with a warning and counts as missing."""
        return self._read_record(self.record_path(key))

    def _read_record(self, path: Path) -> dict[str, Any] | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}; name another --results folder") from error
        try:
            record: dict[str, Any] = json.loads(content)
            whole = isinstance(record, dict) and record["cell_key"] == path.stem and _seal(record) == record["seal"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            report_damage(path, self.results / "quarantine", "record", "the cell counts as missing and is run again")
            return None
        return record

    def done(self, key: str) -> dict[str, Any] | None:
        """The record of a cell that has its result, in this schema."""
        record = self.read(key)
        return record if record is not None and settled(record) else None

    def write(self, record: Mapping[str, Any]) -> bool:
        """Writes a record, once: a cell that has its result keeps it (False). One of another schema is set aside."""
        path = self.record_path(record["cell_key"])
        known = self.read(record["cell_key"])
        if known is not None and known.get("schema") not in SCHEMAS:
            target, schema = self._aside(path), known.get("schema")
            LOG.warning("record %s has schema %s, not %s; it is kept as %s", path, schema, SCHEMA, target)
        elif known is not None and _half_without_saying(known):
            LOG.warning("record %s was computed in bfloat16; it is kept as %s", path, self._aside(path))
        elif known is not None and known["status"] == DONE:
            return False
        write_json(path, {**record, "seal": _seal(record)})
        return True

    def _aside(self, path: Path) -> Path | None:
        return set_aside(path, self.results / "quarantine")

    def records(self) -> list[dict[str, Any]]:
        """Every whole record, ordered by key."""
        paths = sorted((self.results / "records").glob("*.json"))
        return [record for record in map(self._read_record, paths) if record is not None]

    # cells

    def folder(self, cell: Cell) -> Path:
        """The work folder of a cell."""
        return self.runs / cell.folder

    def encoder(self, cell: PretrainCell) -> Path:
        """Where a finished pretraining leaves its encoder."""
        return self.folder(cell) / "encoder.safetensors"

    def note(self, cell: Cell, where: Mapping[str, Any] | None = None) -> None:
        """Leaves a cell's choices in its folder, and `where` its data and plug-ins are, so that it can be run again."""
        path, known = self.folder(cell) / "cell.json", read_json(self.folder(cell) / "cell.json")
        wanted = cell_to_dict(cell) | {"key": cell.key, "where": dict(where or (known or {}).get("where") or {})}
        if known is None or known.get("where") != wanted["where"]:
            write_json(path, wanted)

    def begin(self, cell: Cell, where: Mapping[str, Any] | None = None) -> Claim | None:
        """Claims a cell and leaves its choices beside its work; None while another live process has it."""
        folder = self.folder(cell)
        held = claim(folder)
        if held is None:
            return None
        try:
            sweep(folder)
            self.note(cell, where)
        except BaseException:
            held.release()
            raise
        return held

    def state(self, cell: PretrainCell) -> dict[str, Any] | None:
        """What a pretraining left when it last ended (`status`, `reason`, ...), or None."""
        path = self.folder(cell) / "state.json"
        state = _read_state(path)
        if state is None and path.exists():
            report_damage(path, None, "state", "the pretraining is taken up again from its last checkpoint")
        return state

    def pretrained(self, cell: PretrainCell) -> dict[str, Any] | None:
        """The state of a pretraining whose encoder is there."""
        state = self.state(cell)
        if state is None or state.get("status") != DONE or _half_without_saying(state):
            return None
        try:
            size = self.encoder(cell).stat().st_size
        except OSError:
            return None
        if size != state.get("encoder_bytes"):
            self.discard_encoder(cell)
            return None
        return state

    def discard_encoder(self, cell: PretrainCell) -> None:
        """Sets a damaged encoder aside with a warning; its pretraining is taken up again."""
        report_damage(self.encoder(cell), None, "encoder", "its pretraining is taken up again")

    def finished(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return (self.done(cell.key) if isinstance(cell, TransferCell) else self.pretrained(cell)) is not None

    # measured times

    def add_timing(self, timing: Mapping[str, Any]) -> None:
        """Notes how long a cell took, for `plan`."""
        append_line(self.runs / "timings.jsonl", timing)

    def timings(self) -> list[dict[str, Any]]:
        """What cells took on this store, oldest first."""
        return read_lines(self.runs / "timings.jsonl")

    # status

    def overview(self) -> list[CellState]:
        """Every cell this store knows, by folder and by record, pretrainings first."""
        cells = [state for kind in _KINDS for state in self._working(kind)]
        known = {state.key for state in cells}
        return cells + [self._recorded(record) for record in self.records() if record["cell_key"] not in known]

    def _working(self, kind: str) -> Iterator[CellState]:
        for path in sorted((self.runs / kind).glob("*/cell.json")):
            choices = read_json(path)
            if choices is None or "key" not in choices:
                continue
            folder, key = path.parent, choices["key"]
            ended = self.read(key) if kind == "transfer" else _read_state(folder / "state.json")
            owner = live_owner(folder)
            if owner is not None:
                state, reason = "running", f"on {owner['host']}, process {owner['pid']}"
            elif ended is None:
                state, reason = "interrupted", "not finished; the next run continues it"
            else:
                state, reason = ended["status"], ended.get("reason") or ""
            progress = read_progress(folder) if state in ("running", "interrupted") else None
            yield CellState(kind, folder.name, key, state, reason, folder, choices, progress)

    def _recorded(self, record: Mapping[str, Any]) -> CellState:
        key = record["cell_key"]
        name = f"{record.get('task', '?')}-{record.get('method', '?')}-{key[:12]}"
        folder = self.runs / "transfer" / name
        state, reason = record.get("status", "?"), record.get("reason") or ""
        if record.get("schema") not in SCHEMAS:
            reason = f"schema {record.get('schema')}, this version reads {SCHEMA}"
        return CellState("transfer", name, key, state, reason, folder, record, None)


def _read_state(path: Path) -> dict[str, Any] | None:
    """What a pretraining left, or None where it is missing or does not say how the pretraining ended."""
    state = read_json(path)
    if state is None or not {"key", "status", "reason", "finished"} <= state.keys():
        return None
    needed = {"encoder_bytes", "encoder_sha256", "sources", "seconds_per_step"} if state["status"] == DONE else set()
    return state if needed <= state.keys() else None


def settled(record: Mapping[str, Any]) -> bool:
    """Whether a record holds a result that counts for its key, in a schema that is read."""
    return record.get("schema") in SCHEMAS and record["status"] == DONE and not _half_without_saying(record)


def _half_without_saying(facts: Mapping[str, Any]) -> bool:
    """Whether a record or state is of release 0.2 on a GPU: in bfloat16, under a key that now means float32."""
    return "precision" not in facts and facts.get("device_type") == "cuda"


def _seal(record: Mapping[str, Any]) -> str:
    """The checksum that a record carries of itself."""
    return digest({name: value for name, value in record.items() if name != "seal"})
