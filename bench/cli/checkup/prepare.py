"""Fills the cache that runs open: the same fingerprint, size and crop give the same folder."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.cli.checkup.kinds import Target, Tick
from bench.registry import Registry
from bench.spec import BenchError, PretrainCell, Site, TaskSpec, TransferCell

SIDE_MULTIPLE = 32  # px, as in a run


def prepare(target: Target, registry: Registry, site: Site, size: int, allow_partial: bool, tick: Tick) -> int:
    """Prepares a task's or corpus's images at size x size, and returns how many there are."""
    if size < 1 or size % SIDE_MULTIPLE:
        raise BenchError(f"--image-size must be a multiple of {SIDE_MULTIPLE}, not {size}")

    def progress(done: int, total: int) -> None:
        tick(target.name, done, total)

    if isinstance(target.spec, TaskSpec):
        task_cell = _task_cell(target.spec, site.data, site.cache, size, allow_partial)
        return len(data.open_dataset(task_cell, registry, site, progress).names)
    ref = data.corpus_ref(target.name, registry, site.data, site.cache)
    return len(data.open_corpus(_corpus_cell(ref, target.channels, size), registry, site, progress))


def _corpus_cell(ref: data.CorpusRef, channels: int, size: int) -> PretrainCell:
    """A pretraining on a corpus of which only the corpus is asked."""
    return PretrainCell(
        method="",
        version=0,
        hparams=(),
        label="",
        corpus=ref.name,
        corpus_fingerprint=ref.fingerprint,
        phantom=ref.phantom,
        backbone="",
        channels=channels,
        budget="",
        steps=0,
        image_size=size,
        batch_size=1,
        seed=0,
    )


def _task_cell(spec: TaskSpec, data_root: Path | None, cache: Path, size: int, allow_partial: bool) -> TransferCell:
    """A transfer to a task of which only the dataset is asked."""
    ref = data.dataset_ref(spec, data_root, cache, allow_partial)
    nothing = data.CorpusRef("", "", ref.phantom, spec.channels)
    return TransferCell(
        pretrain=_corpus_cell(nothing, spec.channels, size),
        task=spec.name,
        task_version=spec.version,
        dataset_fingerprint=ref.fingerprint,
        phantom=ref.phantom,
        protocol="",
        label_fraction=1.0,
        fold=0,
        image_size=size,
        phase_steps=None,
        phase_epochs=0,
        checks=0,
        batch_size=1,
        budget="",
        seed=0,
        allow_partial=allow_partial,
    )
