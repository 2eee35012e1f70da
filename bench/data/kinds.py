"""What cells know of datasets and corpora. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.spec import TaskSpec
from bench.spec.samples import Sample

PREPARATION = 2  # raised when decoding, cropping or resizing changes; part of every fingerprint


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
    dims: int = 2


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
