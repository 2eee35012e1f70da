"""Leaks between the corpora and the tasks of a request, each pair looked at once, on real data only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import data
from bench.data import Digests, MissingData, Sample, leaks
from bench.registry import Registry
from bench.spec import BenchError, CorpusSpec, TaskSpec

log = logging.getLogger("bench")

NAMED = 3  # images that a leak names before it only counts
PARTS = ("train", "test")

Leak = tuple[str, str]  # test, train or known; what the corpus shares with the task


@dataclass
class Audits:
    """Compares corpora with labelled data, and says what `--drop-leaks` leaves out."""

    registry: Registry
    data_root: Path | None  # None: what lies elsewhere, by its own declaration
    cache: Path
    allow_partial: bool
    drop: bool
    tick: leaks.Tick
    _dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _leaks: dict[tuple[str, str], tuple[Leak, ...]] = field(default_factory=dict)
    _files: dict[str, list[Path]] = field(default_factory=dict)

    def dropped(self, corpus: str) -> tuple[str, ...]:
        """SHA-256 of the corpus files that are left out, sorted: those of any labelled dataset under the data root.

        Not only of the tasks asked for: so a pretraining has one key whichever tasks it is used for, and is not made
        again when another task is asked for later. Datasets count as far as they are there, complete or not, where
        they have the channels of the corpus; one that is added to the data root changes the key only if it leaks.
        """
        if not self.drop:
            return ()
        if corpus not in self._dropped:
            found = leaks.audit(self._corpus_files(corpus), self._labelled(corpus), self.cache, self.tick)
            digests = Digests(self.cache)
            self._dropped[corpus] = tuple(sorted({digests.of(path) for path in found.images(*PARTS)}))
        return self._dropped[corpus]

    def leaks(self, corpus: str, task: TaskSpec) -> tuple[Leak, ...]:
        """What a corpus shares with a task's dataset as it is split here; nothing where that was left out."""
        if (corpus, task.name) not in self._leaks:
            found = self._found(corpus, task)
            self._leaks[corpus, task.name] = () if found and self.drop else found or self._known(corpus, task)
        return self._leaks[corpus, task.name]

    def _found(self, corpus: str, task: TaskSpec) -> tuple[Leak, ...]:
        parts = data.samples(task, self.data_root, self.allow_partial)
        audit = leaks.audit(self._corpus_files(corpus), parts, self.cache, self.tick)
        hits = {part: audit.images(part) for part in reversed(PARTS)}
        return tuple((part, _in_part(part, images)) for part, images in hits.items() if images)

    def _known(self, corpus: str, task: TaskSpec) -> tuple[Leak, ...]:
        spec = self._spec(corpus)
        if corpus not in task.known_leaks and (spec is None or task.name not in spec.known_leaks):
            return ()
        return (("known", f"{corpus} is known to share images with {task.name}; the audit found none of them here"),)

    def _spec(self, corpus: str) -> CorpusSpec | None:
        return None if corpus.startswith(data.FOLDER) else self.registry.get("corpus", corpus)

    def _corpus_files(self, corpus: str) -> list[Path]:
        if corpus not in self._files:
            self._files[corpus] = data.corpus_files(corpus, self._spec(corpus), self.data_root)
        return self._files[corpus]

    def _labelled(self, corpus: str) -> dict[str, Sequence[Sample]]:
        """Every labelled image that is there and has the channels of a corpus, each once, by its official part."""
        spec = self._spec(corpus)
        images: dict[Path, tuple[str, Sample]] = {}
        for task in self.registry.tasks.values():
            if spec is not None and spec.channels != task.channels:
                continue
            try:
                parts = data.inventory(task, self.data_root).parts
            except MissingData:
                continue
            except BenchError as error:
                log.warning("%s is not compared with %s for --drop-leaks: %s", task.name, corpus, error)
                continue
            for part, listed in parts.items():
                for sample in listed:
                    images.setdefault(sample.image, (part, sample))
        return {part: [sample for of, sample in images.values() if of == part] for part in PARTS}


def _in_part(part: str, images: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in images[:NAMED])
    more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
    counted = "1 corpus image is" if len(images) == 1 else f"{len(images):,} corpus images are"
    return f"{counted} in the {part} part: {names}{more}"
