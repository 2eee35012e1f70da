"""The `[cluster]` table of a profile: what a job asks Slurm for, and what single methods and tasks need instead."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.registry import Registry
from bench.spec import BenchError, Cell, PretrainCell, suggest

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?(MB|GB|TB)")
_GIGABYTES = {"MB": 1 / 1024, "GB": 1.0, "TB": 1024.0}
_NAME = re.compile(r"[A-Za-z_]\w*")
KINDS = ("method", "task")  # that may have needs of their own


@dataclass(frozen=True)
class Needs:
    """What one job asks for."""

    partition: str = ""  # empty: the cluster's default
    account: str = ""
    qos: str = ""
    gpus: int = 0
    cpus: int = 1
    memory: float | None = None  # GB; None: the cluster's default
    minutes: int = 60  # time limit
    cells_per_gpu: int = 1  # cells that share one GPU
    options: tuple[tuple[str, str | bool], ...] = ()  # further options of sbatch

    @property
    def slots(self) -> int:
        """Cells at a time in one job; without GPUs one per core."""
        return self.gpus * self.cells_per_gpu if self.gpus else self.cpus


@dataclass(frozen=True)
class Cluster:
    """How cells are submitted."""

    needs: Needs = Needs()
    method: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()  # names, what their pretrainings need instead
    task: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()  # names, what transfers to them need instead
    array_size: int = 1000  # tasks of one array, at most the cluster's MaxArraySize - 1
    parallel: int = 100  # tasks of one array that run at a time
    setup: tuple[str, ...] = ()  # shell lines before the work
    environment: tuple[tuple[str, str], ...] = ()
    requeues: int = 20  # how often a job is put back that is preempted or reaches its limit
    max_gpu_hours: float | None = None  # more is asked about
    _groups: dict[str, frozenset[str]] = field(default_factory=dict, compare=False, repr=False)

    def with_names(self, registry: Registry) -> Cluster:
        """The same with the overrides' names looked up; BenchError where one is unknown."""
        groups = {
            f"{kind} {name}": frozenset(registry.select(kind, name))
            for kind in KINDS
            for name, _ in getattr(self, kind)
        }
        return dataclasses.replace(self, _groups=groups)

    def needs_of(self, cell: Cell) -> Needs:
        """What a cell needs: the profile's, with every override that names its method (pretraining) or task."""
        kind, wanted = ("method", cell.method) if isinstance(cell, PretrainCell) else ("task", cell.task)
        needs = self.needs
        for name, changes in getattr(self, kind):
            if wanted in self._groups.get(f"{kind} {name}", {name}):
                needs = dataclasses.replace(needs, **dict(changes))
        return needs


# ------------------------------------------------------------------------------------------------------------- reading


class _Reader:
    """Takes the values of one table, each by its kind."""

    def __init__(self, place: str) -> None:
        self.place = place

    def refuse(self, key: str, value: Any, wanted: str) -> BenchError:
        return BenchError(f"{self.place} sets {key} to {value!r}, but it takes {wanted}")

    def known(self, table: Any, keys: Iterable[str]) -> dict[str, Any]:
        """The table with dashes as underscores; BenchError on an unknown key."""
        if not isinstance(table, dict):
            raise BenchError(f"{self.place} must be a table, not {table!r}")
        named = {key.replace("-", "_"): value for key, value in table.items()}
        for key in named:
            if key not in keys:
                near = suggest(key, keys) or f"; it may hold {', '.join(keys)}"
                raise BenchError(f"{self.place} has an unknown key {key!r}{near}")
        return named

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or "\n" in value:
            raise self.refuse(key, value, "a text of one line")
        return value

    def whole(self, key: str, value: Any, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refuse(key, value, f"a whole number from {least} on")
        return value

    def hours(self, key: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise self.refuse(key, value, "a number of hours from 0 on")
        return float(value)

    def gigabytes(self, key: str, value: Any) -> float:
        found = _MEMORY.fullmatch(value) if isinstance(value, str) else None
        if found is None or float(found[1]) == 0:
            raise self.refuse(key, value, 'a text such as "32GB" or "500MB"')
        return float(found[1]) * _GIGABYTES[found[2]]

    def minutes(self, key: str, value: Any) -> int:
        found = _TIME.fullmatch(value) if isinstance(value, str) else None
        parts = {name: int(text or 0) for name, text in found.groupdict().items()} if found else {}
        whole = -(-parts.get("seconds", 0) // 60) + parts.get("minutes", 0)
        whole += 60 * (parts.get("hours", 0) + 24 * parts.get("days", 0))
        if whole < 1:
            raise self.refuse(
                key, value, 'a text such as "4:00:00" (hours, minutes, seconds) or "2-12:00:00" (two days)'
            )
        return whole

    def lines(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, value, "a list of shell lines")
        return tuple(value)

    def variables(self, key: str, value: Any) -> tuple[tuple[str, str], ...]:
        table: dict[str, Any] = value if isinstance(value, dict) else {"": 0}
        if not all(_NAME.fullmatch(name) and isinstance(item, str) for name, item in table.items()):
            raise self.refuse(key, value, "a table of NAME = text")
        return tuple(table.items())

    def options(self, key: str, value: Any) -> tuple[tuple[str, str | bool], ...]:
        table: dict[str, Any] = value if isinstance(value, dict) else {"": 0}
        if not all(name and (item is True or isinstance(item, (str, int))) for name, item in table.items()):
            raise self.refuse(
                key, value, 'a table of options of sbatch, such as { constraint = "a100", exclusive = true }'
            )
        taken = sorted(name for name in table if name.replace("_", "-") in SET_BY_BENCH)
        if taken:
            raise BenchError(f"{self.place} sets {key}.{taken[0]}, which bench sets itself; leave it out")
        return tuple((name, item if item is True else str(item)) for name, item in table.items())

    def needs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of Needs that a table gives."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            if key in ("partition", "account", "qos"):
                found[key] = self.text(key, value)
            elif key in ("gpus", "cpus", "cells_per_gpu"):
                found[key] = self.whole(key, value, 0 if key == "gpus" else 1)
            elif key == "memory":
                found[key] = self.gigabytes(key, value)
            elif key == "time":
                found["minutes"] = self.minutes(key, value)
            elif key == "options":
                found[key] = self.options(key, value)
        return found

    def overrides(self, table: Any) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
        """Name -> fields of Needs, of `[cluster.method]` or `[cluster.task]`."""
        if not isinstance(table, dict):
            raise BenchError(f"{self.place} must hold one table per name, not {table!r}")
        found = []
        for name, values in table.items():
            inner = _Reader(f"{self.place.removesuffix(']')}.{name}]")
            found.append((name, tuple(inner.needs(inner.known(values, NEEDS)).items())))
        return tuple(found)


SET_BY_BENCH = ("array", "dependency", "error", "job-name", "no-requeue", "open-mode", "output", "requeue", "signal")
NEEDS = ("partition", "account", "qos", "gpus", "cpus", "memory", "time", "cells_per_gpu", "options")
KEYS = (*NEEDS, "array_size", "parallel", "setup", "environment", "requeues", "max_gpu_hours", *KINDS)


def read_cluster(table: Any, path: Path) -> Cluster:
    """The `[cluster]` table of the profile `path`; BenchError on an unknown key or a value that is none."""
    reader = _Reader(f"the profile {path}, [cluster]")
    values = reader.known(table, KEYS)
    found: dict[str, Any] = {"needs": Needs(**reader.needs(values))}
    for key, value in values.items():
        if key in ("array_size", "parallel"):
            found[key] = reader.whole(key, value, 1)
        elif key == "requeues":
            found[key] = reader.whole(key, value, 0)
        elif key == "max_gpu_hours":
            found[key] = reader.hours(key, value)
        elif key == "setup":
            found[key] = reader.lines(key, value)
        elif key == "environment":
            found[key] = reader.variables(key, value)
        elif key in KINDS:
            found[key] = _Reader(f"the profile {path}, [cluster.{key}]").overrides(value)
    return Cluster(**found)
