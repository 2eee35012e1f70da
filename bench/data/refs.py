"""Corpora and datasets as cells know them: by the fingerprint of their content."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.data.digests import Digests, phantom_fingerprint
from bench.data.files import chosen_samples, corpus_images, inventory, own_root, samples
from bench.data.kinds import PREPARATION, CorpusRef, DatasetRef
from bench.registry import Registry
from bench.spec import CorpusSpec, TaskSpec, digest
from bench.spec.samples import FOLDER, CorpusImage, MissingData, RunLength, Sample


def corpus_spec(name: str, registry: Registry) -> CorpusSpec | None:
    """The declaration of a corpus; None for a folder."""
    return None if name.startswith(FOLDER) else registry.get("corpus", name)


def corpus_ref(
    name: str, registry: Registry, data_root: Path | None, cache: Path, drop: Collection[str] = ()
) -> CorpusRef:
    """A corpus by name or as `folder:PATH`: the phantom without a data root, else what lies there.

    drop: SHA-256 of the image files that are left out.
    """
    spec = corpus_spec(name, registry)
    if spec is not None and data_root is None:
        return _phantom_corpus(spec)
    listed, fingerprint = corpus_content(name, spec, data_root, cache, drop)
    classes = spec.classes if spec is not None and listed[0].label is not None else ()
    channels = spec.channels if spec is not None else 0
    return CorpusRef(
        name, fingerprint, False, channels, classes, listed[0].pair is not None, len(listed), spec.dims if spec else 2
    )


def _phantom_corpus(spec: CorpusSpec) -> CorpusRef:
    about = spec.phantom
    if not about:
        raise MissingData(f"corpus {spec.name} has no phantom: give the folder of the datasets with --data")
    classes = spec.classes if about.get("grades") else ()
    fingerprint = phantom_fingerprint(spec, "corpus", spec.name, spec.version)
    return CorpusRef(
        spec.name, fingerprint, True, spec.channels, classes, bool(about.get("pairs")), about["images"], spec.dims
    )


def corpus_content(
    name: str, spec: CorpusSpec | None, data_root: Path | None, cache: Path, drop: Collection[str] = ()
) -> tuple[list[CorpusImage], str]:
    """The images of a corpus in the order of their content, whatever their names, and the fingerprint."""
    digests = Digests(cache)
    images = corpus_images(name, spec, data_root)
    digests.read([path for item in images for path in (item.path, item.pair) if path is not None])
    entries: list[tuple[list[Any], CorpusImage]] = []
    for item in images:
        sha256 = digests.of(item.path)
        if sha256 not in drop:
            pair = digests.of(item.pair) if item.pair is not None else ""
            entries.append(([sha256, -1 if item.label is None else item.label, pair], item))
    digests.save()
    if not entries:
        raise MissingData(f"every image of {name} was dropped: choose another --corpus")
    entries.sort(key=lambda entry: entry[0])
    crop, version = (spec.crop, spec.version) if spec else ("none", 1)
    content = [about for about, _ in entries]
    return [item for _, item in entries], digest(["corpus", PREPARATION, crop, version, content])


def dataset_ref(spec: TaskSpec, data_root: Path | None, cache: Path, allow_partial: bool = False) -> DatasetRef:
    """A task's dataset: the phantom without a data root, else what lies there."""
    if data_root is None and own_root(spec) is None:
        if not spec.phantom:
            raise MissingData(f"task {spec.name} has no phantom: give the folder of the datasets with --data")
        count = spec.train + spec.test
        return DatasetRef(phantom_fingerprint(spec, spec.train, spec.test), True, count, count)
    found = inventory(spec, data_root)
    parts = samples(spec, data_root) if found.root is None else chosen_samples(found, allow_partial)
    return DatasetRef(dataset_fingerprint(parts, cache), False, found.present, found.expected, found.rule)


def dataset_fingerprint(parts: Mapping[str, Sequence[Sample]], cache: Path) -> str:
    """What a dataset is recognised by: the content of its images and masks, their names and their split."""
    digests = Digests(cache)
    digests.read([path for part in parts.values() for sample in part for path in sample.files])
    manifest = {
        split: [
            [
                sample.name,
                digests.of(sample.image),
                [_mask_digest(mask, digests) for mask in sample.masks],
                *_more(sample),
            ]
            for sample in part
        ]
        for split, part in parts.items()
    }
    digests.save()
    return digest(["dataset", PREPARATION, manifest])


def _more(sample: Sample) -> list[Any]:
    """What belongs to a sample beside its files; nothing where it is a plain mask."""
    truth = sample.truth.content if sample.truth is not None else []
    return [*truth, *([list(sample.spacing)] if sample.spacing else [])]


def _mask_digest(mask: Path | RunLength, digests: Digests) -> str:
    return digests.of(mask) if isinstance(mask, Path) else digest([list(mask.rows), mask.height, mask.width])
