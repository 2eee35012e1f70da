"""What is looked at, how much of it is there, and what there is to say about it. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.data import FOLDER
from bench.spec import CorpusSpec, TaskSpec

FOUND, PARTIAL, MISSING, DAMAGED = "found", "partial", "missing", "damaged"
PROBLEM, NOTE = "problem", "note"
LONG_NAME = 40  # letters of a path, above which a sentence gives its last part
NAMED = 3  # files that a sentence names before it only counts

Tick = Callable[[str, int, int], None]  # what is done, how many of it, of how many


@dataclass(frozen=True)
class Target:
    """A task or a corpus to look at."""

    name: str
    kind: str  # task, corpus
    spec: TaskSpec | CorpusSpec | None  # None: a corpus named by its place, folder:PATH

    @property
    def channels(self) -> int:
        return 3 if self.spec is None else self.spec.channels

    @property
    def folder(self) -> Path:
        """The folder of a corpus named by its place."""
        return Path(self.name.removeprefix(FOLDER)).expanduser().absolute()


@dataclass(frozen=True)
class Status:
    """How much of a dataset or corpus is there, by names and file sizes alone."""

    name: str
    kind: str  # task, corpus
    state: str  # found, partial, missing, damaged
    folder: Path | None
    images: int = 0  # of a task: those whose masks are there too
    expected: int | None = None  # None: a corpus, of which any number will do
    masks: int = 0
    missing: tuple[str, ...] = ()  # files, relative to the folder
    damaged: tuple[str, ...] = ()  # what stands there and cannot be what it should: a sentence each
    absent: tuple[str, ...] = ()  # parts, train or test, of which nothing is there
    rule: str = ""  # how the part that is there would be split; empty: officially
    licence: str = ""
    citation: str = ""
    source: str = ""

    @property
    def counts(self) -> str:
        """`14/45`; `516` where any number will do."""
        if self.folder is None:
            return ""
        return f"{self.images:,}" if self.expected is None else f"{self.images:,}/{self.expected:,}"

    @property
    def lacking(self) -> str:
        """`62 files are missing (a, b, c and 59 more)`, or nothing."""
        if not self.missing:
            return ""
        shown, rest = self.missing[:NAMED], len(self.missing) - NAMED
        names = [name if len(name) <= LONG_NAME else f".../{Path(name).name}" for name in shown]
        more = f" and {rest} more" if rest > 0 else ""
        files = "1 file is" if len(self.missing) == 1 else f"{len(self.missing)} files are"
        return f"{files} missing ({', '.join(names)}{more})"


@dataclass(frozen=True)
class Finding:
    """One thing to say about datasets."""

    level: str  # problem, note
    kind: str  # missing, damaged, mask, empty mask, duplicate, split, leak, known leak, unused
    names: tuple[str, ...]  # tasks and corpora it is about
    file: str  # relative to the data root where it lies there; empty: no single one
    text: str  # a sentence that names the file and says what to do


@dataclass(frozen=True)
class Checked:
    """One task or corpus after every file was opened."""

    status: Status
    sizes: str  # `999x960`, or from the smallest to the largest
    state: str  # as Status's, now that the content is known
    problems: int
