"""What `run` and `plan` are asked for, and the files that may ask it."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.data.store import Store
from bench.registry import Registry
from bench.run.grid.profile import Cluster, read_cluster
from bench.spec import BACKBONES, BUDGETS, PRECISIONS, BenchError, Budget, Site, suggest

SIZE_MULTIPLE = 32  # the coarsest stride of the backbones, px


@dataclass(frozen=True)
class Request:
    """What `run` and `plan` are asked for, option by option."""

    methods: str = ""  # with a layout: those of its rows, all where nothing is given
    tasks: str = ""  # with a layout: those of its columns
    layout: str | None = None  # the table whose cells are wanted
    seeds: int = 1
    budget: str = "quick"
    steps: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    transfer_steps: int | None = None  # of each phase of a transfer
    transfer_epochs: int | None = None
    precision: str | None = None  # 32 or bf16; None: the budget's
    backbone: str = "tiny_vgg16"
    protocol: str | None = None  # None: the default of each task
    corpus: str | None = None  # NAME or folder:PATH; None: the one each task declares
    label_fractions: tuple[float, ...] = (1.0,)
    folds: tuple[int, ...] = ()  # of tasks that have folds; (): all
    set: tuple[str, ...] = ()  # METHOD.FIELD=VALUE
    data: Path | None = None  # None: phantoms
    runs: Path = Path("runs")
    results: Path = Path("results")
    jobs: int | None = None  # None: one per core, or per GPU
    device: str | None = None  # None: the GPU where there is one
    checkpoint_seconds: float = 30.0  # 0: a checkpoint after every step
    skip_missing: bool = False
    allow_partial: bool = False  # run on what is there of a dataset, under a fingerprint of its own
    drop_leaks: bool = False  # leave out corpus images that are also in a labelled dataset
    cells_per_gpu: int = 1  # cells that share a GPU, as far as its memory allows
    gpus_per_cell: int = 1  # devices that share one pretraining
    cluster: Cluster | None = None  # of the profile: cells are jobs of a cluster; None: processes here
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # of the profile, beside ours

    @property
    def store(self) -> Store:
        return Store(self.runs.absolute(), self.results.absolute())

    def site(self, registry: Registry) -> Site:
        """Where the cells of this request run."""
        return Site(
            runs=self.runs.absolute(),
            results=self.results.absolute(),
            data=self.data.absolute() if self.data else None,
            device=self.device or "auto",
            checkpoint_seconds=self.checkpoint_seconds,
            ranks=self.gpus_per_cell,
            plugins=tuple(registry.plugins),
        )


CLUSTER, BUDGET = "cluster", "budget"  # tables of a profile; `budget` is also an option, then a text
OPTIONS = {
    item.name: item.name.replace("label_fractions", "label_fraction")
    for item in fields(Request)
    if item.name not in (CLUSTER, "budgets")
}
_LENGTHS = ("steps", "image_size", "batch_size", "transfer_steps", "transfer_epochs")
_WHOLE = ("seeds", *_LENGTHS, "jobs", "cells_per_gpu", "gpus_per_cell")
_PATHS = ("data", "runs", "results")
_LISTS = ("methods", "tasks")
_SWITCHES = ("skip_missing", "allow_partial", "drop_leaks")


def parse_fractions(text: str) -> tuple[float, ...]:
    """`0.2,1` as label fractions; BenchError where one is no number in (0, 1]."""
    try:
        fractions = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BenchError(f"--label-fraction takes numbers in (0, 1] separated by commas, not {text!r}") from None
    return checked_fractions(fractions)


def checked_fractions(fractions: Iterable[float]) -> tuple[float, ...]:
    unique = tuple(dict.fromkeys(fractions))
    if not unique:
        raise BenchError("--label-fraction is empty; give numbers in (0, 1]")
    for fraction in unique:
        if not 0 < fraction <= 1:
            raise BenchError(f"--label-fraction must be in (0, 1], not {fraction:g}")
    return unique


def parse_folds(text: str) -> tuple[int, ...]:
    """`0,1` as folds; BenchError where one is no whole number."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise BenchError(f"--folds takes whole numbers separated by commas, not {text!r}") from None


def load_profile(path: Path) -> dict[str, Any]:
    """The fields of `Request` that a TOML file of options sets; BenchError on an unknown key or a wrong type."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"the profile {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"the profile {path} is no TOML: {error}") from None
    fields = {option: name for name, option in OPTIONS.items()}
    found: dict[str, Any] = {}
    for key, value in content.items():
        option = key.replace("-", "_")
        if option == CLUSTER:
            found[CLUSTER] = read_cluster(value, path)
            continue
        if option == BUDGET and isinstance(value, dict):
            found["budgets"] = {name: _own_budget(name, table, path) for name, table in value.items()}
            continue
        if option not in fields:
            near = suggest(option, [*fields, CLUSTER]) or f"; it may hold {', '.join(fields)}"
            raise BenchError(f"the profile {path} has an unknown key {key!r}{near}")
        found[fields[option]] = _profile_value(path, option, value)
    return found


def _own_budget(name: str, table: Any, path: Path) -> Budget:
    """A `[budget.NAME]` of a profile: one of ours with changes, by which its label names it."""
    place = f"the profile {path}, [budget.{name}]"
    if name in BUDGETS:
        raise BenchError(f"{place} has the name of a budget that there is already; give it one of its own")
    if not isinstance(table, dict) or not isinstance(table.get("based_on"), str):
        raise BenchError(f"{place} says on which budget it is based: based_on = {', '.join(map(repr, BUDGETS))}")
    changes = {key.replace("-", "_"): value for key, value in table.items() if key.replace("-", "_") != "based_on"}
    for key, value in changes.items():
        if key not in (*_LENGTHS, "precision", "checks"):
            near = suggest(key, [*_LENGTHS, "precision", "checks"])
            raise BenchError(f"{place} has an unknown key {key!r}{near or '; it may hold ' + ', '.join(_LENGTHS)}")
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (value in PRECISIONS if key == "precision" else whole and value >= 1):
            wanted = " or ".join(map(repr, PRECISIONS)) if key == "precision" else "a whole number from 1 on"
            raise BenchError(f"{place} sets {key} to {value!r}, but it takes {wanted}")
    base: Budget = _named("budget", table["based_on"], BUDGETS)
    try:
        return base.with_overrides(**changes)
    except BenchError as error:
        raise BenchError(f"{place}: {error}") from None


def _profile_value(path: Path, option: str, value: Any) -> Any:
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if option in _WHOLE:
        wanted, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif option == "checkpoint_seconds":
        wanted, good = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    elif option in _SWITCHES:
        wanted, good = "true or false", isinstance(value, bool)
    elif option == "label_fraction":
        value = value if isinstance(value, list) else [value]
        wanted, good = "numbers", all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
    elif option == "folds":
        value = value if isinstance(value, list) else [value]
        wanted, good = "whole numbers", all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    elif option == "set":
        wanted, good = "a list of METHOD.FIELD=VALUE", texts
    else:
        wanted, good = "a text", isinstance(value, str) or (option in _LISTS and texts)
    if not good:
        raise BenchError(f"the profile {path} sets {option} to {value!r}, but it takes {wanted}")
    if option == "label_fraction":
        return checked_fractions(float(item) for item in value)
    if option in ("set", "folds"):
        return tuple(value)
    if option in _LISTS and texts:
        return ",".join(value)
    return Path(value).expanduser() if option in _PATHS else value


def check_request(request: Request, registry: Registry) -> Budget:
    """The budget with its overrides."""
    if request.seeds < 1:
        raise BenchError(f"--seeds must be at least 1, not {request.seeds}")
    if request.jobs is not None and request.jobs < 1:
        raise BenchError(f"--jobs must be at least 1, not {request.jobs}")
    if request.cells_per_gpu < 1:
        raise BenchError(f"--cells-per-gpu must be at least 1, not {request.cells_per_gpu}")
    _check_ranks(request)
    if not 0 <= request.checkpoint_seconds < math.inf:
        raise BenchError(f"--checkpoint-seconds must be at least 0, not {request.checkpoint_seconds:g}")
    if request.data is not None and not request.data.is_dir():
        raise BenchError(
            f"the data root {request.data} is no folder; give one with --data or BENCH_DATA, or no data root"
        )
    if request.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", request.device):
        raise BenchError(f"unknown device {request.device!r}: give cpu, cuda or cuda:N")
    named: Budget = _named("budget", request.budget, {**BUDGETS, **request.budgets})
    transfer = {name: getattr(request, name) for name in ("transfer_steps", "transfer_epochs", "precision")}
    budget = named.with_overrides(request.steps, request.image_size, request.batch_size, **transfer)
    if budget.image_size % SIZE_MULTIPLE:
        raise BenchError(f"--image-size must be a multiple of {SIZE_MULTIPLE}, not {budget.image_size}")
    check_backbone(request.backbone, registry)
    return budget


def _check_ranks(request: Request) -> None:
    if request.gpus_per_cell < 1:
        raise BenchError(f"--gpus-per-cell must be at least 1, not {request.gpus_per_cell}")
    if request.gpus_per_cell > 1 and request.cells_per_gpu > 1:
        raise BenchError("--gpus-per-cell and --cells-per-gpu exclude each other: a cell shares GPUs or has several")
    if request.gpus_per_cell > 1 and request.device is not None and ":" in request.device:
        raise BenchError(f"--device {request.device} is one GPU; for --gpus-per-cell say --device cuda")


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        near = suggest(name, known) or f"; choose from {', '.join(known)}"
        raise BenchError(f"unknown {kind} {name!r}{near}")
    return known[name]


def check_backbone(name: str, registry: Registry) -> None:
    if name not in BACKBONES and name not in registry.backbones:
        from bench.nets import Backbone

        try:
            Backbone(name)
        except BenchError as error:
            near = suggest(name, [*BACKBONES, *registry.backbones])
            raise BenchError(f"unknown backbone {name!r}{near}") if near else error from None
