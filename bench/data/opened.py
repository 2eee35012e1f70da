"""The corpus and the dataset of a cell as memory-mapped arrays, and which images are for what."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import phantoms
from bench.data.cache import prepared
from bench.data.files import samples
from bench.data.prepare import prepare_image, prepare_sample
from bench.data.refs import corpus_content, corpus_spec
from bench.registry import Registry
from bench.spec import BenchError, PretrainCell, Site, TaskSpec, TransferCell, derive, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

VALIDATION_SHARE = 0.2


def _folder_name(site: Site, name: str, *about: object) -> Path:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-40:]
    return site.cache / f"{plain}-{digest(list(about))[:12]}"


@dataclass(frozen=True)
class Corpus:
    """Images to pretrain on, memory-mapped."""

    images: Pixels  # (N, size, size, C)
    labels: NDArray[np.int64] | None = None  # (N,) grades
    pairs: Pixels | None = None  # (N, size, size, C): the second modality
    classes: int = 0  # grades there are

    def __len__(self) -> int:
        return len(self.images)


def open_corpus(cell: PretrainCell, registry: Registry, site: Site) -> Corpus:
    """The corpus of a cell, prepared."""
    size, channels, name = cell.image_size, cell.channels, cell.corpus
    spec = corpus_spec(name, registry)
    folder = _folder_name(site, name, cell.corpus_fingerprint, size, channels)
    if cell.phantom:
        assert spec is not None
        about, cameras = spec.phantom, spec.phantom["cameras"]

        def make(index: int) -> dict[str, Pixels]:
            seed = derive(0, "corpus", name, index)
            return {"images": phantoms.render(about["modality"], seed, size, cameras[index % len(cameras)]).image}

        return Corpus(prepared(folder, {"images": (about["images"], size, size, channels)}, make)["images"])
    crop = spec.crop if spec else "none"
    files, _ = corpus_content(name, spec, site.data, site.cache, cell.dropped)
    shapes = {"images": (len(files), size, size, channels)}
    return Corpus(
        prepared(folder, shapes, lambda index: {"images": prepare_image(files[index].path, channels, crop, size)})[
            "images"
        ]
    )


@dataclass(frozen=True)
class Dataset:
    """A task's images and binary masks, and which of them are for what."""

    images: Pixels  # (N, size, size, C)
    masks: Pixels  # (N, size, size) of 0/1
    names: tuple[str, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_train(patients: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Training and validation indices of a task's train list, for a label fraction.

    The first `fraction` of the list is used (nested subsets), and the first 20 % of that is the validation part (Chen
    et al.: the first entries of the stored list), cut back to whole patients where patients are known.
    """
    used = max(2, round(fraction * len(patients)))
    if used > len(patients):
        raise BenchError(f"a train part of {len(patients)} images cannot be split into training and validation")
    count = max(1, int(VALIDATION_SHARE * used))
    known = [patient or f"#{index}" for index, patient in enumerate(patients)]
    while count > 1 and set(known[:count]) & set(known[count:used]):
        count -= 1
    while count < used - 1 and set(known[:count]) & set(known[count:used]):
        count += 1
    if set(known[:count]) & set(known[count:used]):
        raise BenchError(f"{used} images of one patient cannot be split into training and validation: use more labels")
    return list(range(count, used)), list(range(count))


def open_dataset(cell: TransferCell, registry: Registry, site: Site) -> Dataset:
    """The dataset of a cell, prepared and split."""
    spec: TaskSpec = registry.get("task", cell.task)
    size, channels = cell.image_size, spec.channels
    folder = _folder_name(site, cell.task, cell.dataset_fingerprint, spec.crop, spec.label_threshold, size, channels)
    if cell.phantom:
        count, patients = spec.train + spec.test, [""] * spec.train
        names = tuple(f"{spec.name}_phantom_{index:03d}" for index in range(count))
        make = phantom_maker(spec, size)
    else:
        parts = samples(spec, site.data or Path(), cell.allow_partial)
        listed = [*parts["train"], *parts["test"]]
        count, patients = len(listed), [sample.patient for sample in parts["train"]]
        names = tuple(sample.name for sample in listed)

        def make(index: int) -> dict[str, Pixels]:
            image, mask = prepare_sample(listed[index], spec, size)
            return {"images": image, "masks": mask}

    shapes: dict[str, tuple[int, ...]] = {"images": (count, size, size, channels), "masks": (count, size, size)}
    arrays = prepared(folder, shapes, make)
    train, validation = split_train(patients, cell.label_fraction)
    test = tuple(range(len(patients), count))
    if not any(arrays["masks"][index].any() for index in train):
        raise BenchError(f"every training mask of {cell.task} is empty: check the labels and --image-size")
    return Dataset(arrays["images"], arrays["masks"], names, tuple(train), tuple(validation), test)


def phantom_maker(spec: TaskSpec, size: int) -> Callable[[int], dict[str, Pixels]]:
    about = spec.phantom
    dataset = about.get("dataset", spec.name)

    def make(index: int) -> dict[str, Pixels]:
        phantom = phantoms.render(about["modality"], derive(0, "dataset", dataset, index), size, about["camera"])
        return {"images": phantom.image, "masks": phantom.masks[about["target"]]}

    return make


# ------------------------------------------------------------------------------------------------------------- sampling


def draw(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The images of one step: a new order every epoch, and nothing to remember but the step."""
    first = step * batch_size
    return [_order(count, seed, position // count)[position % count] for position in range(first, first + batch_size)]


_orders: dict[tuple[int, int, int], list[int]] = {}


def _order(count: int, seed: int, epoch: int) -> list[int]:
    import numpy as np

    key = (count, seed, epoch)
    if key not in _orders:
        for old in list(_orders)[:-3]:
            del _orders[old]
        _orders[key] = np.random.default_rng(derive(seed, "epoch", epoch)).permutation(count).tolist()
    return _orders[key]
