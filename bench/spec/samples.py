"""Images on disk as the files of `tasks/` list them: labelled ones, and those to pretrain on. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def is_file(path: Path) -> bool:
    """Whether a file can be seen at `path`; a folder that may not be entered holds none."""
    try:
        return path.is_file()
    except OSError:
        return False
