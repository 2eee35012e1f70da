"""Images on disk as the files of `tasks/` list them: labelled ones, and those to pretrain on. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bench.spec import BenchError

FOLDER = "folder:"  # a corpus named by its place


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


Source = Path | RunLength
"""Where a mask is read from."""


@dataclass(frozen=True)
class Mask:
    """The truth of every pixel: what one or several masks mark, united, or one map whose values name structures."""

    files: Source | tuple[Source, ...]
    levels: Mapping[str, int] = field(default_factory=dict)  # structure -> its value in the map; {}: what is marked

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.files if isinstance(self.files, tuple) else (self.files,)

    @property
    def content(self) -> list[Any]:
        """What is in a fingerprint beside the content of the files."""
        return [dict(self.levels)] if self.levels else []


@dataclass(frozen=True)
class Points:
    """The truth of named places in an image as it is stored."""

    names: tuple[str, ...]
    places: tuple[tuple[float, ...], ...]  # px, in the order of the axes: row, column(, slice); NaN: not there

    sources: ClassVar[tuple[Source, ...]] = ()

    @property
    def content(self) -> list[Any]:
        return [[list(self.names), [[None if value != value else value for value in place] for place in self.places]]]


@dataclass(frozen=True)
class Grade:
    """The truth of a whole image: the place of its class among the structures of the task."""

    value: int

    sources: ClassVar[tuple[Source, ...]] = ()

    @property
    def content(self) -> list[Any]:
        return [self.value]


Truth = Mask | Points | Grade


@dataclass(frozen=True)
class Sample:
    """One image on disk and what is true of it; truth None where the images of a dataset are listed without."""

    name: str
    image: Path
    truth: Truth | None = None
    patient: str = ""
    spacing: tuple[float, ...] = ()  # mm per pixel, in the order of the axes; (): not known

    @property
    def masks(self) -> tuple[Source, ...]:
        """Where its mask is read from."""
        return self.truth.sources if self.truth is not None else ()

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


def is_file(path: Path) -> bool:
    """Whether a file can be seen at `path`; a folder that may not be entered holds none."""
    try:
        return path.is_file()
    except OSError:
        return False
