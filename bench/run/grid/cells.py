"""Choices in, cells out: the product of methods, tasks, label fractions and seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench import data
from bench.data.leaks import Tick, silent
from bench.data.store import LOG
from bench.registry import Registry
from bench.registry.sources import is_current, source_of
from bench.run.grid.audit import Audits
from bench.run.grid.request import Request, check_backbone, check_request, checked_fractions
from bench.spec import (
    BACKBONES,
    FILE,
    LIBRARY,
    BenchError,
    Budget,
    Cell,
    HParam,
    MethodSpec,
    PretrainCell,
    ProtocolSpec,
    TaskSpec,
    TransferCell,
    Value,
    file_digest,
    label_of,
    suggest,
)
from bench.table.layout import Layout, Row, load_layout

BASELINE_GROUP = "baseline"  # what every grid is compared with, asked for or not
NEEDS = {"labels": "image-level grades", "pairs": "images of a second modality"}  # of a corpus


@dataclass(frozen=True)
class Grid:
    """The cells of a request, each once."""

    pretrainings: tuple[PretrainCell, ...]  # those that train, and that a transfer needs
    transfers: tuple[TransferCell, ...]
    skipped: tuple[tuple[str, str], ...]  # what is left out, and why
    unavailable: Mapping[tuple[str, str], str]  # (method, task) -> what the corpus lacks that the method needs
    methods: tuple[str, ...]  # in table order
    tasks: tuple[str, ...]
    specs: Mapping[tuple[str, str], MethodSpec | TaskSpec]  # (kind, name) -> its declaration

    def made_by(self, cell: Cell) -> dict[str, MethodSpec | TaskSpec]:
        """The plug-ins whose source makes a cell."""
        if isinstance(cell, PretrainCell):
            return {"method": self.specs["method", cell.method]}
        return {"method": self.specs["method", cell.pretrain.method], "task": self.specs["task", cell.task]}

    def sources(self, cell: Cell) -> dict[str, Any]:
        """What a record of `cell` would say of its sources if it were made now."""
        return {kind: source_of(spec) for kind, spec in self.made_by(cell).items()}

    def is_current(self, cell: Cell, sources: Mapping[str, Any] | None) -> bool:
        """Whether a cell whose record or state says `sources` was made by the present ones."""
        given = sources or {}
        return all(kind in given and is_current(kind, spec, given[kind]) for kind, spec in self.made_by(cell).items())

    @cached_property
    def children(self) -> dict[str, list[TransferCell]]:
        """Key of a pretraining that trains -> the transfers that need it."""
        found: dict[str, list[TransferCell]] = {}
        for cell in self.transfers:
            if cell.pretrain.trained:
                found.setdefault(cell.pretrain.key, []).append(cell)
        return found


@dataclass(frozen=True)
class _Line:
    """One row of a grid: a method, what is changed of it, and the encoder it trains."""

    spec: MethodSpec
    changed: Mapping[str, Value]
    backbone: str
    asked: bool = True  # by name; a baseline nobody asked for is left out in silence where it is not available
    file: Path | None = None  # with its weights, where the method takes one


@dataclass(frozen=True)
class _Column:
    """One column of a grid: a task, the corpus one pretrains on for it, and the shares of its labels."""

    task: TaskSpec
    corpus: str
    fractions: tuple[float, ...]


@dataclass
class _Expansion:
    """One expansion at work: what was looked up already, and what had to be left out."""

    request: Request
    registry: Registry
    budget: Budget
    tick: Tick
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unavailable: dict[tuple[str, str], str] = field(default_factory=dict)
    _corpora: dict[str, tuple[data.CorpusRef, tuple[str, ...]] | None] = field(default_factory=dict)
    _files: dict[Path, str] = field(default_factory=dict)  # of weights -> SHA-256

    @property
    def cache(self) -> Path:
        return self.request.runs.absolute() / "cache"

    @cached_property
    def audits(self) -> Audits:
        """For what is real: phantoms, which no image is a copy of, are not audited."""
        asked = self.request
        return Audits(self.registry, asked.data, self.cache, asked.allow_partial, asked.drop_leaks, self.tick)

    def dataset(self, task: TaskSpec) -> data.DatasetRef | None:
        try:
            return data.dataset_ref(task, self.request.data, self.cache, self.request.allow_partial)
        except data.MissingData as error:
            self._absent(task.name, error)
            return None

    def corpus(self, name: str) -> tuple[data.CorpusRef, tuple[str, ...]] | None:
        """A corpus and the SHA-256 of its files that are left out; None where it is missing and may be."""
        if name not in self._corpora:
            if name not in self.registry.corpora and Path(name).expanduser().is_dir():
                raise BenchError(
                    f"there is no corpus {name!r}; for the images of a folder write --corpus folder:{name}"
                )
            try:
                real = self.request.data is not None or name.startswith(data.FOLDER)
                drop = self.audits.dropped(name) if real else ()
                found = data.corpus_ref(name, self.registry, self.request.data, self.cache, drop)
                self._corpora[name] = (found, drop)
            except data.MissingData as error:
                self._absent(f"pretraining on {name}", error)
                self._corpora[name] = None
        return self._corpora[name]

    def _absent(self, what: str, error: data.MissingData) -> None:
        if not self.request.skip_missing:
            raise error
        self.skipped.append((what, str(error)))

    def pretraining(self, line: _Line, column: _Column, seed: int) -> PretrainCell | None:
        """The pretraining that a row needs for a task; None where its corpus is missing and may be, or lacks a need."""
        spec, task = line.spec, column.task
        changed = {name: value for name, value in line.changed.items() if spec.defaults[name] != value}
        untrained = PretrainCell(
            method=spec.name,
            version=spec.version,
            hparams=tuple(sorted((spec.defaults | changed).items())),
            label=label_of(spec.name, changed),
            corpus="",
            corpus_fingerprint="",
            phantom=False,
            backbone=line.backbone,
            channels=task.channels,
            budget=self.budget.transfer_label,
            steps=0,
            image_size=self.budget.image_size,
            batch_size=0,
            seed=seed,
            precision=self.budget.precision,
        )
        if not spec.trains:
            return self._brought(untrained, line, task)
        for name in spec.maps:
            self.registry.get("side_map", name)  # a BenchError now, not in the middle of a run
        if not column.corpus:
            raise BenchError(f"the task {task.name} names no corpus to pretrain on; give one with --corpus")
        found = self.corpus(column.corpus)
        if found is None:
            return None
        corpus, dropped = found
        if corpus.dims != task.dims:
            raise BenchError(
                f"the corpus {corpus.name} has {corpus.dims}-D images and the task {task.name} {task.dims}-D ones; "
                "choose another --corpus or leave the task out"
            )
        if corpus.channels not in (0, task.channels):
            raise BenchError(
                f"the corpus {corpus.name} has {corpus.channels} channel(s) and the task {task.name} {task.channels}; "
                f"choose another --corpus or leave the task out"
            )
        if task.dims not in spec.dims:
            if line.asked:
                why = f"{spec.name} is made for {spec.dims[0]}-D images: {spec.dims_reason}"
                self.unavailable[spec.name, task.name] = why
            return None
        if spec.needs and not {"labels": corpus.classes, "pairs": corpus.paired}[spec.needs]:
            if line.asked:
                why = f"{spec.name} needs {NEEDS[spec.needs]}, which the corpus {corpus.name} does not have"
                self.unavailable[spec.name, task.name] = why
            return None
        return replace(
            untrained,
            corpus=corpus.name,
            corpus_fingerprint=corpus.fingerprint,
            phantom=corpus.phantom,
            budget=self.budget.label,
            steps=self.budget.steps if self.budget.steps is not None else _declared(spec, "paper_steps"),
            batch_size=self._batch(spec),
            dropped=dropped,
        )

    def _brought(self, untrained: PretrainCell, line: _Line, task: TaskSpec) -> PretrainCell | None:
        """The encoder of a method that does not train: fresh, or brought along, then one for all seeds."""
        spec = line.spec
        if not spec.weights:
            return untrained
        if line.backbone in spec.lacks:
            if line.asked:
                other = [name for name in BACKBONES if name not in spec.lacks]
                hint = f", such as {other[0]} or another of `bench list backbones`" if other else ""
                why = f"{spec.name} has no weights for the backbone {line.backbone}; choose a --backbone{hint}"
                self.unavailable[spec.name, task.name] = why
            return None
        if spec.weights == LIBRARY:
            return replace(untrained, weights=LIBRARY, seed=0)
        if line.file is None:
            raise BenchError(f"{spec.name} takes a file of weights: write --methods {spec.name}:PATH")
        sha256 = self._content(line.file)
        label = untrained.label.replace(spec.name, f"{spec.name}:{line.file.name}@{sha256[:7]}", 1)
        return replace(untrained, weights=sha256, weights_file=str(line.file), label=label, seed=0)

    def _content(self, file: Path) -> str:
        """The SHA-256 of a file of weights; BenchError where it is missing, or the same as another one."""
        if file not in self._files:
            try:
                sha256 = file_digest(file)
            except OSError as error:
                raise BenchError(f"the weights {file} cannot be read: {error.strerror}") from None
            twin = next((other for other, known in self._files.items() if known == sha256), None)
            if twin is not None:
                raise BenchError(f"{file} and {twin} are the same weights: name one of them")
            self._files[file] = sha256
        return self._files[file]

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
        self._check_ranks(spec, batch)
        return batch

    def _check_ranks(self, spec: MethodSpec, batch: int) -> None:
        """BenchError where the method or its batch cannot be shared by the devices that a cell is to have."""
        ranks = self.request.gpus_per_cell
        if ranks > 1 and not spec.parallel:
            raise BenchError(
                f"{spec.name} is not made for several devices, it does not declare `parallel`; leave out "
                "--gpus-per-cell, or the method"
            )
        if batch % (ranks * spec.batch_multiple):
            raise BenchError(
                f"{spec.name} has {batch} images per step, which {ranks} devices cannot share evenly: it takes a "
                f"multiple of {ranks * spec.batch_multiple}; change --batch-size or --gpus-per-cell"
            )

    def transfer(
        self, pretrain: PretrainCell, task: TaskSpec, dataset: data.DatasetRef, fraction: float, seed: int, fold: int
    ) -> TransferCell:
        protocol = self.protocol(task)
        audited = self.audits if pretrain.corpus and not dataset.phantom and not pretrain.phantom else None
        return TransferCell(
            pretrain=pretrain,
            task=task.name,
            task_version=task.version,
            dataset_fingerprint=dataset.fingerprint,
            phantom=dataset.phantom,
            protocol=protocol.name,
            protocol_version=protocol.version,
            label_fraction=fraction,
            fold=fold,
            folds=task.folds,
            image_size=self.budget.image_size,
            phase_steps=self.budget.phase_steps,
            phase_epochs=self.budget.phase_epochs,
            checks=self.budget.checks,
            batch_size=task.batch_size,
            budget=self.budget.transfer_label,
            seed=seed,
            present=dataset.present,
            expected=dataset.expected,
            rule=dataset.rule,
            allow_partial=self.request.allow_partial,
            leaks=audited.leaks(pretrain.corpus, task) if audited else (),
            precision=self.budget.precision,
        )

    def protocol(self, task: TaskSpec) -> ProtocolSpec:
        """The protocol that judges encoders on a task: the one asked for, else the task's default."""
        admitted = self.registry.protocols_of(task)
        if not admitted:
            raise BenchError(f"no protocol judges the {task.truth} of {task.name} on {task.dims}-D images")
        chosen = self.request.protocol or admitted[0]
        if chosen not in admitted:
            self.registry.get("protocol", chosen)
            what = f"the {task.truth} of {task.name} on {task.dims}-D images"
            raise BenchError(f"--protocol {chosen} does not judge {what}; choose from {', '.join(admitted)}")
        spec: ProtocolSpec = self.registry.get("protocol", chosen)
        return spec

    def folds(self, task: TaskSpec) -> Sequence[int]:
        """The folds of a task that are asked for; one without folds has its official parts alone."""
        odd = [fold for fold in self.request.folds if not 0 <= fold < task.folds] if task.folds else []
        if odd:
            raise BenchError(f"--folds {odd[0]}: {task.name} has the folds 0 to {task.folds - 1}")
        return (self.request.folds or range(task.folds)) if task.folds else (0,)

    def check_dims(self, line: _Line, task: TaskSpec) -> None:
        """BenchError where the encoder takes other images than the task has."""
        known = self.registry.backbones.get(line.backbone)
        dims = known.dims if known else 2
        if dims != task.dims:
            raise BenchError(
                f"the backbone {line.backbone} takes {dims}-D images and the task {task.name} has {task.dims}-D ones: "
                "choose another --backbone or leave the task out"
            )

    def grid(self, lines: Sequence[_Line], columns: Sequence[_Column]) -> Grid:
        """Every row on every column, with every seed."""
        pretrainings: dict[PretrainCell, PretrainCell] = {}
        transfers: list[TransferCell] = []
        for column in columns:
            dataset = self.dataset(column.task)
            if dataset is None:
                continue
            for line, seed in itertools.product(lines, range(self.request.seeds)):
                self.check_dims(line, column.task)
                made = self.pretraining(line, column, seed)
                if made is None:
                    continue
                pretrain = pretrainings.setdefault(made, made)
                _check_fractions(column)
                transfers += [
                    self.transfer(pretrain, column.task, dataset, share, seed, fold)
                    for share, fold in itertools.product(column.fractions, self.folds(column.task))
                ]
        if not transfers:
            left = [f"{what}: {why}" for what, why in self.skipped] + list(dict.fromkeys(self.unavailable.values()))
            raise BenchError(f"nothing is left to run: {'; '.join(left)}")
        held = {cell.pretrain.method for cell in transfers}
        methods = {line.spec.name: line.spec for line in lines if line.asked or line.spec.name in held}
        tasks = {column.task.name: column.task for column in columns}
        specs: dict[tuple[str, str], MethodSpec | TaskSpec] = {("method", name): methods[name] for name in methods}
        specs |= {("task", name): tasks[name] for name in tasks}
        return Grid(
            pretrainings=tuple(cell for cell in pretrainings if cell.trained),
            transfers=tuple(transfers),
            skipped=tuple(self.skipped),
            unavailable=self.unavailable,
            methods=tuple(methods),
            tasks=tuple(tasks),
            specs=specs,
        )


def _check_fractions(column: _Column) -> None:
    """BenchError where a label fraction leaves fewer than two training images, which would be another's too."""
    images = column.task.train
    for share in column.fractions:
        if share < 1 and round(share * images) < 2:
            raise BenchError(
                f"--label-fraction {share:g} leaves fewer than two of the {images} training images of "
                f"{column.task.name}; give at least {math.ceil(150 / images) / 100:g}"
            )


def _declared(spec: MethodSpec, name: str) -> int:
    value: int = getattr(spec, name)
    if value < 1:
        option = "--steps" if name == "paper_steps" else "--batch-size"
        raise BenchError(f"{spec.name} declares no {name}; give {option}")
    return value


def _rows(request: Request, registry: Registry) -> dict[str, bool]:
    """The methods of a grid, and whether each was asked for: the baselines that were not excluded come first.

    A method that takes a file stands as NAME:PATH; `all`, a group or a glob leaves it out.
    """
    asked = registry.select("method", request.methods)
    tokens = [token.strip() for token in request.methods.split(",")]
    excluded = [name for token in tokens if token.startswith("!") for name in registry.select("method", token[1:])]
    baselines = registry.groups("method").get(BASELINE_GROUP, [])
    more = [name for name in baselines if name not in asked and name not in excluded]
    needs_file = {name for name, spec in registry.methods.items() if spec.weights == FILE and name not in tokens}
    return dict.fromkeys(more, False) | {name: True for name in asked if name not in needs_file}


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
        if field_name in changes.setdefault(name, {}):
            raise BenchError(f"--set gives {place.strip()} twice; run the command once per value")
        changes[name][field_name] = _field(spec, field_name).parse(value.strip(), name)
    return changes


def _field(spec: MethodSpec, name: str) -> HParam:
    fields = {item.name: item for item in spec.fields}
    if name not in fields:
        near = suggest(name, fields) or f"; it has {', '.join(fields) or 'none'}"
        raise BenchError(f"{spec.name} has no field {name!r}{near}")
    return fields[name]


def usual_corpus(task: TaskSpec, request: Request, registry: Registry) -> str:
    """The corpus that a task declares; where only its declared stand-in is under the data root, that one, aloud."""
    if request.data is None or not task.stand_in or not task.corpus:
        return task.corpus
    wanted, other = registry.get("corpus", task.corpus), registry.get("corpus", task.stand_in)
    if data.find_root(wanted, request.data) or not data.holds_images(other, request.data):
        return task.corpus
    LOG.warning(
        "%s is not under %s: %s stands in for it; --corpus names another", task.corpus, request.data, task.stand_in
    )
    return task.stand_in


def _named(request: Request, registry: Registry) -> Request:
    """The request with names where it gave the paths of plug-in files."""
    backbone, protocol = request.backbone, request.protocol
    if backbone.endswith(".py"):
        backbone = registry.one("backbone", backbone)
    if protocol is not None and protocol.endswith(".py"):
        protocol = registry.one("protocol", protocol)
    return replace(request, backbone=backbone, protocol=protocol)


def expand(request: Request, registry: Registry, tick: Tick = silent) -> Grid:
    """Every cell of a request; BenchError where it cannot be carried out. Seeds are 0 to N - 1.

    tick: told what is done, how many of it and of how many, while images are compared for the first time.
    """
    request = _named(request, registry)
    if request.layout is not None:
        return expand_layout(load_layout(request.layout), request, registry, tick)
    work = _Expansion(request, registry, check_request(request, registry), tick)
    fractions = checked_fractions(request.label_fractions)
    rows = _rows(request, registry)
    tasks: list[TaskSpec] = [registry.get("task", name) for name in registry.select("task", request.tasks)]
    changes = _changes(request, registry, [name.partition(":")[0] for name in rows])
    lines = []
    for row, asked in rows.items():
        name, _, file = row.partition(":")
        spec = registry.get("method", name)
        lines.append(_Line(spec, changes.get(name, {}), request.backbone, asked, Path(file) if file else None))
    columns = [_Column(task, request.corpus or usual_corpus(task, request, registry), fractions) for task in tasks]
    return work.grid(lines, columns)


# -------------------------------------------------------------------------------------------------------------- layouts


def expand_layout(layout: Layout, request: Request, registry: Registry, tick: Tick = silent) -> Grid:
    """The cells that a layout shows, with the budget, the protocol, the seeds and the place of the request.

    --methods and --tasks take some of its rows and columns; where a row names no backbone and a column no label
    fractions, the request's hold. Rows and columns that no plug-in is registered for are skipped, by name.
    """
    if layout.counted:
        raise BenchError(f"nothing of the layout {layout.name} runs: `bench table {layout.name}` counts it")
    work = _Expansion(request, registry, check_request(request, registry), tick)
    methods = registry.select("method", request.methods) if request.methods else list(registry.methods)
    tasks = registry.select("task", request.tasks) if request.tasks else list(registry.tasks)
    unknown = [("row", row.method) for row in layout.rows if row.method not in registry.methods]
    unknown += [("column", column.task) for column in layout.columns if column.task not in registry.tasks]
    for kind, name in dict.fromkeys(unknown):
        work.skipped.append((f"{layout.name}, {kind} {name}", "nothing of that name is registered"))
    rows = [row for row in layout.rows if row.method in methods]
    changes = _changes(request, registry, {row.method for row in rows})
    lines = [_layout_line(row, layout, request, registry, changes.get(row.method, {})) for row in rows]
    columns = _layout_columns(layout, tasks, request, registry)
    if not lines or not columns:
        what = "row" if not lines else "column"
        raise BenchError(f"--methods and --tasks leave no {what} of the layout {layout.name}; see `bench list tables`")
    return work.grid(lines, columns)


def _layout_line(row: Row, layout: Layout, request: Request, registry: Registry, changes: Mapping[str, Value]) -> _Line:
    spec: MethodSpec = registry.get("method", row.method)
    own = {name: _field(spec, name).parse(str(value), row.method) for name, value in row.set.items()}
    if both := sorted(set(own) & set(changes)):
        raise BenchError(f"the layout {layout.name} sets {row.method}.{both[0]} itself; leave it out of --set")
    if row.backbone:
        check_backbone(row.backbone, registry)
    return _Line(spec, {**changes, **own}, row.backbone or request.backbone)


def _layout_columns(layout: Layout, tasks: Sequence[str], request: Request, registry: Registry) -> list[_Column]:
    """One column per task and corpus, with all label fractions that the layout shows of it."""
    asked = checked_fractions(request.label_fractions)
    found: dict[tuple[str, str], list[float]] = {}
    for column in layout.columns:
        if column.task in tasks:
            usual = usual_corpus(registry.get("task", column.task), request, registry)
            corpus = request.corpus or column.corpus or usual
            found.setdefault((column.task, corpus), []).extend(column.label_fractions or asked)
    return [
        _Column(registry.get("task", task), corpus, tuple(dict.fromkeys(shares)))
        for (task, corpus), shares in found.items()
    ]
