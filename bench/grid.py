"""Choices in, cells out: the product of methods, tasks, label fractions and seeds, and what of it is left to do."""

from __future__ import annotations

import itertools
import math
import re
import statistics
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import data
from bench.cell import timing_of
from bench.registry import Registry, suggest
from bench.spec import (
    BACKBONES,
    BUDGETS,
    DONE,
    PROTOCOLS,
    BenchError,
    Budget,
    Cell,
    MethodSpec,
    PretrainCell,
    Site,
    TaskSpec,
    TransferCell,
    Value,
)
from bench.store import Store, live_owner, settled

BASELINE_GROUP = "baseline"  # what every grid is compared with, asked for or not
SIZE_MULTIPLE = 32  # the coarsest stride of the backbones, px
RECENT = 20  # measured cells an estimate looks back on


# ------------------------------------------------------------------------------------------------------------- request


@dataclass(frozen=True)
class Request:
    """What `run` and `plan` are asked for, option by option."""

    methods: str
    tasks: str
    seeds: int = 1
    budget: str = "quick"
    steps: int | None = None
    image_size: int | None = None
    batch_size: int | None = None
    backbone: str = "tiny_vgg16"
    protocol: str = "finetune"
    corpus: str | None = None  # NAME or folder:PATH; None: the one each task declares
    label_fractions: tuple[float, ...] = (1.0,)
    set: tuple[str, ...] = ()  # METHOD.FIELD=VALUE
    data: Path | None = None  # None: phantoms
    runs: Path = Path("runs")
    results: Path = Path("results")
    jobs: int | None = None  # None: one per core, or per GPU
    device: str | None = None  # None: the GPU where there is one
    checkpoint_seconds: float = 30.0  # 0: a checkpoint after every step
    skip_missing: bool = False

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
            plugins=tuple(registry.plugins),
        )


OPTIONS = {"label_fractions" if name == "label_fraction" else name: name for name in (
    "methods", "tasks", "seeds", "budget", "steps", "image_size", "batch_size", "backbone", "protocol", "corpus",
    "label_fraction", "set", "data", "runs", "results", "jobs", "device", "checkpoint_seconds", "skip_missing",
)}  # fmt: skip
_WHOLE = ("seeds", "steps", "image_size", "batch_size", "jobs")
_PATHS = ("data", "runs", "results")
_LISTS = ("methods", "tasks")


def parse_fractions(text: str) -> tuple[float, ...]:
    """`0.2,1` as label fractions; BenchError where one is no number in (0, 1]."""
    try:
        fractions = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BenchError(f"--label-fraction takes numbers in (0, 1] separated by commas, not {text!r}") from None
    return _checked_fractions(fractions)


def _checked_fractions(fractions: Iterable[float]) -> tuple[float, ...]:
    unique = tuple(dict.fromkeys(fractions))
    if not unique:
        raise BenchError("--label-fraction is empty; give numbers in (0, 1]")
    for fraction in unique:
        if not 0 < fraction <= 1:
            raise BenchError(f"--label-fraction must be in (0, 1], not {fraction:g}")
    return unique


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
        if option not in fields:
            near = suggest(option, fields) or f"; it may hold {', '.join(fields)}"
            raise BenchError(f"the profile {path} has an unknown key {key!r}{near}")
        found[fields[option]] = _profile_value(path, option, value)
    return found


def _profile_value(path: Path, option: str, value: Any) -> Any:
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if option in _WHOLE:
        wanted, good = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    elif option == "checkpoint_seconds":
        wanted, good = "a number", isinstance(value, (int, float)) and not isinstance(value, bool)
    elif option == "skip_missing":
        wanted, good = "true or false", isinstance(value, bool)
    elif option == "label_fraction":
        value = value if isinstance(value, list) else [value]
        wanted, good = "numbers", all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
    elif option == "set":
        wanted, good = "a list of METHOD.FIELD=VALUE", texts
    else:
        wanted, good = "a text", isinstance(value, str) or (option in _LISTS and texts)
    if not good:
        raise BenchError(f"the profile {path} sets {option} to {value!r}, but it takes {wanted}")
    if option == "label_fraction":
        return _checked_fractions(float(item) for item in value)
    if option == "set":
        return tuple(value)
    if option in _LISTS and texts:
        return ",".join(value)
    return Path(value).expanduser() if option in _PATHS else value


# ---------------------------------------------------------------------------------------------------------------- grid


@dataclass(frozen=True)
class Grid:
    """The cells of a request, each once."""

    pretrainings: tuple[PretrainCell, ...]  # those that train, and that a transfer needs
    transfers: tuple[TransferCell, ...]
    skipped: tuple[tuple[str, str], ...]  # what is left out, and why
    methods: tuple[str, ...]  # in table order
    tasks: tuple[str, ...]
    digests: Mapping[tuple[str, str], str]  # (kind, name) -> SHA-256 of the file that declares it

    def sources(self, cell: Cell) -> dict[str, str]:
        """The digests a record of `cell` would carry if it were made now."""
        if isinstance(cell, PretrainCell):
            return {"method": self.digests["method", cell.method]}
        return {"method": self.digests["method", cell.pretrain.method], "task": self.digests["task", cell.task]}

    @cached_property
    def children(self) -> dict[str, list[TransferCell]]:
        """Key of a pretraining that trains -> the transfers that need it."""
        found: dict[str, list[TransferCell]] = {}
        for cell in self.transfers:
            if cell.pretrain.trained:
                found.setdefault(cell.pretrain.key, []).append(cell)
        return found


@dataclass
class _Expansion:
    """One expansion at work: what was looked up already, and what had to be left out."""

    request: Request
    registry: Registry
    budget: Budget
    transfer_budget: str  # its label without what concerns pretraining alone
    changes: Mapping[str, Mapping[str, Value]]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    _corpora: dict[str, data.CorpusRef | None] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.request.runs.absolute() / "cache"

    def dataset(self, task: TaskSpec) -> data.DatasetRef | None:
        try:
            return data.dataset_ref(task, self.request.data, self.cache)
        except data.MissingData as error:
            self._absent(task.name, error)
            return None

    def corpus(self, name: str) -> data.CorpusRef | None:
        if name not in self._corpora:
            if name not in self.registry.corpora and Path(name).expanduser().is_dir():
                raise BenchError(
                    f"there is no corpus {name!r}; for the images of a folder write --corpus folder:{name}"
                )
            try:
                self._corpora[name] = data.corpus_ref(name, self.registry, self.request.data, self.cache)
            except data.MissingData as error:
                self._absent(f"pretraining on {name}", error)
                self._corpora[name] = None
        return self._corpora[name]

    def _absent(self, what: str, error: data.MissingData) -> None:
        if not self.request.skip_missing:
            raise error
        self.skipped.append((what, str(error)))

    def pretraining(self, spec: MethodSpec, task: TaskSpec, seed: int) -> PretrainCell | None:
        """The pretraining that a row needs for a task; None where its corpus is missing and may be."""
        asked = self.changes.get(spec.name, {})
        changed = {name: value for name, value in asked.items() if spec.defaults[name] != value}
        untrained = PretrainCell(
            method=spec.name,
            version=spec.version,
            hparams=tuple(sorted((spec.defaults | changed).items())),
            label=_label(spec.name, changed),
            corpus="",
            corpus_fingerprint="",
            phantom=False,
            backbone=self.request.backbone,
            channels=task.channels,
            budget=self.transfer_budget,
            steps=0,
            image_size=self.budget.image_size,
            batch_size=0,
            seed=seed,
        )
        if not spec.trains:
            return untrained
        corpus = self.corpus(self.request.corpus or task.corpus)
        if corpus is None:
            return None
        if corpus.channels not in (0, task.channels):
            raise BenchError(
                f"the corpus {corpus.name} has {corpus.channels} channel(s) and the task {task.name} {task.channels}; "
                f"choose another --corpus or leave the task out"
            )
        return replace(
            untrained,
            corpus=corpus.name,
            corpus_fingerprint=corpus.fingerprint,
            phantom=corpus.phantom,
            budget=self.budget.name,
            steps=self.budget.steps if self.budget.steps is not None else _declared(spec, "paper_steps"),
            batch_size=self._batch(spec),
        )

    def _batch(self, spec: MethodSpec) -> int:
        batch = self.budget.batch_size
        if batch is None:
            own, cap = _declared(spec, "paper_batch"), self.budget.batch_cap
            least = -(-spec.min_batch // spec.batch_multiple) * spec.batch_multiple
            batch = own if cap is None else max(least, min(own, cap) // spec.batch_multiple * spec.batch_multiple)
        if batch < spec.min_batch or batch % spec.batch_multiple:
            rule = f"at least {spec.min_batch}" + (
                f" and a multiple of {spec.batch_multiple}" if spec.batch_multiple > 1 else ""
            )
            raise BenchError(f"{spec.name} needs {rule} images per step, not {batch}; change --batch-size")
        return batch

    def transfer(
        self, pretrain: PretrainCell, task: TaskSpec, dataset: data.DatasetRef, fraction: float, seed: int
    ) -> TransferCell:
        return TransferCell(
            pretrain=pretrain,
            task=task.name,
            task_version=task.version,
            dataset_fingerprint=dataset.fingerprint,
            phantom=dataset.phantom,
            protocol=self.request.protocol,
            label_fraction=fraction,
            fold=0,
            image_size=self.budget.image_size,
            phase_steps=self.budget.phase_steps,
            phase_epochs=self.budget.phase_epochs,
            checks=self.budget.checks,
            batch_size=task.batch_size,
            budget=self.transfer_budget,
            seed=seed,
        )


def _declared(spec: MethodSpec, name: str) -> int:
    value: int = getattr(spec, name)
    if value < 1:
        option = "--steps" if name == "paper_steps" else "--batch-size"
        raise BenchError(f"{spec.name} declares no {name}; give {option}")
    return value


def _label(name: str, changed: Mapping[str, Value]) -> str:
    inside = ",".join(f"{field}={changed[field]}" for field in sorted(changed))
    return f"{name}[{inside}]" if inside else name


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        near = suggest(name, known) or f"; choose from {', '.join(known)}"
        raise BenchError(f"unknown {kind} {name!r}{near}")
    return known[name]


def _check_backbone(name: str) -> None:
    if name not in BACKBONES:
        from bench.nets import Backbone

        try:
            Backbone(name)
        except BenchError as error:
            near = suggest(name, BACKBONES)
            raise BenchError(f"unknown backbone {name!r}{near}") if near else error from None


def _rows(request: Request, registry: Registry) -> list[str]:
    """The methods asked for, after the baselines that were not excluded by name."""
    asked = registry.select("method", request.methods)
    tokens = [token.strip() for token in request.methods.split(",")]
    excluded = [name for token in tokens if token.startswith("!") for name in registry.select("method", token[1:])]
    baselines = registry.groups("method").get(BASELINE_GROUP, [])
    return [name for name in baselines if name not in asked and name not in excluded] + asked


def _changes(request: Request, registry: Registry, rows: Iterable[str]) -> dict[str, dict[str, Value]]:
    """--set as method -> field -> value, checked against the declarations."""
    rows, changes = list(rows), dict[str, dict[str, Value]]()
    for text in request.set:
        place, equals, value = text.partition("=")
        name, dot, field_name = place.strip().rpartition(".")
        if not equals or not dot:
            raise BenchError(f"--set takes METHOD.FIELD=VALUE, not {text!r}")
        spec: MethodSpec = registry.get("method", name)
        if name not in rows:
            raise BenchError(f"--set {text} changes {name}, which is not among the methods asked for")
        fields = {item.name: item for item in spec.fields}
        if field_name not in fields:
            near = suggest(field_name, fields) or f"; it has {', '.join(fields) or 'none'}"
            raise BenchError(f"{name} has no field {field_name!r}{near}")
        if field_name in changes.setdefault(name, {}):
            raise BenchError(f"--set gives {place.strip()} twice; run the command once per value")
        changes[name][field_name] = fields[field_name].parse(value.strip(), name)
    return changes


def _check_request(request: Request) -> tuple[Budget, str]:
    """The budget with its overrides, and the label of what transfers use of it."""
    if request.seeds < 1:
        raise BenchError(f"--seeds must be at least 1, not {request.seeds}")
    if request.jobs is not None and request.jobs < 1:
        raise BenchError(f"--jobs must be at least 1, not {request.jobs}")
    if not 0 <= request.checkpoint_seconds < math.inf:
        raise BenchError(f"--checkpoint-seconds must be at least 0, not {request.checkpoint_seconds:g}")
    if request.data is not None and not request.data.is_dir():
        raise BenchError(
            f"the data root {request.data} is no folder; give one with --data or BENCH_DATA, or no data root"
        )
    if request.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", request.device):
        raise BenchError(f"unknown device {request.device!r}: give cpu, cuda or cuda:N")
    _named("protocol", request.protocol, PROTOCOLS)
    named: Budget = _named("budget", request.budget, BUDGETS)
    budget = named.with_overrides(request.steps, request.image_size, request.batch_size)
    if budget.image_size % SIZE_MULTIPLE:
        raise BenchError(f"--image-size must be a multiple of {SIZE_MULTIPLE}, not {budget.image_size}")
    _check_backbone(request.backbone)
    return budget, named.with_overrides(None, request.image_size, None).name


def expand(request: Request, registry: Registry) -> Grid:
    """Every cell of a request; BenchError where it cannot be carried out. Seeds are 0 to N - 1."""
    budget, transfer_budget = _check_request(request)
    fractions = _checked_fractions(request.label_fractions)
    rows = _rows(request, registry)
    tasks = registry.select("task", request.tasks)
    work = _Expansion(request, registry, budget, transfer_budget, _changes(request, registry, rows))
    pretrainings: dict[PretrainCell, PretrainCell] = {}
    transfers: list[TransferCell] = []
    for name in tasks:
        task: TaskSpec = registry.get("task", name)
        dataset = work.dataset(task)
        if dataset is None:
            continue
        for row, seed in itertools.product(rows, range(request.seeds)):
            made = work.pretraining(registry.get("method", row), task, seed)
            if made is None:
                continue
            pretrain = pretrainings.setdefault(made, made)
            transfers += [work.transfer(pretrain, task, dataset, fraction, seed) for fraction in fractions]
    if not transfers:
        raise BenchError(f"nothing is left to run: {'; '.join(f'{what}: {why}' for what, why in work.skipped)}")
    digests = {("method", name): registry.get("method", name).origin.sha256 for name in rows}
    digests |= {("task", name): registry.get("task", name).origin.sha256 for name in tasks}
    return Grid(
        pretrainings=tuple(cell for cell in pretrainings if cell.trained),
        transfers=tuple(transfers),
        skipped=tuple(work.skipped),
        methods=tuple(rows),
        tasks=tuple(tasks),
        digests=digests,
    )


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class PlanRow:
    """One cell and how it stands: done, cached, stale, running, interrupted, failed before, new, not needed."""

    cell: Cell
    state: str
    reason: str
    seconds: float | None  # still to be spent; None: never measured here
    bytes: float | None  # on disk, still to be written; None: never measured here

    @property
    def open(self) -> bool:
        """Whether it would run."""
        return self.state in ("interrupted", "failed before", "new")


class _Estimates:
    """Medians of what cells took on a store: seconds (per step for a pretraining) and bytes."""

    def __init__(self, timings: Iterable[Mapping[str, Any]]) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._bytes: dict[str, list[float]] = {}
        for timing in timings:
            if {"of", "seconds", "bytes"} <= timing.keys():
                name = _name(timing["of"])
                self._seconds.setdefault(name, []).append(timing["seconds"])
                self._bytes.setdefault(name, []).append(timing["bytes"])

    def of(self, cell: Cell) -> tuple[float | None, float | None]:
        name = _name(timing_of(cell))
        if name not in self._seconds:
            return None, None
        steps = cell.steps if isinstance(cell, PretrainCell) else 1
        return (
            steps * statistics.median(self._seconds[name][-RECENT:]),
            statistics.median(self._bytes[name][-RECENT:]),
        )


def _name(timing: Mapping[str, Any]) -> str:
    return repr(sorted(timing.items()))


def plan(grid: Grid, store: Store) -> list[PlanRow]:
    """How every cell stands, pretrainings first, with the time and disk that are still to be spent."""
    estimates = _Estimates(store.timings())
    transfers = [_plan_transfer(grid, store, cell, estimates) for cell in grid.transfers]
    needed = {row.cell.pretrain.key for row in transfers if isinstance(row.cell, TransferCell) and _unsettled(row)}
    pretrainings = [_plan_pretraining(grid, store, cell, estimates, cell.key in needed) for cell in grid.pretrainings]
    return pretrainings + transfers


def _unsettled(row: PlanRow) -> bool:
    return row.state not in (DONE, "stale")


def _unfinished(store: Store, cell: Cell, ended: Mapping[str, Any] | None) -> tuple[str, str]:
    """State and reason of a cell that has no result."""
    folder = store.folder(cell)
    owner = live_owner(folder)
    if owner is not None:
        return "running", f"on {owner['host']}, process {owner['pid']}"
    if ended is not None and ended["status"] != DONE:
        return "failed before", f"{ended['status']}: {ended['reason']}"
    return ("interrupted", "") if (folder / "cell.json").exists() else ("new", "")


def _plan_transfer(grid: Grid, store: Store, cell: TransferCell, estimates: _Estimates) -> PlanRow:
    record = store.read(cell.key)
    if record is not None and settled(record):
        return _settled_row(cell, DONE, record.get("sources") == grid.sources(cell))
    return PlanRow(cell, *_unfinished(store, cell, record), *estimates.of(cell))


def _plan_pretraining(grid: Grid, store: Store, cell: PretrainCell, estimates: _Estimates, needed: bool) -> PlanRow:
    state = store.pretrained(cell)
    if state is not None:
        return _settled_row(cell, "cached", state.get("sources") == grid.sources(cell))
    if not needed:
        return PlanRow(cell, "not needed", "all its transfers are done", 0.0, 0.0)
    return PlanRow(cell, *_unfinished(store, cell, store.state(cell)), *estimates.of(cell))


def _settled_row(cell: Cell, state: str, current: bool) -> PlanRow:
    reason = "" if current else "made by an older source of its method or task; kept, and marked in tables"
    return PlanRow(cell, state if current else "stale", reason, 0.0, 0.0)


def totals(rows: Iterable[PlanRow]) -> dict[str, Any]:
    """Counts by kind and state, and the seconds and bytes to be spent (None where a cell was never measured)."""
    rows = list(rows)
    counts: dict[str, dict[str, int]] = {"pretrain": {}, "transfer": {}}
    for row in rows:
        counts[row.cell.kind][row.state] = counts[row.cell.kind].get(row.state, 0) + 1
    todo = [row for row in rows if row.open]
    measured = [row for row in todo if row.seconds is not None]
    return {
        "counts": counts,
        "to_run": len(todo),
        "unmeasured": len(todo) - len(measured),
        "seconds": sum(row.seconds or 0.0 for row in measured),
        "bytes": sum(row.bytes or 0.0 for row in measured),
    }
