"""What is asked for: budgets, declarations, cells and their keys. Plain data, no torch.

A cell's key is the SHA-256 of the canonical JSON of its scientific choices and nothing else: no path, host, device
or number of workers. A dataset enters by its fingerprint, so moving it changes nothing and altering it changes the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.spec.meaning import meaning

SCHEMA = 2  # of the records that are written
SCHEMAS = (1, SCHEMA)  # that are read: 1 has one metric, and its scores per case lie beside it
LOOP_VERSION = 2  # raised when the meaning of the training loop or of a protocol changes; part of every key

Value = bool | int | float | str


class BenchError(Exception):
    """A request that cannot be carried out; the message is one sentence that says what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x' or 'y'?`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else ""


DONE, FAILED, OUT_OF_MEMORY, TIMED_OUT, BLOCKED = "done", "failed", "out of memory", "timed out", "blocked"
STATUSES = (DONE, FAILED, OUT_OF_MEMORY, TIMED_OUT, BLOCKED)  # of a record


class CellError(Exception):
    """A cell that ends without a result: the status its record gets and one line of reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class CellInterrupted(BaseException):
    """The cell was asked to stop; `report` raises it between two steps, where a checkpoint can still be written."""


# ---------------------------------------------------------------------------------------------------- keys and seeds


def canonical_json(value: object) -> str:
    """The one spelling of `value` as JSON: keys sorted, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: object) -> str:
    """SHA-256, in hex, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of every other purpose of the same repetition."""
    return int(digest([seed, *purpose])[:16], 16) >> 1


def label_of(method: str, changed: Mapping[str, Value]) -> str:
    """A method's name with every hyper-parameter that is not its default: `NAME[clusters=4]`."""
    inside = ",".join(f"{name}={changed[name]}" for name in sorted(changed))
    return f"{method}[{inside}]" if inside else method


# ------------------------------------------------------------------------------------------------------------ budgets


@dataclass(frozen=True)
class Budget:
    """How long and how large everything is."""

    name: str
    steps: int | None  # optimiser steps of a pretraining; None: the method's own length
    image_size: int  # side of the prepared images, px
    batch_size: int | None  # images per pretraining step; None: the method's own, at most batch_cap
    batch_cap: int | None
    phase_steps: int | None  # optimiser steps of each phase of a transfer; None: phase_epochs decide
    phase_epochs: int  # epochs of each phase of a transfer where phase_steps is None
    checks: int  # how often the validation part is looked at in each phase

    precision: str = "32"  # of PRECISIONS, the same on every device
    changes: tuple[tuple[str, Any], ...] = ()  # (option, value) on top of the budget of this name

    @property
    def label(self) -> str:
        """Its name with every change."""
        return self._label(dict(self.changes))

    @property
    def transfer_label(self) -> str:
        """The label of what a transfer uses of it: without what concerns pretraining alone."""
        return self._label({name: value for name, value in self.changes if name not in ("steps", "batch_size")})

    def _label(self, changes: Mapping[str, Any]) -> str:
        return (
            f"{self.name} ({', '.join(f'{name}={value}' for name, value in changes.items())})" if changes else self.name
        )

    def with_overrides(
        self,
        steps: int | None = None,
        image_size: int | None = None,
        batch_size: int | None = None,
        *,
        transfer_steps: int | None = None,
        transfer_epochs: int | None = None,
        checks: int | None = None,
        precision: str | None = None,
    ) -> Budget:
        """The same budget with what a command line or a profile puts on top; the label names every change."""
        lengths = {"steps": steps, "image_size": image_size, "batch_size": batch_size, "checks": checks}
        lengths |= {"transfer_steps": transfer_steps, "transfer_epochs": transfer_epochs}
        for name, value in lengths.items():
            if value is not None and value < 1:
                raise BenchError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if transfer_steps is not None and transfer_epochs is not None:
            raise BenchError(
                "--transfer-steps and --transfer-epochs exclude each other: both are the length of a phase"
            )
        if precision is not None and precision not in PRECISIONS:
            raise BenchError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        given: dict[str, Any] = {name: value for name, value in lengths.items() if value is not None}
        if precision is not None:
            given["precision"] = precision
        changed = {name: value for name, value in given.items() if self._told(name) != value}
        if not changed:
            return self
        fields = {_FIELDS.get(name, name): value for name, value in changed.items()}
        if "transfer_epochs" in changed:
            fields["phase_steps"] = None
        left_out = {"transfer_epochs": "transfer_steps", "transfer_steps": "transfer_epochs"}
        told = {name: value for name, value in self.changes if name not in map(left_out.get, changed)}
        return dataclasses.replace(self, changes=tuple((told | changed).items()), **fields)

    def _told(self, name: str) -> Any:
        """What an option of the command line is in this budget."""
        if name == "transfer_epochs" and self.phase_steps is not None:
            return None
        return getattr(self, _FIELDS.get(name, name))


_FIELDS = {"transfer_steps": "phase_steps", "transfer_epochs": "phase_epochs"}  # option -> field of a budget
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}  # and what Lightning Fabric calls them

BUDGETS: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget("smoke", 4, image_size=64, batch_size=None, batch_cap=4, phase_steps=4, phase_epochs=1, checks=1),
        Budget("quick", 300, image_size=96, batch_size=None, batch_cap=8, phase_steps=60, phase_epochs=10, checks=4),
        Budget("short", 2000, 128, batch_size=None, batch_cap=8, phase_steps=None, phase_epochs=100, checks=20),
        Budget("paper", None, 512, batch_size=None, batch_cap=None, phase_steps=None, phase_epochs=100, checks=100),
    )
}

BACKBONES = ("tiny_vgg16", "small_vgg16", "vgg16", "resnet18", "resnet34", "resnet50")  # the papers' own


# ------------------------------------------------------------------------------------------------------- declarations


@dataclass(frozen=True)
class HParam:
    """One field of a method's hyper-parameters."""

    name: str
    type: str  # bool, int, float or str
    default: Value
    doc: str = ""

    def parse(self, text: str, owner: str) -> Value:
        """`text` as this field's type; BenchError where it is none, or negative where the default is not."""
        try:
            if self.type == "bool":
                return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
            number: Value = {"int": int, "float": float, "str": str}[self.type](text)
        except (KeyError, ValueError):
            raise BenchError(f"{owner}.{self.name} takes a value of type {self.type}, not {text!r}") from None
        if isinstance(number, float) and not math.isfinite(number):
            raise BenchError(f"{owner}.{self.name} must be finite, not {text!r}")
        if not isinstance(number, str) and not isinstance(self.default, str) and number < 0 <= self.default:
            raise BenchError(f"{owner}.{self.name} must not be negative, but is {text}")
        return number


@dataclass(frozen=True)
class Origin:
    """Where a plug-in is written."""

    file: str
    line: int
    symbol: str
    source: bytes = field(default=b"", repr=False)  # the file as it was read; of a TOML file its scientific choices

    @cached_property
    def does(self) -> str:
        """Digest of what the file does, whatever else is written in it; it is worked out when it is asked for."""
        return meaning(self.source) if self.file.endswith(".py") else hashlib.sha256(self.source).hexdigest()


LIBRARY, FILE = "library", "file"  # where the encoder of a method that does not train may come from


@dataclass(frozen=True)
class MethodSpec:
    """A way of pretraining, as its decorator declares it."""

    name: str  # by which it is called; the first argument
    version: int  # raised when a change makes other numbers: it is in every key
    title: str  # as tables print it
    paper: str  # authors, year, where
    groups: tuple[str, ...]  # names by which several are called together
    trains: bool = True  # False: nothing is pretrained, the encoder starts as it is
    weights: str = ""  # of one that does not train: "library", or "file" where it is asked for as NAME:PATH
    lacks: tuple[str, ...] = ()  # backbones for which it has no weights
    paper_steps: int = 0  # optimiser steps of the paper's schedule (budget `paper`)
    paper_batch: int = 0  # images per step in the paper
    min_batch: int = 1  # fewest images per step the method is defined for
    batch_multiple: int = 1  # images per step must be a multiple of this
    needs: str = ""  # what the corpus must offer beside images: "labels" (grades), "pairs" (a second modality)
    maps: tuple[str, ...] = ()  # side maps of the corpus that come with every batch, by their registered names
    parallel: str = ""  # on several devices: "mean" over images, "gather" what is compared; "": not made for it
    dims: tuple[int, ...] = (2, 3)  # axes of the images that it is made for
    dims_reason: str = ""  # why not for others
    note: str = ""  # footnote: how the method had to be reinterpreted
    fields: tuple[HParam, ...] = ()
    origin: Origin = Origin("", 0, "")

    @property
    def defaults(self) -> dict[str, Value]:
        return {item.name: item.default for item in self.fields}


TRUTHS = ("mask", "points", "grade")  # kinds of truth: of every pixel, of named places, of the whole image


@dataclass(frozen=True)
class DatasetSpec:
    """Images of one origin, as declared: what belongs to them whatever is asked of them.

    A task or corpus that says `dataset=NAME` takes from here every field that it does not declare itself; its `phantom`
    is this one with its own entries on top.
    """

    name: str
    title: str
    channels: int
    licence: str
    citation: str
    source: str
    folders: tuple[str, ...]
    layout: str  # what lies in the folder
    revision: str = ""
    dims: int = 2  # axes of an image: 3 for a volume
    version: int = 1
    groups: tuple[str, ...] = ()
    section: str = ""
    corpus: str = ""
    stand_in: str = ""
    train: int = 0
    test: int = 0
    crop: str = "none"
    label_threshold: float = 0.3
    augment: str = "none"
    batch_size: int = 2
    patients: str = ""
    known_leaks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    phantom: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = Origin("", 0, "")


@dataclass(frozen=True)
class CorpusSpec:
    """Unlabelled images to pretrain on, as declared."""

    name: str
    version: int
    title: str
    channels: int  # 3: colour, 1: grey
    licence: str  # printed with every dataset, and in every record
    citation: str  # whom to cite
    source: str  # where to get it
    folders: tuple[str, ...]  # what its folder below the data root may be called
    layout: str  # what lies in the folder
    dataset: str = ""  # that it stands on
    dims: int = 2  # axes of an image: 3 for a volume
    crop: str = "none"  # "fov": crop to the field of view first
    classes: tuple[str, ...] = ()  # names of the image-level grades, in order; empty: it has none
    paired: bool = False  # every image comes with one of a second modality
    known_leaks: tuple[str, ...] = ()  # tasks that are known to share images with it
    phantom: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = Origin("", 0, "")


@dataclass(frozen=True)
class TaskSpec:
    """A question asked of a dataset: its truth, its metrics and how it is split, as declared."""

    name: str
    version: int
    title: str
    groups: tuple[str, ...]
    section: str  # heading above its column
    corpus: str  # what one pretrains on for it
    channels: int
    licence: str
    citation: str
    source: str
    revision: str  # of the data
    folders: tuple[str, ...]
    layout: str  # what lies in the folder
    train: int  # images of the part
    test: int  # the same
    dataset: str = ""  # that it stands on
    dims: int = 2
    truth: str = "mask"  # one of TRUTHS
    structures: tuple[str, ...] = ()  # names of what is marked, of the points or of the grades; (): one, without a name
    metrics: tuple[str, ...] = ("dsc",)  # the first is its headline
    protocols: tuple[str, ...] = ()  # that it admits, the first is its default; (): all that serve its truth
    folds: int = 0  # of a cross-validation over all its cases; 0: it has an official test part
    crop: str = "none"
    label_threshold: float = 0.3  # share of the label's full scale
    augment: str = "none"  # how training images are varied: "fundus", "chest" or "none"
    batch_size: int = 2  # images per step of a transfer
    patients: str = ""  # pattern whose first group is the patient; empty: every image its own
    known_leaks: tuple[str, ...] = ()  # corpora that are known to share images with it
    stand_in: str = ""  # corpus that one pretrains on, and says so, where `corpus` is not under the data root
    phantom: Mapping[str, Any] = field(default_factory=dict)  # what stands in where there is no data root
    origin: Origin = Origin("", 0, "")

    @property
    def headline(self) -> str:
        """The metric that stands for the task."""
        return self.metrics[0]


@dataclass(frozen=True)
class ProtocolSpec:
    """How an encoder is judged, as declared."""

    name: str
    title: str
    selection: str  # how the state that is tested is chosen; printed with every number
    truths: tuple[str, ...]  # of TRUTHS, that it serves
    dims: tuple[int, ...] = (2, 3)  # of the images it serves
    phases: int = 0  # stretches of training, each as long as the budget's phase; 0: no gradient step is made
    order: int = 9  # among the protocols that serve a task which names none: the least is its default
    version: int = 1
    note: str = ""  # footnote
    origin: Origin = Origin("", 0, "")


@dataclass(frozen=True)
class MetricSpec:
    """What a table must know of a metric, as declared."""

    name: str
    title: str  # as a table's header prints it
    higher_is_better: bool
    truths: tuple[str, ...]  # of TRUTHS, that it compares
    unit: str = ""  # printed in the header; empty: a plain number
    scale: float = 1.0  # times the stored value is what is printed
    digits: int = 2
    pooled: bool = False  # one value of all cases, not one of each
    spaced: bool = False  # needs the size of a pixel: a case without it has none
    empty: str = ""  # what it does where the truth is empty
    origin: Origin = Origin("", 0, "")


@dataclass(frozen=True)
class BackboneSpec:
    """An encoder of a plug-in file, as declared."""

    name: str
    dims: int  # of the images it takes
    title: str = ""
    origin: Origin = Origin("", 0, "")


@dataclass(frozen=True)
class SideMapSpec:
    """What is computed once of every image of a corpus, as declared."""

    name: str
    version: int  # raised when its values change
    origin: Origin = Origin("", 0, "")


# -------------------------------------------------------------------------------------------------------------- recipe


@dataclass(frozen=True)
class Stage:
    """One stretch of a pretraining with an optimiser of its own."""

    share: float = 1.0  # of all steps
    schedule: str = "constant"  # constant, cosine, halve, step
    period: float = 1.0  # halve: after every `period` of the stage
    drops: tuple[float, ...] = ()  # step: a tenth of the rate from each of these shares of the stage on
    warmup: float = 0.0  # share of the stage with a linearly rising rate


@dataclass(frozen=True)
class Part:
    """Parameters with an optimiser of their own, which is the same one through all stages."""

    prefix: str | tuple[str, ...]  # of the names of the method's parameters
    optimizer: str  # as Recipe's
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    loss: str = "loss"  # what it minimises, as Recipe's
    turn: int = 0  # as Recipe's
    stage: Stage = Stage()  # how its rate goes over the whole pretraining, whatever its share; constant

    @property
    def prefixes(self) -> tuple[str, ...]:
        return (self.prefix,) if isinstance(self.prefix, str) else self.prefix


@dataclass(frozen=True)
class Recipe:
    """How a method wants to be optimised; the loop builds the optimisers from it.

    One optimiser is one line, `Recipe("adam", 1e-3)`. More of them are parts, each with the parameters it owns, its
    rate, and the loss that it minimises: a key of what `training_step` returns. What is in no part is the recipe's own.

    Adversaries take turns, which follow one another inside every step on the same batch:

        Recipe("adam", 2e-4, parts=(Part("discriminator.", "adam", 2e-4, loss="discriminator", turn=1),))

        def training_step(self, batch):
            fake = self.generator(batch.views[0].images)
            if batch.turn == 0:
                return {"loss": -self.discriminator(fake).mean()}
            real = batch.views[1].images
            return {"discriminator": self.discriminator(fake.detach()).mean() - self.discriminator(real).mean()}

    `training_step` is called once per turn, and the one loss of that turn is differentiated; all its optimisers step.
    Meanwhile the parameters of the other turns take no gradient and do not move, nor do their buffers: their networks
    normalise with the statistics of the batch, but their running statistics are afterwards what they were. Buffers of
    no network with parameters (a queue, a pool of images, a momentum copy) belong to no turn and move in every one.
    """

    optimizer: str  # adam, adamw, sgd, lars
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9  # SGD's and LARS's
    stages: tuple[Stage, ...] = (Stage(),)
    parts: tuple[Part, ...] = ()  # parameters that are left out of all this and optimised on their own
    loss: str = "loss"  # what it minimises: a key of what `training_step` returns; one for all optimisers of a turn
    turn: int = 0  # when in a step; turns are numbered from 0 on


@dataclass(frozen=True)
class CorpusInfo:
    """What a method may know of its corpus and its budget."""

    size: int  # images
    channels: int
    view_size: int  # side of a view, px
    batch_size: int  # images per step
    steps: int
    classes: int = 0  # image-level grades, 0: none are known


# --------------------------------------------------------------------------------------------------------------- cells


def _unless_full(precision: str) -> dict[str, str]:
    """What a key says of a precision: nothing of full float32, which keys had before there was a choice."""
    return {"precision": precision} if precision != "32" else {}


@dataclass(frozen=True)
class PretrainCell:
    """A method with its hyper-parameters on a corpus: one encoder."""

    method: str
    version: int
    hparams: tuple[tuple[str, Value], ...]
    label: str  # the method's name with every changed hyper-parameter
    corpus: str
    corpus_fingerprint: str
    phantom: bool
    backbone: str
    channels: int
    budget: str  # its label
    steps: int  # 0: nothing is pretrained
    image_size: int
    batch_size: int
    seed: int
    dropped: tuple[str, ...] = ()  # SHA-256 of the files left out; the fingerprint is of what remains
    weights: str = ""  # where nothing is trained here, SHA-256 of the file with the weights, or "library"
    weights_file: str = ""  # where that file lies
    precision: str = "32"  # of PRECISIONS

    kind = "pretrain"

    @property
    def trained(self) -> bool:
        """Whether the encoder is another than a fresh one: pretrained here, or brought along."""
        return self.steps > 0 or bool(self.weights)

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The scientific choices that make up the key."""
        common = {
            "kind": self.kind,
            "loop": LOOP_VERSION,
            "method": self.method,
            "version": self.version,
            "hparams": dict(self.hparams),
            "backbone": self.backbone,
            "channels": self.channels,
            "seed": self.seed,
        }
        if self.weights:
            common["weights"] = self.weights
        if self.steps == 0:
            return common
        return (
            common
            | _unless_full(self.precision)
            | {
                "corpus": self.corpus_fingerprint,
                "steps": self.steps,
                "image_size": self.image_size,
                "batch_size": self.batch_size,
            }
        )

    @cached_property
    def key(self) -> str:
        return digest(self.choices)

    @property
    def folder(self) -> str:
        """Its work folder below the runs folder."""
        return f"pretrain/{self.method}-{self.key[:12]}"


@dataclass(frozen=True)
class TransferCell:
    """An encoder judged on a task: one number."""

    pretrain: PretrainCell
    task: str
    task_version: int
    dataset_fingerprint: str
    phantom: bool
    protocol: str
    label_fraction: float
    fold: int
    image_size: int
    phase_steps: int | None
    phase_epochs: int
    checks: int
    batch_size: int
    budget: str  # label of what a transfer uses of it
    seed: int
    present: int = 0  # labelled images that were there
    expected: int = 0  # of the official dataset
    rule: str = ""  # how a partial dataset is split; empty: officially
    allow_partial: bool = False
    protocol_version: int = 1
    folds: int = 0  # that the cases are dealt out to; 0: the official parts
    leaks: tuple[tuple[str, str], ...] = ()  # ("test", "train" or "known", what the corpus shares with the task)
    precision: str = "32"  # of PRECISIONS

    kind = "transfer"

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The scientific choices that make up the key."""
        length = {"steps": self.phase_steps} if self.phase_steps is not None else {"epochs": self.phase_epochs}
        choices = {
            "kind": self.kind,
            "loop": LOOP_VERSION,
            "pretrain": self.pretrain.choices,
            "task": self.task,
            "version": self.task_version,
            "dataset": self.dataset_fingerprint,
            "protocol": self.protocol,
            "label_fraction": self.label_fraction,
            "fold": self.fold,
            "image_size": self.image_size,
            "phase": length,
            "checks": self.checks,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        if self.protocol_version > 1:  # a first version is in no key: it came later than the keys
            choices["protocol_version"] = self.protocol_version
        if self.folds:
            choices["folds"] = self.folds
        return choices | _unless_full(self.precision)

    @cached_property
    def key(self) -> str:
        return digest(self.choices)

    @property
    def folder(self) -> str:
        """Its work folder below the runs folder."""
        return f"transfer/{self.task}-{self.pretrain.method}-{self.key[:12]}"


Cell = PretrainCell | TransferCell


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """A cell as plain data that `cell_from_dict` turns back into the same cell."""
    return {"kind": cell.kind, **dataclasses.asdict(cell)}


def cell_from_dict(data: Mapping[str, Any]) -> Cell:
    """The cell that `cell_to_dict` was given; TypeError where fields are missing or unknown."""
    values = {name: value for name, value in data.items() if name != "kind"}
    if data["kind"] == PretrainCell.kind:
        values["hparams"] = tuple((name, value) for name, value in values["hparams"])
        values["dropped"] = tuple(values.get("dropped", ()))
        return PretrainCell(**values)
    pretrain = cell_from_dict({"kind": PretrainCell.kind, **values.pop("pretrain")})
    assert isinstance(pretrain, PretrainCell)
    values["leaks"] = tuple((kind, text) for kind, text in values.get("leaks", ()))
    return TransferCell(pretrain=pretrain, **values)


@dataclass(frozen=True)
class Site:
    """Where and on what a cell runs: nothing here changes a key, and nothing here may change a number."""

    runs: Path
    results: Path
    data: Path | None  # data root; None: phantoms
    device: str = "cpu"  # cpu, cuda, cuda:1; before a run starts also auto
    threads: int = 1  # CPU threads of one cell, or of each of its ranks
    ranks: int = 1  # processes that share a pretraining, each with a device of its own from `device` on
    checkpoint_seconds: float = 30.0
    plugins: tuple[str, ...] = ()  # files outside the packages

    @property
    def cache(self) -> Path:
        return self.runs / "cache"


def site_to_dict(site: Site) -> dict[str, Any]:
    """A site as plain data that `site_from_dict` turns back into the same site."""
    values = dataclasses.asdict(site)
    return values | {name: None if values[name] is None else str(values[name]) for name in _SITE_PATHS}


def site_from_dict(data: Mapping[str, Any]) -> Site:
    """The site that `site_to_dict` was given."""
    paths = {name: None if data[name] is None else Path(data[name]) for name in _SITE_PATHS}
    return Site(**{**data, **paths, "plugins": tuple(data["plugins"])})


_SITE_PATHS = ("runs", "results", "data")
