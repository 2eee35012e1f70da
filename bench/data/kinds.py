"""What datasets and corpora are made of, as tasks list them and as cells know them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.spec import BenchError, TaskSpec

FOLDER = "folder:"  # a corpus named by its place
PREPARATION = 2  # raised when decoding, cropping or resizing changes; part of every fingerprint


class MissingData(BenchError):
    """A dataset or corpus is not under the data root, or not whole."""


class NoImages(MissingData):
    """The folder of a corpus, which it may share with a dataset, holds none of its images."""


@dataclass(frozen=True)
class RunLength:
    """A mask as text: every row is `gap run gap run ...`, column by column; several rows are united.

    SIIM-ACR's relative run lengths: each gap counts from the end of the run before it. A row of "-1" is empty.
    """

    rows: tuple[str, ...]
    height: int  # px
    width: int  # px


@dataclass(frozen=True)
class Sample:
    """One labelled image on disk; several masks are united."""

    name: str
    image: Path
    masks: tuple[Path | RunLength, ...]
    patient: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.image, *(mask for mask in self.masks if isinstance(mask, Path)))


@dataclass(frozen=True)
class CorpusImage:
    """One image to pretrain on, with what is known of it besides."""

    path: Path
    label: int | None = None  # image-level grade: its place in the corpus's `classes`
    pair: Path | None = None  # the same view in a second modality
    patient: str = ""


@dataclass(frozen=True)
class CorpusRef:
    """A corpus as cells know it; `channels` 0: whatever the task has."""

    name: str
    fingerprint: str
    phantom: bool
    channels: int
    classes: tuple[str, ...] = ()
    paired: bool = False
    size: int = 0  # images


@dataclass(frozen=True)
class DatasetRef:
    """A task's dataset as cells know it."""

    fingerprint: str
    phantom: bool
    present: int  # complete samples
    expected: int  # of the official dataset
    rule: str = ""  # how a partial dataset is split; empty: officially


@dataclass(frozen=True)
class Inventory:
    """What of a task's dataset lies under the data root."""

    spec: TaskSpec
    root: Path | None  # the dataset's folder
    state: str  # found, partial, missing
    parts: dict[str, list[Sample]] = field(default_factory=dict)  # official split -> its complete samples
    missing: tuple[str, ...] = ()  # files, relative to the folder
    incomplete: tuple[str, ...] = ()  # names of the samples that lack one
    files: int = 0  # that should be there
    present: int = 0  # complete samples
    expected: int = 0  # samples of the official dataset
    rule: str = ""  # how it would be split with --allow-partial; empty: officially
