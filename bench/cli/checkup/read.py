"""Opens every image and mask once, and remembers by content what could be read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import data
from bench.cli.checkup.kinds import Tick
from bench.data import Digests, RunLength, store
from bench.data.cache import in_threads
from bench.spec import BenchError

VERSION = 2  # of what is remembered


@dataclass(frozen=True)
class Measure:
    """What reading one file told."""

    height: int = 0  # px
    width: int = 0  # px
    top: int = 0  # the highest value, of 255
    error: str = ""  # a sentence: the file cannot be read


class Reader:
    """Opens every image and mask, on all cores, once per content: what could be read is remembered beside the cache."""

    def __init__(self, cache: Path) -> None:
        self.digests = Digests(cache)
        self._file = cache / "checked.json"
        self._known: dict[str, Any] = store.read_json(self._file) or {}
        self.measures: dict[tuple[Path, str], Measure] = {}

    def read(self, jobs: Iterable[tuple[Path, str]], tick: Tick) -> None:
        """Measures (path, how) for every job; how is `mask`, or an image's number of channels."""
        todo = [job for job in dict.fromkeys(jobs) if job not in self.measures]
        tick("reading files", 0, len(todo))

        def work(index: int) -> None:
            self.measures[todo[index]] = self._measure(todo[index])

        try:
            for done in in_threads(work, len(todo)):
                tick("reading files", done, len(todo))
        finally:
            self.digests.save()
            store.write_json(self._file, self._known)

    def mask(self, mask: Path | RunLength) -> Measure:
        """What reading a mask told; run lengths are decoded now."""
        return self.measures[mask, "mask"] if isinstance(mask, Path) else _measured(mask, "mask")

    def _measure(self, job: tuple[Path, str]) -> Measure:
        path, how = job
        try:
            place = f"{VERSION} {data.PREPARATION} {how} {self.digests.of(path)}"
            known = self._known.get(place)
            if isinstance(known, list) and len(known) == 3:
                return Measure(*known)
        except BenchError as error:
            return Measure(error=str(error))
        measure = _measured(path, how)
        if not measure.error:
            self._known[place] = [measure.height, measure.width, measure.top]
        return measure


def _measured(source: Path | RunLength, how: str) -> Measure:
    try:
        if how == "mask":
            pixels = data.read_mask(source)
        else:
            assert isinstance(source, Path)
            pixels = data.read_image(source, int(how))
    except BenchError as error:
        return Measure(error=str(error))
    height, width = pixels.shape[:2]
    return Measure(height, width, int(pixels.max()))
